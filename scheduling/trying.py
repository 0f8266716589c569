"""What a search for suggestions stands on: one job and its pool, changed and planned again, each change once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from moorage.scheduling.changes import Change, changed, ruled
from moorage.scheduling.model import Lease, Policy, Reason, Snapshot
from moorage.scheduling.planner import plan
from moorage.scheduling.queue import TaskClass

_ONE_BY_ONE = 8
"""The first lengths of a search, tried each."""


class Enough(Exception):
    """The search is to stop. `found` is what the search that was stopped had found."""

    def __init__(self, found: tuple[Change, ...] = ()) -> None:
        super().__init__()
        self.found = found


@dataclass(slots=True)
class Trial:
    """The job, the pool, and what was tried."""

    snapshot: Snapshot
    policy: Policy
    now_ns: int
    row: int
    reason: Reason
    go_on: Callable[[int], bool]
    plans: int = 1
    seen: dict[tuple[Change, int], bool] = field(default_factory=dict)

    def starts(self, change: Change, at_ns: int | None = None) -> bool:
        """Whether the job is admitted after the change, at another time than now if one is given."""
        when = self.now_ns if at_ns is None else at_ns
        if (change, when) not in self.seen:
            try:
                after, policy = changed(self.snapshot, self.row, (change,)), ruled(self.policy, (change,))
            except ValueError:
                self.seen[change, when] = False
            else:
                if not self.go_on(self.plans):
                    raise Enough
                self.plans += 1
                self.seen[change, when] = bool(np.any(plan(after, policy, when).admitted == self.row))
        return self.seen[change, when]

    def team(self) -> int:
        queue = self.snapshot.pending
        return self.snapshot.ledger.team_row[queue.teams[int(queue.team[self.row])]]

    def path(self) -> list[int]:
        """Rows of the job's team and of those above it."""
        rows, at = [], self.team()
        while at >= 0:
            rows.append(at)
            at = int(self.snapshot.ledger.team_parent[at])
        return rows

    def classes(self) -> list[TaskClass]:
        """Of the job's head and of its workers, where it has any."""
        queue = self.snapshot.pending
        return [queue.classes[int(c[self.row])] for c in (queue.head, queue.worker) if c[self.row] >= 0]

    def models(self) -> list[str]:
        """GPU models on nodes that are up, in the ledger's order."""
        ledger = self.snapshot.ledger
        return [ledger.models[m] for m in np.unique(ledger.model[ledger.up & (ledger.devices > 0)])]

    def others(self) -> list[Lease]:
        """Leases that are not of the job itself, oldest first."""
        queue = self.snapshot.pending
        own = {queue.names[self.row]}
        if queue.requests and queue.requests[self.row].parent:
            own.add(queue.requests[self.row].parent)
        held = [lease for lease in self.snapshot.ledger.leases.values() if lease.job not in own]
        return sorted(held, key=lambda lease: lease.epoch)


def least(does: Callable[[int], bool], high: int) -> int:
    """The least amount that does, above 0, which does not, up to `high`, which does."""
    if high > 1 and not does(high - 1):
        return high
    low, high = 0, max(1, high - 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if does(middle) else (middle, high)
    return high


def shortest(does: Callable[[int], bool], most: int) -> int | None:
    """The least length 1..most that does: the first few one by one, then doubling, then between the last two."""
    low = 0
    while low < most:
        high = min(most, low + 1 if low < _ONE_BY_ONE else 2 * low)
        if does(high):
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if does(middle) else (middle, high)
            return high
        low = high
    return None
