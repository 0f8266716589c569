"""What this pool did: the jobs of the control plane's tables as a workload, for asking what other quotas would have
done. Reads only; a live control plane on the same database is not disturbed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Connection, create_engine, event, func, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError

from moorage.configs.job import JobAsk
from moorage.configs.pool import PoolSettings
from moorage.errors import DataError, InvalidRequest, NotFound
from moorage.runtime.control import postgres
from moorage.runtime.control.book import node_spec
from moorage.runtime.control.tables import jobs, leases, nodes, team_versions
from moorage.runtime.history.table import codes
from moorage.runtime.history.trace import Trace, check_any
from moorage.scheduling.constraints import ANYWHERE, Constraints
from moorage.scheduling.model import IntArray, NodeSpec
from moorage.scheduling.simulator.model import Kind, LeftOut, Workload

_SHAPE = ("milli_gpu", "gpu_mib", "milli_cpu", "mib")
_COLUMNS = ("submit", "duration", "waited", "workers", "min_workers", *_SHAPE, "priority")


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnHistory:
    """A trace with what really happened beside it."""

    trace: Trace
    waited_ns: IntArray
    """[n] from submission to the first lease, as it was."""
    begun_ns: int
    """Wall time of the first submission: 0 on the workload's clock."""
    nodes: tuple[NodeSpec, ...]
    """The nodes that are up at the time of reading; all that are known when none is."""
    teams: dict[str, Any]
    """The newest team file, as stored; {} when there is none."""


def read_own(url: str, *, since_ns: int = 0, settings: PoolSettings | None = None) -> OwnHistory:
    """Jobs submitted since `since_ns` (wall time) that held a lease and have ended. `settings`: what the pool's file
    says of its nodes.

    The duration is the time under its job leases at the gang size that was asked for. Left out: jobs that still wait
    or run, that never started, and gangs whose head asks for a GPU share unlike the workers'. Raises NotFound (no such
    file) and DataError (not a control plane's database).
    """
    with _reading(url) as db:
        held = {
            row.job_id: row
            for row in db.execute(
                select(
                    leases.c.job_id,
                    func.min(leases.c.granted_ns).label("first"),
                    func.sum(leases.c.released_ns - leases.c.granted_ns).label("ran"),
                    func.count().label("granted"),
                    func.count(leases.c.released_ns).label("released"),
                )
                .where(leases.c.kind == "job")
                .group_by(leases.c.job_id)
            )
        }
        asked = db.execute(
            select(jobs.c.id, jobs.c.team, jobs.c.ask, jobs.c.created_ns, jobs.c.ended_ns)
            .where(jobs.c.created_ns >= since_ns)
            .order_by(jobs.c.created_ns, jobs.c.id)
        ).all()
        known = db.execute(select(nodes).order_by(nodes.c.name)).all()
        up = tuple(node_spec(row, settings or PoolSettings()) for row in _alive(known))
        newest = select(team_versions.c.content).order_by(team_versions.c.version.desc()).limit(1)
        teams = db.execute(newest).scalar() or {}
    return _history(asked, held, up, teams)


