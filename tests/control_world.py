"""A control plane over a simulated pool, on a clock that only the test moves.

`with world(tmp_path) as w:` ends by checking every invariant: the ledger against its leases, the book against
what the store says after a reload, and what was billed against what was leased.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import postgres
from sqlalchemy import select

from moorage.configs.pool import PoolSettings
from moorage.configs.teams import parse_teams
from moorage.runtime.control.api import Caller, JobView, Submission
from moorage.runtime.control.book import ledger_from
from moorage.runtime.control.clock import Clock, ManualClock
from moorage.runtime.control.launching import LaunchSettings
from moorage.runtime.control.service import Service
from moorage.runtime.control.simbackend import SimBackend, SimNode
from moorage.runtime.control.store import sqlite_url
from moorage.runtime.control.tables import events, leases
from moorage.scheduling.validate import check

TEAMS = "teams: {ops: {quota: 4, limit: 6}, research: {quota: 2, limit: 2}}"
NODES = (SimNode(name="node-0"), SimNode(name="node-1"))


@dataclass
class World:
    service: Service
    backend: SimBackend
    clock: ManualClock
    tokens: Path
    options: dict[str, Any] = field(default_factory=dict)

    def caller(self, team: str) -> Caller:
        return self.service.authenticate((self.tokens / f"{team}.token").read_text().strip())

    def submit(
        self, team: str, *, job: str | None = None, gpus: float = 1, workers: int = 1, **metadata: str
    ) -> str:
        """A gang of `workers` with `gpus` each; `seconds`, `exit` steer the simulated run."""
        steer = {f"sim.{key}": metadata.pop(key) for key in ("seconds", "exit") if key in metadata}
        self.clock.tick(0.001)  # two submissions are never at the same instant
        asked = {"workers": str(workers), "gpus_per_worker": str(gpus), **metadata, **steer}
        return self.service.submit(
            self.caller(team), Submission(entrypoint="python x.py", submission_id=job, metadata=asked)
        )

    def job(self, job_id: str) -> JobView:
        return self.service.job(self.caller("admin"), job_id)

    def states(self, *job_ids: str) -> list[str]:
        return [self.job(job_id).state for job_id in job_ids]

    def run(self, seconds: float, step: float = 0.5) -> None:
        """Move the clock on, one round of the loop per step."""
        for _ in range(max(1, round(seconds / step))):
            self.clock.tick(step)
            self.service.loop.tick()

    def restart(self) -> None:
        """As after a death: a new service on the same store and the same cluster."""
        self.service.close()
        self.service = Service(backend=self.backend, clock=self.clock, **self.options)
        self.service.loop.tick()

    def held(self, team: str) -> int:
        ledger = self.service.core.book.ledger
        return int(ledger.used[ledger.team_row[team], 0])


def database_url(folder: Path) -> str:
    """The database of `folder`: SQLite in it, or one on the server that MOORAGE_TEST_DATABASE names."""
    server = os.environ.get("MOORAGE_TEST_DATABASE")
    return postgres.database(server, folder) if server else sqlite_url(folder / "control.db")


@contextmanager
def world(
    tmp_path: Path,
    *,
    teams: str = TEAMS,
    nodes: Sequence[SimNode] = NODES,
    settings: PoolSettings | None = None,
    url: str | None = None,
    **sim: Any,
) -> Iterator[World]:
    clock = ManualClock()
    backend = SimBackend(nodes, clock, **sim)
    options = {
        "url": url or database_url(tmp_path),
        "teams": parse_teams(teams),
        "token_folder": tmp_path / "tokens",
        "where": LaunchSettings(url="http://127.0.0.1:1", data="/data", secret=b"secret"),
        "settings": settings,
    }
    service = Service(backend=backend, clock=clock, **options)
    made = World(service, backend, clock, tmp_path / "tokens", options)
    service.loop.tick()
    yield made
    sound(made.service, clock)
    made.service.close()


def sound(service: Service, clock: Clock) -> None:
    """Every invariant that can be checked from outside; AssertionError names what is broken."""
    book, now = service.core.book, clock.now().control_ns
    check(book.ledger)
    with service.store.read() as db:
        stored = ledger_from(db, service.teams, service.core.settings)
        rows = db.execute(select(leases)).all()
        sizes = db.execute(
            select(events).where(events.c.kind.in_(("lease.granted", "lease.resized"))).order_by(events.c.seq)
        ).all()
    check(stored)
    assert list(stored.leases) == list(book.ledger.leases), "book and store hold different leases"
    for name in ("milli_free", "mem_free", "cpu_free", "used", "held"):
        assert np.array_equal(getattr(stored, name), getattr(book.ledger, name)), (
            f"book and store differ in {name}"
        )
    leased = sum(row.milli_gpu * ((row.released_control_ns or now) - row.granted_control_ns) for row in rows)
    granted, last = {row.id: row.granted_control_ns for row in rows}, dict[str, int]()
    for size in sizes:  # before each resize the lease was of another size than its row says now
        milli, since = size.payload["milli_gpu"], granted[size.lease_id]
        leased += (last.get(size.lease_id, milli) - milli) * (size.control_ns - since)
        last[size.lease_id] = milli
    admin = Caller(principal="admin", kind="admin", team="", teams=frozenset())
    billed = service.cost(admin)["total"]["milli_gpu_ns"]
    # A lease that is held is billed up to the moment of asking: only a standing clock can be exact.
    if isinstance(clock, ManualClock) or all(row.released_control_ns for row in rows):
        assert billed == leased, f"billed {billed}, leased {leased}"
