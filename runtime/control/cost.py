"""Cost, folded from the same lease events as the ledger: sum(billed) == sum(leased), always.

GPU time is milli-GPU x nanoseconds of control time. Money is micro-dollars at the price in the lease's own event.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, select

from moorage.runtime.control.tables import events

HOUR_NS = 3600 * 10**9
_PAGE = 5000
_KINDS = ("lease.granted", "lease.resized", "lease.released")


@dataclass(slots=True)
class Bill:
    """One lease: `rate` is the sum of milli-GPU x micro-dollars per GPU-hour over its tasks, since `since_ns`.
    What it held before it was last resized is in `past_gpu_ns` and `past_rate_ns`."""

    lease: str
    team: str
    job: str
    milli_gpu: int
    rate: int
    since_ns: int
    until_ns: int | None = None
    past_gpu_ns: int = 0
    past_rate_ns: int = 0

    def gpu_ns(self, now_ns: int) -> int:
        """milli-GPU x ns up to now or the release."""
        return self.past_gpu_ns + self.milli_gpu * self._ns(now_ns)

    def micro_dollars(self, now_ns: int) -> int:
        return (self.past_rate_ns + self.rate * self._ns(now_ns)) // (1000 * HOUR_NS)

    def resized(self, now_ns: int, milli_gpu: int, rate: int) -> None:
        """It holds other tasks from now on."""
        self.past_gpu_ns, self.past_rate_ns = (
            self.gpu_ns(now_ns),
            self.past_rate_ns + self.rate * self._ns(now_ns),
        )
        self.milli_gpu, self.rate, self.since_ns = milli_gpu, rate, now_ns

    def _ns(self, now_ns: int) -> int:
        """How long it has been as it is."""
        end = now_ns if self.until_ns is None else self.until_ns
        return max(0, end - self.since_ns)


@dataclass(slots=True)
class Fold:
    """The state of the fold: bills by lease, and the last event that was read."""

    bills: dict[str, Bill] = field(default_factory=dict)
    seq: int = 0

    def advance(self, db: Connection) -> None:
        """Read the lease events since the last call."""
        while True:
            rows = db.execute(
                select(events)
                .where(events.c.seq > self.seq, events.c.kind.in_(_KINDS))
                .order_by(events.c.seq)
                .limit(_PAGE)
            ).all()
            for row in rows:
                self._add(row)
            if len(rows) < _PAGE:
                return

    def _add(self, row: Any) -> None:
        self.seq = row.seq
        if row.kind == "lease.released":
            self.bills[row.lease_id].until_ns = row.control_ns
            return
        rate = sum(task["milli_gpu"] * task["price"] for task in row.payload["tasks"])
        if row.kind == "lease.resized":
            self.bills[row.lease_id].resized(row.control_ns, row.payload["milli_gpu"], rate)
            return
        self.bills[row.lease_id] = Bill(
            lease=row.lease_id,
            team=row.team,
            job=row.job_id,
            milli_gpu=row.payload["milli_gpu"],
            rate=rate,
            since_ns=row.control_ns,
        )

    def report(self, now_ns: int, teams: frozenset[str] | None = None) -> dict[str, Any]:
        """Totals per team and job; None for every team. `gpu_seconds` is for people, the rest exact."""
        by_team: dict[str, list[int]] = {}
        by_job: dict[str, list[int]] = {}
        team_of: dict[str, str] = {}
        for bill in self.bills.values():
            if teams is not None and bill.team not in teams:
                continue
            amounts = (bill.gpu_ns(now_ns), bill.micro_dollars(now_ns))
            team_of[bill.job] = bill.team
            for totals, key in ((by_team, bill.team), (by_job, bill.job)):
                entry = totals.setdefault(key, [0, 0])
                entry[0] += amounts[0]
                entry[1] += amounts[1]
        return {
            "currency": "USD",
            "teams": [{"team": team, **_row(entry)} for team, entry in sorted(by_team.items())],
            "jobs": [{"job": job, "team": team_of[job], **_row(entry)} for job, entry in by_job.items()],
            "total": _row([sum(e[i] for e in by_team.values()) for i in (0, 1)]),
        }


def _row(entry: list[int]) -> dict[str, Any]:
    return {
        "milli_gpu_ns": entry[0],
        "gpu_seconds": round(entry[0] / 1e12, 3),
        "micro_dollars": entry[1],
    }
