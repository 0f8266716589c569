"""Cost, folded from the same lease events as the ledger: sum(billed) == sum(leased), always.

GPU time is milli-GPU x nanoseconds of control time. Money is micro-dollars at the price in the lease's own event.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from moorage.runtime.control import lease_events

HOUR_NS = 3600 * 10**9
_MICRO = 1000 * HOUR_NS
"""milli-GPU x micro-dollars per GPU-hour x ns in a micro-dollar."""


@dataclass(slots=True)
class Part:
    """What a lease holds of one GPU model: `rate` is milli-GPU x micro-dollars per GPU-hour. What it held before it was
    last resized is in `past_gpu_ns` and `past_rate_ns`."""

    milli_gpu: int = 0
    rate: int = 0
    past_gpu_ns: int = 0
    past_rate_ns: int = 0


@dataclass(slots=True)
class Bill:
    """One lease, by GPU model ("" = tasks without a GPU on nodes without one), since `since_ns`."""

    lease: str
    team: str
    job: str
    since_ns: int
    parts: dict[str, Part] = field(default_factory=dict)
    until_ns: int | None = None

    def holds(self, tasks: list[dict[str, Any]]) -> None:
        """These, as their event tells them."""
        for task in tasks:
            part = self.parts.setdefault(task["gpu_model"], Part())
            part.milli_gpu += task["milli_gpu"]
            part.rate += task["milli_gpu"] * task["price"]

    def resized(self, now_ns: int, tasks: list[dict[str, Any]]) -> None:
        """It holds other tasks from now on."""
        spent = self._ns(now_ns)
        for part in self.parts.values():
            part.past_gpu_ns += part.milli_gpu * spent
            part.past_rate_ns += part.rate * spent
            part.milli_gpu = part.rate = 0
        self.since_ns = now_ns
        self.holds(tasks)

    def amounts(self, now_ns: int) -> dict[str, tuple[int, int]]:
        """By GPU model: milli-GPU x ns and micro-dollars up to now or the release. A lease is rounded down as a whole:
        what that leaves goes to its first model."""
        spent, whole, found = self._ns(now_ns), 0, dict[str, tuple[int, int]]()
        for model, part in self.parts.items():
            rate_ns = part.past_rate_ns + part.rate * spent
            whole += rate_ns
            found[model] = (part.past_gpu_ns + part.milli_gpu * spent, rate_ns // _MICRO)
        left = whole // _MICRO - sum(money for _, money in found.values())
        for model in list(found)[:1]:
            found[model] = (found[model][0], found[model][1] + left)
        return found

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
        for row in lease_events.after(db, self.seq):
            self._add(row)

    def _add(self, row: Any) -> None:
        self.seq = row.seq
        if row.kind == "lease.released":
            self.bills[row.lease_id].until_ns = row.control_ns
            return
        if row.kind == "lease.resized":
            self.bills[row.lease_id].resized(row.control_ns, row.payload["tasks"])
            return
        bill = Bill(lease=row.lease_id, team=row.team, job=row.job_id, since_ns=row.control_ns)
        bill.holds(row.payload["tasks"])
        self.bills[row.lease_id] = bill

    def report(self, now_ns: int, teams: frozenset[str] | None = None) -> dict[str, Any]:
        """Totals per team, job and GPU model; None for every team. `gpu_seconds` is for people, the rest exact."""
        by_team: dict[str, list[int]] = {}
        by_job: dict[str, list[int]] = {}
        by_model: dict[str, list[int]] = {}
        team_of: dict[str, str] = {}
        for bill in self.bills.values():
            if teams is not None and bill.team not in teams:
                continue
            team_of[bill.job] = bill.team
            for model, (gpu_ns, money) in bill.amounts(now_ns).items():
                for totals, key in ((by_team, bill.team), (by_job, bill.job), (by_model, model)):
                    entry = totals.setdefault(key, [0, 0])
                    entry[0] += gpu_ns
                    entry[1] += money
        return {
            "currency": "USD",
            "teams": [{"team": team, **_row(entry)} for team, entry in sorted(by_team.items())],
            "jobs": [{"job": job, "team": team_of[job], **_row(entry)} for job, entry in by_job.items()],
            "models": [
                {"gpu_model": model, **_row(entry)} for model, entry in sorted(by_model.items()) if any(entry)
            ],
            "total": _row([sum(e[i] for e in by_team.values()) for i in (0, 1)]),
        }


def _row(entry: list[int]) -> dict[str, Any]:
    return {
        "milli_gpu_ns": entry[0],
        "gpu_seconds": round(entry[0] / 1e12, 3),
        "micro_dollars": entry[1],
    }
