"""What one decision leaves for the next: the working copy of the pool, and the scores of its placements.

A decision that places one job on ten thousand nodes would spend its time on copying them. A workspace copies once, and
from then on what the ledger says has changed (`Ledger.touched_since`). It never changes an answer: a plan made with a
kept workspace is that of a fresh one, byte for byte.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moorage.kernels.future import Spare, spare_of
from moorage.kernels.keeping import catch_up
from moorage.kernels.placing import fresh_scores
from moorage.kernels.placing_scores import RANDOM, Classes, Scoring
from moorage.kernels.pool import ANY, Pool
from moorage.scheduling.columns import book_columns, class_columns, idle_columns, last_resort, node_columns
from moorage.scheduling.domains import keys_of, limits_of, rules_of
from moorage.scheduling.ledger import Ledger, Mark
from moorage.scheduling.model import DeviceRule, IntArray, Policy, Snapshot
from moorage.scheduling.packing.scorings import best_fit, check
from moorage.scheduling.queue import TaskClass

MOST_KEYS = 2**24
"""Scores kept, of all classes on all nodes (128 MiB); what lies beyond is forgotten, and made again when needed."""


class Workspace:
    """For one caller, one decision at a time: hand the same one to each `plan()`."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: Kept | None = None

    def open(self, snapshot: Snapshot, policy: Policy) -> Kept:
        """The working copy of the snapshot's pool."""
        kept = self._kept
        if kept is None or not kept.follow(snapshot, policy):
            kept = self._kept = Kept.of(snapshot, policy)
        return kept


@dataclass(slots=True)
class Kept:
    """One pool's working copy. Classes get rows as they are first seen; arrays have room for more than there are."""

    asked: Scoring | None
    """The snapshot's scoring: another one, another working copy."""
    layout: int
    mark: Mark
    policy: Policy
    """Its topology and its power caps are in the pool's limits."""
    keys: tuple[str, ...]
    """The keys of the limits."""
    pool: Pool
    at: dict[TaskClass, int]
    seen: list[tuple[tuple[TaskClass, ...], IntArray]]
    """The rows of the tables of classes last asked for."""
    begun: int = 0
    """The cache's clock when the decision began: what changed since is that decision's doing."""
    nobody: Pool | None = None
    """The pool as if no lease were held."""
    spare: tuple[Pool, Spare] | None = None
    """Scratch for reservations, and the pool it was made for."""

    @classmethod
    def of(cls, snapshot: Snapshot, policy: Policy) -> Kept:
        ledger = snapshot.ledger
        nodes, classes = node_columns(ledger), class_columns(ledger, ())
        scoring = best_fit(np.arange(len(ledger.up))) if snapshot.scoring is None else snapshot.scoring
        check(scoring, nodes.model, nodes.devices)
        raylet = snapshot.device_rule is DeviceRule.RAYLET
        keys = keys_of((), policy)
        limits = limits_of(ledger, policy, keys)
        pool = Pool(nodes, classes, fresh_scores(nodes, classes, scoring), scoring, raylet, limits)
        return cls(
            asked=snapshot.scoring,
            layout=ledger.layout,
            mark=ledger.mark(),
            policy=policy,
            keys=keys,
            pool=pool,
            at={},
            seen=[],
        )

    def follow(self, snapshot: Snapshot, policy: Policy) -> bool:
        """Catch up with the ledger. False where that cannot be done: other nodes, another history, other rules."""
        ledger, pool = snapshot.ledger, self.pool
        changed = ledger.touched_since(self.mark)
        same = self.asked is snapshot.scoring and pool.raylet == (snapshot.device_rule is DeviceRule.RAYLET)
        same &= self.policy.topology == policy.topology and self.policy.power == policy.power
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

    def scratch(self) -> Spare:
        """Copies of the pool, to be made what it will be."""
        if self.spare is None or self.spare[0] is not self.pool:
            self.spare = self.pool, spare_of(self.pool)
        return self.spare[1]

    def _add(self, ledger: Ledger, new: tuple[TaskClass, ...]) -> None:
        new += tuple(replace(c, strict=True) for c in new if last_resort(ledger, c))
        count, pool = len(self.at), self.pool
        if count + len(new) > len(pool.classes.milli):
            self.pool = pool = _with_room(pool, count, max(2 * count, count + len(new)))
            self.nobody = None
        for kept, column in zip(pool.classes, class_columns(ledger, new), strict=True):
            kept[count : count + len(new)] = column
        self.at.update((c, count + i) for i, c in enumerate(new))
        self._bind(ledger, new)

    def _bind(self, ledger: Ledger, new: tuple[TaskClass, ...]) -> None:
        """Give new classes their rules, and the limits the keys that they name."""
        keys = tuple(dict.fromkeys((*self.keys, *keys_of(new, self.policy))))
        pool = self.pool
        if keys != self.keys:
            known, rules = len(self.keys), pool.limits.rules
            more = limits_of(ledger, self.policy, keys)
            assert keys[:known] == self.keys, "rules name keys by their places"
            self.keys, self.nobody = keys, None
            pool = self.pool = pool._replace(limits=more._replace(rules=rules, on=more.on or pool.limits.on))
        rules = pool.limits.rules
        for c in new:
            rules[self.at[c]] = rules_of(c, self.keys, self.at)
        if not pool.limits.on and any(rules[self.at[c], ANY] > 0 for c in new):
            self.pool = pool._replace(limits=pool.limits._replace(on=True))
            self.nobody = None


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
        limits=pool.limits._replace(rules=longer(pool.limits.rules, fill=0)),
        scores=scores._replace(
            key=longer(scores.key), block=longer(scores.block), seen=longer(scores.seen, fill=-1)
        ),
    )
