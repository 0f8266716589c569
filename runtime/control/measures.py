"""What the control plane says of itself to Prometheus. `CATALOG` names every metric; docs/metrics.md lists the same.

Three sources: the book and the store as they are now (gauges); the events, folded from the first one, so that counters
go on over restarts and takeovers; and what this process did since it started (times, failed effects).
Units: GPUs (1.0 is a device), seconds, dollars.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, func, select

from moorage.runtime.control import guarding
from moorage.runtime.control.tables import events, jobs, outbox
from moorage.scheduling.ledger import Ledger
from moorage.scheduling.model import UNLIMITED

if TYPE_CHECKING:
    from moorage.runtime.control.service import Service

Labels = tuple[tuple[str, str], ...]
FAST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
WAIT_S = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 24 * 3600.0, 7 * 24 * 3600.0)
NO_EFFECTS: dict[str, int] = dict.fromkeys(("launch", "stop", "forget", guarding.EFFECT), 0)
"""A line that is there before the first failure: rates need one."""

CATALOG: dict[str, str] = {
    "moorage_jobs": "jobs by state, deleted ones too",
    "moorage_queue_jobs": "jobs and growing leases that wait, by the rule that holds them back",
    "moorage_team_jobs_waiting": "jobs of a team that wait",
    "moorage_team_gpus_held": "GPUs leased to a team and the teams below it",
    "moorage_team_gpus_quota": "GPUs guaranteed to a team",
    "moorage_team_gpus_limit": "GPUs that a team may use at most; absent without a limit",
    "moorage_team_gpus_borrowed": "GPUs that a team holds beyond its quota",
    "moorage_team_gpu_seconds_total": "GPU time leased to a team",
    "moorage_team_cost_dollars_total": "what that cost, at the pool's prices",
    "moorage_pool_gpus": "GPUs of the nodes that are up and not drained",
    "moorage_pool_gpus_free": "GPUs of the nodes that are up which nobody holds",
    "moorage_nodes": "nodes by state: up, down, drained",
    "moorage_job_wait_seconds": "from when a job began to wait to its lease; each attempt counts",
    "moorage_events_total": "entries of the audit record by kind",
    "moorage_preemptions_total": "jobs that were told to leave",
    "moorage_plan_seconds": "one plan and its application, since this process started",
    "moorage_tick_seconds": "one round of the loop, since this process started",
    "moorage_tick_age_seconds": "since the last round of the loop",
    "moorage_effects_open": "effects on Ray that are asked for and not done, by kind",
    "moorage_effect_failures_total": "tries of an effect that failed, by kind, since this process started",
    "moorage_ray_reachable": "1 when Ray answers the control plane",
    "moorage_leader": "1 while this control plane leads",
    "moorage_leader_generation": "rises with each takeover and restart",
    "moorage_guard_sees": "1 when the guard sees what Ray has booked",
    "moorage_guard_findings": "what holds GPUs without or beyond a lease now, by kind",
    "moorage_guard_warned_total": "findings that were warned about",
    "moorage_guard_stopped_total": "findings that were stopped",
    "moorage_http_requests_total": "requests answered, by method, route and status",
    "moorage_http_request_seconds": "time to answer, by method and route",
}


@dataclass(slots=True)
class Distribution:
    """Counts of values by upper bound (inclusive), as Prometheus has histograms; the last count has no bound."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Adds the seconds that the block takes."""
        began = perf_counter()
        try:
            yield
        finally:
            self.add(perf_counter() - began)

    def cumulative(self) -> list[tuple[str, float]]:
        """(bound, how many up to it), the last for "+Inf"."""
        found, so_far = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            so_far += count
            found.append((bound, float(so_far)))
        return found


Samples = dict[str, dict[Labels, "float | Distribution"]]


@dataclass(slots=True)
class Tally:
    """Counts by kind of event, and waits, folded from the events up to `seq`."""

    kinds: Counter[str] = field(default_factory=Counter)
    waits: Distribution = field(default_factory=lambda: Distribution(WAIT_S))
    since: dict[str, int] = field(default_factory=dict)
    """Waiting job -> control time since which."""
    seq: int = 0

    def advance(self, db: Connection) -> None:
        top = db.execute(select(func.max(events.c.seq))).scalar() or 0
        new = (events.c.seq > self.seq) & (events.c.seq <= top)
        counted = select(events.c.kind, func.count()).where(new).group_by(events.c.kind)
        self.kinds.update({str(kind): int(n) for kind, n in db.execute(counted)})
        moves = select(events.c.kind, events.c.job_id, events.c.control_ns).where(
            new, events.c.kind.in_(("job.pending", "job.admitted", "job.stopped", "job.failed"))
        )
        for kind, job, at_ns in db.execute(moves.order_by(events.c.seq)):
            if kind == "job.pending":
                self.since.setdefault(job, at_ns)
            elif (since := self.since.pop(job, None)) is not None and kind == "job.admitted":
                self.waits.add((at_ns - since) / 1e9)
        self.seq = top


