"""Who was told to leave or to give workers up, and for whom room is being made: the records, and how they are read from
the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, select

from moorage.runtime.control.api import PENDING, PREEMPTING, RUNNING, STARTING
from moorage.runtime.control.tables import attempts, jobs
from moorage.scheduling.model import Role, TaskPlacement

PATIENCE_NS = 120 * 10**9
"""So long after its grace a job that was told to leave counts as leaving, though Ray has not ended it yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """A running job that was told to leave: for whom and by which rule, when, and until when (control time)."""

    job: str
    attempt: int
    for_job: str
    rule: str
    text: str
    noticed_ns: int
    """Wall time."""
    deadline_ns: int

    @property
    def patience_ns(self) -> int:
        return self.deadline_ns + PATIENCE_NS


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrinking:
    """A running job that was asked to give workers up: its lease keeps its first `kept` tasks, of which `workers` are
    workers. For whom and by which rule, when, and until when (control time): then all of it is told to leave."""

    job: str
    attempt: int
    lease: str
    kept: int
    workers: int
    for_job: str
    for_team: str
    rule: str
    text: str
    asked_ns: int
    """Wall time. An ask of another time is another ask."""
    deadline_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """The place that a waiting job gets once `victims` (jobs) have left."""

    job: str
    tasks: tuple[TaskPlacement, ...]
    victims: tuple[str, ...]
    made_ns: int

    @property
    def nodes(self) -> frozenset[str]:
        return frozenset(task.node for task in self.tasks)

    @property
    def workers(self) -> int:
        return sum(task.role is Role.WORKER for task in self.tasks)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def promise_of(said: Mapping[str, Any]) -> Promise:
    """From its JSON."""
    tasks = tuple(
        TaskPlacement(**{**task, "role": Role(task["role"]), "devices": tuple(task["devices"])})
        for task in said["tasks"]
    )
    return Promise(**{**said, "tasks": tasks, "victims": tuple(said["victims"])})


def leaving_from(db: Connection) -> dict[str, Leaving]:
    """Of the store, the first that was told to first."""
    rows = db.execute(
        select(jobs.c.id, attempts.c.notice)
        .join(attempts, (attempts.c.job_id == jobs.c.id) & (attempts.c.number == jobs.c.attempt))
        .where(jobs.c.state == PREEMPTING)
    ).all()
    found = [Leaving(**row.notice) for row in rows if row.notice]
    return {one.job: one for one in sorted(found, key=lambda one: (one.noticed_ns, one.job))}


def shrinking_from(db: Connection) -> dict[str, Shrinking]:
    """Of the store, the first that was asked first."""
    rows = db.execute(_current(attempts.c.shrink).where(attempts.c.shrink.is_not(None))).all()
    found = [Shrinking(**row.shrink) for row in rows]
    return {one.job: one for one in sorted(found, key=lambda one: (one.asked_ns, one.job))}


def following_from(db: Connection) -> dict[str, int]:
    """Of the store: job -> the attempt that follows its lease."""
    rows = db.execute(_current(attempts.c.number).where(attempts.c.follows_ns.is_not(None))).all()
    return {row.id: int(row.number) for row in rows}


def _current(column: ColumnElement[Any]) -> Select[Any]:
    """A column of the attempts that run."""
    of = (attempts.c.job_id == jobs.c.id) & (attempts.c.number == jobs.c.attempt)
    return select(jobs.c.id, column).join(attempts, of).where(jobs.c.state.in_((STARTING, RUNNING)))


def promises_from(db: Connection) -> dict[str, Promise]:
    """Of the store, the oldest first."""
    rows = db.execute(select(jobs.c.promise).where(jobs.c.state == PENDING, jobs.c.promise.is_not(None)))
    found = [promise_of(said) for said in rows.scalars()]
    return {one.job: one for one in sorted(found, key=lambda one: (one.made_ns, one.job))}
