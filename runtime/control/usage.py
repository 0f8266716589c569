"""GPUs held over time, folded from the same lease events as the ledger and the bill.

A step function per team: each lease event changes what a team holds at its control time. What is asked for is the mean
over equal intervals up to now, so that a short lease is seen however wide the interval is.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from moorage.runtime.control import lease_events

KEPT_NS = 8 * 86_400 * 10**9
"""How far back changes are kept; what came before is only their sum."""


@dataclass(slots=True)
class Steps:
    """What one team held: from `at_ns[i]` on, `held[i]` milli-GPU, and `area[i]` milli-GPU x ns until then."""

    at_ns: list[int] = field(default_factory=lambda: [0])
    held: list[int] = field(default_factory=lambda: [0])
    area: list[int] = field(default_factory=lambda: [0])

    def change(self, at_ns: int, milli_gpu: int) -> None:
        """`at_ns` never falls: it is control time."""
        last = self.at_ns[-1]
        self.area.append(self.area[-1] + self.held[-1] * (at_ns - last))
        self.at_ns.append(at_ns)
        self.held.append(self.held[-1] + milli_gpu)
        if len(self.at_ns) > 64 and self.at_ns[len(self.at_ns) // 2] < at_ns - KEPT_NS:
            past = bisect_right(self.at_ns, at_ns - KEPT_NS) - 1
            del self.at_ns[:past], self.held[:past], self.area[:past]

    def until(self, at_ns: int) -> int:
        """milli-GPU x ns held until then; times before what is kept count from there."""
        i = max(0, bisect_right(self.at_ns, at_ns) - 1)
        return self.area[i] + self.held[i] * max(0, at_ns - self.at_ns[i])


@dataclass(slots=True)
class Usage:
    """The state of the fold: steps by team, what each open lease holds, and the last event that was read."""

    teams: dict[str, Steps] = field(default_factory=dict)
    leases: dict[str, tuple[str, int]] = field(default_factory=dict)
    seq: int = 0

    def advance(self, db: Connection) -> None:
        """Read the lease events since the last call."""
        for row in lease_events.after(db, self.seq):
            self._add(row)

    def _add(self, row: Any) -> None:
        self.seq = row.seq
        team, before = self.leases.pop(row.lease_id, (row.team, 0))
        after = 0 if row.kind == "lease.released" else int(row.payload["milli_gpu"])
        if after:
            self.leases[row.lease_id] = (team, after)
        if after != before:
            self.teams.setdefault(team, Steps()).change(row.control_ns, after - before)

    def report(self, now_ns: int, minutes: int, points: int) -> dict[str, list[int]]:
        """Team -> mean milli-GPU in each of `points` equal intervals of the last `minutes`; teams that held any."""
        begin, span = now_ns - minutes * 60 * 10**9, minutes * 60 * 10**9
        edges = [begin + span * i // points for i in range(points + 1)]
        found = {}
        for team, steps in sorted(self.teams.items()):
            areas = [steps.until(edge) for edge in edges]
            means = [(areas[i + 1] - areas[i]) // max(1, edges[i + 1] - edges[i]) for i in range(points)]
            if any(means):
                found[team] = means
        return found
