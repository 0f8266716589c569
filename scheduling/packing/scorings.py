"""The scoring rules by name, as tables for the placing kernel."""

from __future__ import annotations

import math

import numpy as np

from moorage.kernels import placing_scores as kernel
from moorage.kernels.placing_scores import Scoring
from moorage.scheduling.packing.classes import I64, Mix
from moorage.scheduling.packing.values import Pool, tables

POTENTIAL, BEST_FIT, FGD, DOT_PRODUCT, RANDOM, FIRST = (
    "potential",
    "best-fit",
    "fgd",
    "dot-product",
    "random",
    "first",
)
NAMES = (POTENTIAL, BEST_FIT, FGD, DOT_PRODUCT, RANDOM, FIRST)
_UNIT = 2**20
_POPULAR = 0.95


def plain(kind: int, tie: I64, salt: int = 0) -> Scoring:
    """A rule without tables: best fit, dot product, random, first."""
    none = np.zeros(0, np.int64)
    return Scoring(
        kind=kind,
        tie=tie,
        salt=salt,
        value=np.zeros((1, 1, 1), np.int64),
        price=np.zeros((1, 2, 1), np.int64),
        stages=none,
        typical=np.zeros((0, 5), np.int64),
        levels=none,
        steps=none,
    )


def best_fit(tie: I64) -> Scoring:
    """The smallest remainder; then the node with least left."""
    return plain(kernel.BEST_FIT, tie)


def dot_product(tie: I64) -> Scoring:
    """The smallest product of demand and room, as the authors of FGD ran Tetris beside it."""
    return plain(kernel.DOT_PRODUCT, tie)


def random(tie: I64, salt: int) -> Scoring:
    """A node that fits, by chance: `salt` is the seed."""
    return plain(kernel.RANDOM, tie, salt)


def first(tie: I64) -> Scoring:
    """The first node in the order of `tie` that fits."""
    return plain(kernel.FIRST, tie)


def check(scoring: Scoring, model: I64, devices: I64) -> None:
    """Raise ValueError when the tables do not reach to these nodes ([N] GPU model rows, [N] devices): a kernel that
    looked beyond their end would read anything."""
    if len(scoring.tie) != len(model):
        raise ValueError(f"the packing rule ranks {len(scoring.tie)} nodes, there are {len(model)}")
    if scoring.kind != kernel.POTENTIAL or not len(model):
        return
    models = len(scoring.value) // (len(scoring.stages) + 1)
    most = scoring.value.shape[1] - kernel.WHOLE - 2
    if model.max() >= models or devices.max() > most:
        raise ValueError(
            f"the packing tables are for {models} GPU models and up to {most} devices on a node, "
            f"not for {model.max() + 1} and {devices.max()}"
        )


def potential(tie: I64, mix: Mix, pool: Pool) -> Scoring:
    """Where what can still be packed falls least (`values`). Best fit for a mix without tasks of up to one GPU."""
    single = (mix.milli > 0) & (mix.milli <= kernel.WHOLE)
    if not single.any() or pool.milli_gpu <= 0:
        return best_fit(tie)
    value, price, stages = tables(mix, pool)
    return plain(kernel.POTENTIAL, tie)._replace(value=value, price=price, stages=stages)


def fgd(tie: I64, mix: Mix) -> Scoring:
    """Fragmentation gradient descent ("Beware of Fragmentation", Weng et al., USENIX ATC'23), faithfully.

    As its authors' simulator runs it: the typical tasks are the most frequent shapes that make up 95% of all, those
    without a GPU included; the score is a whole percent of a sigmoid, so that many nodes tie.
    """
    devices = np.where(mix.milli == 0, 0, np.maximum(1, mix.milli // kernel.WHOLE))
    count: dict[tuple[int, int, int, int], int] = {}
    for i in range(len(mix)):
        shape = (
            int(mix.cpu[i]),
            int(min(mix.milli[i], kernel.WHOLE)),
            int(devices[i]),
            int(mix.models[i]),
        )
        count[shape] = count.get(shape, 0) + int(mix.count[i])
    total, popular = sum(count.values()), 0
    typical: list[tuple[int, int, int, int]] = []
    for shape in sorted(count, key=lambda s: (count[s], s), reverse=True):
        if popular >= _POPULAR * total:
            break
        typical.append(shape)
        popular += count[shape]
    levels = sorted({shape[1] for shape in typical})
    rows = [
        (levels.index(milli), number, cpu, round(_UNIT * count[cpu, milli, number, models] / popular), models)
        for cpu, milli, number, models in typical
    ]
    # int(100 * sigmoid(gain / 1000)) >= q from the gain 1000 * ln(q / (100 - q)) on; the margin is for q = 50: 0.
    steps = [math.ceil(1000 * _UNIT * math.log(q / (100 - q)) - 1e-6) for q in range(1, 100)]
    return plain(kernel.FGD, tie)._replace(
        typical=np.array(rows, np.int64).reshape(-1, 5),
        levels=np.array(levels, np.int64),
        steps=np.array(steps, np.int64),
    )
