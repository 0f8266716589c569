"""The packing rules by name, made for one pool and one mix of task classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moorage.kernels.placing_scores import Scoring
from moorage.scheduling.ledger import Ledger
from moorage.scheduling.model import WHOLE, IntArray
from moorage.scheduling.packing import scorings
from moorage.scheduling.packing.classes import Mix
from moorage.scheduling.packing.values import Pool
from moorage.scheduling.queue import TaskClass

RULES = {
    scorings.POTENTIAL: "where what can still be packed falls least, by the prices of a cutting-stock programme",
    scorings.BEST_FIT: "the smallest remainder, then the node that is most used",
    scorings.FGD: "fragmentation gradient descent (Weng et al., USENIX ATC'23), as its authors' simulator runs it",
    scorings.DOT_PRODUCT: "the smallest product of demand and room (Tetris, as run beside FGD)",
    scorings.RANDOM: "any node that fits, by chance",
    scorings.FIRST: "the first node that fits",
}
"""Packing rule -> what it does. The first is the default."""


def scoring(
    name: str, ledger: Ledger, classes: Sequence[TaskClass], count: IntArray, salt: int = 0
) -> Scoring:
    """The rule's tables. `count[C]`: how often each class comes (rules that look ahead read it)."""
    tie = np.arange(len(ledger.up))
    match name:
        case scorings.POTENTIAL:
            return scorings.potential(tie, mix_of(ledger, classes, count), pool_of(ledger))
        case scorings.BEST_FIT:
            return scorings.best_fit(tie)
        case scorings.DOT_PRODUCT:
            return scorings.dot_product(tie)
        case scorings.RANDOM:
            return scorings.random(tie, salt)
        case scorings.FIRST:
            return scorings.first(tie)
        case scorings.FGD:
            return scorings.fgd(tie, mix_of(ledger, classes, count))
        case _:
            raise ValueError(f"there is no packing rule {name!r}; there are {', '.join(RULES)}")


def pool_of(ledger: Ledger) -> Pool:
    """What the tables of the potential rule need to know of the nodes that are up."""
    up = ledger.up
    return Pool(
        milli_by_model=tuple(
            int(ledger.devices[up & (ledger.model == row)].sum()) * WHOLE for row in range(len(ledger.models))
        ),
        width=int(ledger.milli_free.shape[1]),
        milli_cpu=int(ledger.cpu_total[up].sum()),
    )


def mix_of(ledger: Ledger, classes: Sequence[TaskClass], count: IntArray) -> Mix:
    """The mix of some task classes on this pool's GPU models."""
    shapes = np.array(
        [(c.shape.milli_gpu, c.shape.milli_cpu, c.shape.mib) for c in classes], np.int64
    ).reshape(-1, 3)
    models = np.array([_mask(ledger, c.gpu_models) for c in classes], np.int64)
    return Mix.of(shapes[:, 0], shapes[:, 1], shapes[:, 2], models, count)


def _mask(ledger: Ledger, models: tuple[str, ...]) -> int:
    if not models:
        return -1
    return sum(1 << ledger.models.index(m) for m in models if m in ledger.models)
