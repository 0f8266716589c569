"""What one decision leaves for the next: the working copy of the pool, and the scores of its placements.

A decision that places one job on ten thousand nodes would spend its time on copying them. A workspace copies once, and
from then on what the ledger says has changed (`Ledger.touched_since`). It never changes an answer: a plan made with a
kept workspace is that of a fresh one, byte for byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moorage.kernels.gang import Pool
from moorage.kernels.keeping import catch_up
from moorage.kernels.placing import fresh_scores
from moorage.kernels.placing_scores import RANDOM, Classes, Scoring
from moorage.scheduling.columns import book_columns, class_columns, idle_columns, node_columns
from moorage.scheduling.ledger import Ledger, Mark
from moorage.scheduling.model import DeviceRule, IntArray, Snapshot
from moorage.scheduling.packing.scorings import best_fit
from moorage.scheduling.queue import TaskClass

MOST_KEYS = 2**24
"""Scores kept, of all classes on all nodes (128 MiB); what lies beyond is forgotten, and made again when needed."""


class Workspace:
    """For one caller, one decision at a time: hand the same one to each `plan()`."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: Kept | None = None

    def open(self, snapshot: Snapshot) -> Kept:
        """The working copy of the snapshot's pool."""
        kept = self._kept
        if kept is None or not kept.follow(snapshot):
            kept = self._kept = Kept.of(snapshot)
        return kept


@dataclass(slots=True)
class Kept:
    """One pool's working copy. Classes get rows as they are first seen; arrays have room for more than there are."""

    asked: Scoring | None
    """The snapshot's scoring: another one, another working copy."""
    layout: int
    mark: Mark
    pool: Pool
    at: dict[TaskClass, int]
    seen: list[tuple[tuple[TaskClass, ...], IntArray]]
    """The rows of the tables of classes last asked for."""
    begun: int = 0
    """The cache's clock when the decision began: what changed since is that decision's doing."""
    nobody: Pool | None = None
    """The pool as if no lease were held."""

    @classmethod
    def of(cls, snapshot: Snapshot) -> Kept:
        ledger = snapshot.ledger
        nodes, classes = node_columns(ledger), class_columns(ledger, ())
        scoring = best_fit(np.arange(len(ledger.up))) if snapshot.scoring is None else snapshot.scoring
        raylet = snapshot.device_rule is DeviceRule.RAYLET
        pool = Pool(nodes, classes, fresh_scores(nodes, classes, scoring), scoring, raylet)
        return cls(
            asked=snapshot.scoring, layout=ledger.layout, mark=ledger.mark(), pool=pool, at={}, seen=[]
        )

    def follow(self, snapshot: Snapshot) -> bool:
        """Catch up with the ledger. False where that cannot be done: other nodes, another history, other rules."""
        ledger, pool = snapshot.ledger, self.pool
        changed = ledger.touched_since(self.mark)
        same = self.asked is snapshot.scoring and pool.raylet == (snapshot.device_rule is DeviceRule.RAYLET)
        # the random rule draws by a class's row, and that depends on what was asked for before
        if changed is None or not same or self.layout != ledger.layout or pool.scoring.kind == RANDOM:
            return False
        if len(self.at) * len(ledger.up) > MOST_KEYS:
            return False
        rows = np.array(changed, np.int64)
        catch_up(pool.nodes, book_columns(ledger), pool.scores, self.begun, rows)
        self.mark, self.begun = ledger.mark(), int(pool.scores.clock[0])
        return True

    def rows(self, ledger: Ledger, classes: tuple[TaskClass, ...]) -> IntArray:
        """[C + 1] the row of each class in `pool.classes`; the last entry is -1, so that class -1 stays -1."""
        for known, rows in self.seen:
            if known is classes:
                return rows
        new = tuple(dict.fromkeys(c for c in classes if c not in self.at))
        if new:
            self._add(ledger, new)
        rows = np.array([self.at[c] for c in classes] + [-1], np.int64)
        self.seen = [(classes, rows), *self.seen[:1]]
        return rows

    def idle(self, ledger: Ledger) -> Pool:
        """The same pool and classes as if no lease were held."""
        if self.nobody is None:
            nodes, pool = idle_columns(ledger), self.pool
            scores = fresh_scores(nodes, pool.classes, pool.scoring)
            self.nobody = pool._replace(nodes=nodes, scores=scores)
        return self.nobody

    def _add(self, ledger: Ledger, new: tuple[TaskClass, ...]) -> None:
        count, pool = len(self.at), self.pool
        if count + len(new) > len(pool.classes.milli):
            self.pool = pool = _with_room(pool, count, max(2 * count, count + len(new)))
            self.nobody = None
        for kept, column in zip(pool.classes, class_columns(ledger, new), strict=True):
            kept[count : count + len(new)] = column
        self.at.update((c, count + i) for i, c in enumerate(new))


def _with_room(pool: Pool, used: int, rows: int) -> Pool:
    """The same with arrays for `rows` classes, of which the first `used` are there."""

    def longer(old: npt.NDArray[Any], fill: int | None = None) -> npt.NDArray[Any]:
        new = np.empty((rows, *old.shape[1:]), old.dtype)
        new[:used] = old[:used]
        if fill is not None:
            new[used:] = fill
        return new

    scores = pool.scores
    return pool._replace(
        classes=Classes(*(longer(column) for column in pool.classes)),
        scores=scores._replace(
            key=longer(scores.key), block=longer(scores.block), seen=longer(scores.seen, fill=-1)
        ),
    )