def _history(asked: Any, held: dict[str, Any], up: tuple[NodeSpec, ...], teams: dict[str, Any]) -> OwnHistory:
    rows: list[tuple[int, ...]] = []
    kept: list[int] = []
    named: list[tuple[str, str]] = []
    wants = _Wants()
    models: list[int] = []
    left_out = []
    for number, job in enumerate(asked, start=1):
        lease = held.get(job.id)
        gang = _gang(job.ask)
        code, text = "", ""
        if job.ended_ns is None or (lease is not None and lease.released < lease.granted):
            code, text = "not-ended", "it still waits or runs"
        elif lease is None:
            code, text = "never-started", "it ended before it held anything"
        elif gang is None:
            code, text = "uneven-gang", "its head asks for another GPU share than its workers"
        if lease is None or gang is None or code:
            left_out.append(LeftOut(row=number, name=job.id, code=code, text=text))
            continue
        times = (job.created_ns, max(int(lease.ran), 1), max(lease.first - job.created_ns, 0))
        rows.append((*times, *gang, int(job.ask.get("priority", 0))))
        kept.append(number)
        named.append((job.id, job.team))
        models.append(wants.row(job.ask))
    check_any("the pool's history", len(rows), left_out)
    column = dict(zip(_COLUMNS, np.array(rows, np.int64).T, strict=True))
    team, team_names = codes([one[1] for one in named])
    begun = int(column["submit"][0])
    workload = Workload(
        submit_ns=column["submit"] - begun,
        duration_ns=column["duration"],
        team=team,
        workers=column["workers"],
        min_workers=column["min_workers"],
        **{name: column[name] for name in _SHAPE},
        models=np.array(models, np.int64),
        deadline_ns=np.zeros(len(rows), np.int64),
        priority=column["priority"],
        names=tuple(one[0] for one in named),
        teams=team_names,
        model_sets=tuple(one[0] for one in wants.rows),
        kind=Kind.JOBS,
        places=tuple(one[1] for one in wants.rows),
    )
    trace = Trace(
        source="the pool's history",
        workload=workload,
        rows=np.array(kept, np.int64),
        left_out=tuple(left_out),
    )
    return OwnHistory(trace=trace, waited_ns=column["waited"], begun_ns=begun, nodes=up, teams=teams)


def _alive(known: Sequence[Any]) -> Sequence[Any]:
    return [row for row in known if row.alive] or known


class _Wants:
    """The distinct wishes of jobs for nodes: (GPU models, constraints), row 0 being none."""

    def __init__(self) -> None:
        self.rows: dict[tuple[tuple[str, ...], Constraints], int] = {((), ANYWHERE): 0}
        self._known: dict[str, Constraints] = {}

    def row(self, ask: dict[str, Any]) -> int:
        models = tuple(name for name in str(ask.get("gpu_model") or "").split("|") if name)
        return self.rows.setdefault((models, self._constraints(ask)), len(self.rows))

    def _constraints(self, ask: dict[str, Any]) -> Constraints:
        if not ask.get("constraints"):
            return ANYWHERE
        said = json.dumps(ask["constraints"], sort_keys=True)
        if said not in self._known:
            self._known[said] = JobAsk.model_validate(ask).constraints
        return self._known[said]


def _gang(ask: dict[str, Any]) -> tuple[int, ...] | None:
    """(workers, min_workers, *shape): a workload's tasks are equal, so a head joins them or is left away.

    A head alone is a gang of one. A head without a GPU beside workers is dropped: it waits for nothing scarce. One
    with the workers' GPU share is one worker more. None: it fits neither.
    """
    head, worker = ask.get("head") or {}, ask.get("worker") or {}
    count, least = int(ask.get("workers", 0)), int(ask.get("min_workers", 0))
    shape = tuple(int(worker.get(name, 0)) for name in _SHAPE)
    first = tuple(int(head.get(name, 0)) for name in _SHAPE)
    if not count or not any(shape):
        return (1, 1, *first)
    if first[0]:
        if first[0] != shape[0]:
            return None
        return (count + 1, max(least, 1) + 1, *(max(pair) for pair in zip(shape, first, strict=True)))
    return (count, max(least, 1), *shape)


@contextmanager
def _reading(url: str) -> Iterator[Connection]:
    """One read-only view of the database; nothing is created, migrated or locked."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise InvalidRequest("that is no database URL", todo="sqlite:///PATH or postgresql://...") from None
    if postgres.is_postgresql(url):
        engine = postgres.open_engine(url)
    else:
        if not parsed.database or not Path(parsed.database).is_file():
            raise NotFound(f"there is no database {parsed.database}", code="history-not-found")
        engine = create_engine(parsed)

        @event.listens_for(engine, "connect")
        def _read_only(connection: Any, _record: Any) -> None:
            connection.execute("PRAGMA query_only=ON")

    try:
        with engine.connect() as db:
            yield db
    except DBAPIError as error:
        raise DataError(
            "the control plane's history cannot be read",
            why=str(error.orig).strip().partition("\n")[0],
            code="history-unreadable",
        ) from error
    finally:
        engine.dispose()
