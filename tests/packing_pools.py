"""Small random pools for the placing kernels, and the rules to place by."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from moorage.kernels.placing_scores import Classes, Nodes, Scoring
from moorage.scheduling.packing import scorings
from moorage.scheduling.packing.classes import Mix
from moorage.scheduling.packing.values import Pool

FREE = (0, 100, 190, 400, 540, 700, 1000, 1000, 1000)
MILLI = (0, 100, 300, 460, 500, 810, 1000, 2000)
NAMES = st.sampled_from(scorings.NAMES)


def a_pool(rng: np.random.Generator) -> Nodes:
    """A few nodes of up to two models, partly used; some without GPUs, often several in the same state."""
    n, g = int(rng.integers(1, 9)), int(rng.integers(1, 5))
    kinds = rng.integers(0, n, n) if rng.random() < 0.5 else np.arange(n)
    devices = rng.integers(0, g + 1, n)[kinds]
    has = np.arange(g)[None, :] < devices[:, None]
    memory = rng.choice([8000, 24000], n)[kinds]
    milli = np.where(has, rng.choice(FREE, (n, g))[kinds], 0)
    used = rng.integers(0, 4, (n, g))[kinds] * 2000
    mem = np.where(has, np.where(milli == 1000, memory[:, None], np.maximum(memory[:, None] - used, 0)), 0)
    model = np.where(devices > 0, rng.integers(1, 3, n)[kinds], 0)
    cpu, mib = rng.integers(0, 9000, n)[kinds], rng.integers(0, 9000, n)[kinds]
    return Nodes(*(np.ascontiguousarray(a, np.int64) for a in (milli, mem, devices, memory, model, cpu, mib)))


def some_classes(rng: np.random.Generator, nodes: Nodes) -> Classes:
    count = int(rng.integers(1, 6))
    return Classes(
        milli=rng.choice(MILLI, count).astype(np.int64),
        gpu_mib=rng.choice([0, 0, 500, 7000, 20000], count).astype(np.int64),
        cpu=rng.choice([0, 1000, 4000], count).astype(np.int64),
        mib=rng.choice([0, 1000, 4000], count).astype(np.int64),
        allowed=rng.random((count, len(nodes.model))) < 0.8,
    )


def a_rule(name: str, rng: np.random.Generator, nodes: Nodes) -> Scoring:
    tie = rng.permutation(len(nodes.model)).astype(np.int64)
    count = 6
    mix = Mix.of(
        np.array([460, 810, 300, 1000, 2000, 0], np.int64),
        rng.integers(0, 5000, count),
        rng.integers(0, 5000, count),
        rng.choice([-1, -1, 2, 6], count),
        np.array([[1, 2, 3, 4, 5, 6], [8, 1, 1, 3, 1, 2]])[int(rng.integers(0, 2))],  # few: their LP is kept
    )
    match name:
        case scorings.POTENTIAL:
            free = int(nodes.milli_free.sum())
            total = max(1, int(rng.integers(1, 5)) * free)  # so that the late stage is reached in some
            pool = Pool(milli_by_model=(0, total, total), width=nodes.milli_free.shape[1], milli_cpu=20_000)
            return scorings.potential(tie, mix, pool)
        case scorings.FGD:
            return scorings.fgd(tie, mix)
        case scorings.RANDOM:
            return scorings.random(tie, int(rng.integers(0, 2**40)))
        case scorings.DOT_PRODUCT:
            return scorings.dot_product(tie)
        case scorings.FIRST:
            return scorings.first(tie)
    return scorings.best_fit(tie)
