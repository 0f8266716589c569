"""The packing rules by name, made for one pool and one mix of task classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moorage.kernels.placing_scores import Scoring
from moorage.scheduling.ledger import Ledger
from moorage.scheduling.model import IntArray
from moorage.scheduling.packing import scorings
from moorage.scheduling.packing.classes import Mix
from moorage.scheduling.queue import TaskClass

RULES = {
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