def samples(service: Service, db: Connection, tally: Tally, bill: Mapping[str, Any]) -> Samples:
    """All of the control plane's own metrics. Call with the store's lock held, and `tally` and `bill` up to date."""
    core, loop = service.core, service.loop
    book, ledger = core.book, core.book.ledger
    leader, now = core.store.leader, core.store.clock.now().control_ns
    states = db.execute(select(jobs.c.state, func.count()).group_by(jobs.c.state))
    effects = db.execute(
        select(outbox.c.kind, func.count()).where(outbox.c.done_ns.is_(None)).group_by(outbox.c.kind)
    )
    why = Counter(
        str(book.reasons[key].code) if key in book.reasons else "not-planned" for key in book.pending
    )
    waiting = Counter(request.team for request in book.pending.values())
    return {
        "moorage_jobs": _by("state", {str(row[0]): int(row[1]) for row in states}),
        "moorage_queue_jobs": _by("reason", why),
        "moorage_team_jobs_waiting": _by("team", {team: waiting[team] for team in ledger.team_row}),
        **_teams(ledger),
        "moorage_pool_gpus_free": {(): int(ledger.milli_free[ledger.up].sum()) / 1000},
        "moorage_pool_gpus": {(): int(ledger.capacity()[0]) / 1000},
        "moorage_nodes": _by("state", _nodes(service)),
        "moorage_team_gpu_seconds_total": _by(
            "team", {row["team"]: row["milli_gpu_ns"] / 1e12 for row in bill["teams"]}
        ),
        "moorage_team_cost_dollars_total": _by(
            "team", {row["team"]: row["micro_dollars"] / 1e6 for row in bill["teams"]}
        ),
        "moorage_job_wait_seconds": {(): tally.waits},
        "moorage_events_total": _by("kind", tally.kinds),
        "moorage_preemptions_total": {(): float(tally.kinds["preemption.notice"])},
        "moorage_plan_seconds": {(): loop.plan_seconds},
        "moorage_tick_seconds": {(): loop.tick_seconds},
        "moorage_tick_age_seconds": {(): (now - loop.last_tick_ns) / 1e9} if loop.last_tick_ns else {},
        "moorage_effects_open": _by("kind", NO_EFFECTS | {str(row[0]): int(row[1]) for row in effects}),
        "moorage_effect_failures_total": _by("kind", NO_EFFECTS | dict(loop.effect_failures)),
        "moorage_ray_reachable": {(): 0.0 if loop.unreachable else 1.0},
        "moorage_leader": {(): 0.0 if leader.lost.is_set() else 1.0},
        "moorage_leader_generation": {(): float(leader.generation)},
        "moorage_guard_sees": {(): 0.0 if loop.guard.blind else 1.0},
        **guarding.samples(guarding.counts(db)),
    }


def _by(label: str, values: Mapping[str, float]) -> dict[Labels, float | Distribution]:
    return {((label, name),): float(value) for name, value in values.items()}


def _teams(ledger: Ledger) -> Samples:
    held = {team: int(ledger.used[row, 0]) / 1000 for team, row in ledger.team_row.items()}
    quota = {team: int(ledger.quota[row, 0]) / 1000 for team, row in ledger.team_row.items()}
    limits = {team: int(ledger.limit[row, 0]) for team, row in ledger.team_row.items()}
    return {
        "moorage_team_gpus_held": _by("team", held),
        "moorage_team_gpus_quota": _by("team", quota),
        "moorage_team_gpus_limit": _by(
            "team", {team: limit / 1000 for team, limit in limits.items() if limit < UNLIMITED}
        ),
        "moorage_team_gpus_borrowed": _by(
            "team", {team: max(0.0, held[team] - quota[team]) for team in held}
        ),
    }


def _nodes(service: Service) -> dict[str, int]:
    book = service.core.book
    drained = book.drained.keys() & book.alive
    down = set(book.ledger.node_row) - book.alive
    return {"up": len(book.alive - drained), "drained": len(drained), "down": len(down)}
