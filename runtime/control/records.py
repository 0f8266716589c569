"""Reading and writing rows: the state transition, leases with their placements, the outbox.

`transition` is the only writer of `jobs.state`, `grant`, `resize` and `release` the only writers of leases. All take
the caller's open transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from sqlalchemy import Connection, Row, Select, delete, func, insert, select, update

from moorage.configs.pool import PoolSettings
from moorage.errors import Conflict
from moorage.runtime.control import states
from moorage.runtime.control.clock import Now
from moorage.runtime.control.store import record
from moorage.runtime.control.tables import attempts, jobs, leases, outbox, placements, principals, subleases
from moorage.scheduling.ledger import LeaseResized, task_milli_per_device
from moorage.scheduling.model import Lease, Role, TaskPlacement

JobRow = Row[Any]


def job_row(db: Connection, job_id: str) -> JobRow | None:
    return db.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none()


def transition(
    db: Connection,
    now: Now,
    job: JobRow,
    after: str,
    reason: str,
    message: str = "",
    **columns: Any,
) -> JobRow:
    """Move a job to `after`; returns its new row. `columns` are further columns of `jobs` to set.

    Raises `IllegalTransition` (a bug) or `Conflict` when the job is no longer in the state of `job`.
    """
    states.check(job.state, after, reason)
    values = {"state": after, "message": message, **columns}
    if states.final(after):
        values.setdefault("ended_ns", now.wall_ns)
    changed = db.execute(update(jobs).where(jobs.c.id == job.id, jobs.c.state == job.state).values(**values))
    if changed.rowcount != 1:
        raise Conflict(f"job {job.id} is no longer {job.state}", code="stale-state")
    record(
        db,
        now,
        f"job.{after.lower()}",
        {
            "from": job.state,
            "reason": reason,
            "message": message[:500],
            "attempt": columns.get("attempt", job.attempt),
        },
        team=job.team,
        job_id=job.id,
    )
    return cast(JobRow, job_row(db, job.id))


def current_attempt(db: Connection, job: JobRow) -> Row[Any]:
    return db.execute(
        select(attempts).where(attempts.c.job_id == job.id, attempts.c.number == job.attempt)
    ).one()


def set_attempt(db: Connection, job: JobRow, **columns: Any) -> None:
    db.execute(
        update(attempts)
        .where(attempts.c.job_id == job.id, attempts.c.number == job.attempt)
        .values(**columns)
    )


def next_epoch(db: Connection) -> int:
    """A fencing token above every one ever granted."""
    return int(db.execute(select(func.max(leases.c.epoch))).scalar() or 0) + 1


def grant(
    db: Connection,
    now: Now,
    lease: Lease,
    *,
    kind: str,
    attempt: int,
    models: dict[str, str],
    settings: PoolSettings,
    rule: dict[str, Any],
) -> None:
    """Write a lease, its placements and the event that audit and cost are folded from. `rule` says what let it in."""
    db.execute(
        insert(leases).values(
            id=lease.lease,
            kind=kind,
            job_id=lease.job,
            attempt=attempt,
            team=lease.team,
            epoch=lease.epoch,
            held=True,
            milli_gpu=lease.milli_gpu,
            granted_ns=now.wall_ns,
            granted_control_ns=now.control_ns,
        )
    )
    _place(db, lease)
    payload = {
        "kind": kind,
        "epoch": lease.epoch,
        "attempt": attempt,
        "milli_gpu": lease.milli_gpu,
        "tasks": _parts(lease, models, settings),
        "rule": rule,
    }
    record(db, now, "lease.granted", payload, team=lease.team, job_id=lease.job, lease_id=lease.lease)


def resize(
    db: Connection,
    now: Now,
    lease: Lease,
    event: LeaseResized,
    *,
    models: dict[str, str],
    settings: PoolSettings,
    why: dict[str, Any] | None = None,
) -> None:
    """Write what a held lease is after `event`: `lease`, as the ledger has it then. Conflict when the row does not
    have the event's epoch any more: another resize or a release came first. `why` goes into the event."""
    changed = db.execute(
        update(leases)
        .where(leases.c.id == event.lease, leases.c.epoch == event.epoch, leases.c.held.is_(True))
        .values(
            epoch=event.granted,
            milli_gpu=lease.milli_gpu,
            **{"grown_control_ns" if event.tasks else "shrunk_control_ns": now.control_ns},
        )
    )
    if changed.rowcount != 1:
        raise Conflict(f"lease {event.lease} is not held under epoch {event.epoch}", code="stale-state")
    db.execute(delete(placements).where(placements.c.lease_id == event.lease))
    _place(db, lease)
    payload: dict[str, Any] = {
        "was_epoch": event.epoch,
        "epoch": event.granted,
        "kept": event.kept,
        "milli_gpu": lease.milli_gpu,
        "tasks": _parts(lease, models, settings),
        **(why or {}),
    }
    record(db, now, "lease.resized", payload, team=lease.team, job_id=lease.job, lease_id=lease.lease)


def _place(db: Connection, lease: Lease) -> None:
    rows = list(_placement_rows(lease))
    if rows:
        db.execute(insert(placements), rows)


def _parts(lease: Lease, models: dict[str, str], settings: PoolSettings) -> list[dict[str, Any]]:
    """The tasks as events tell them, each with its price."""
    return [
        {
            "role": str(task.role),
            "node": task.node,
            "devices": list(task.devices),
            "milli_gpu": task.milli_gpu,
            "gpu_model": models.get(task.node, ""),
            "price": settings.price(models.get(task.node, "")),
        }
        for task in lease.tasks
    ]


def release(db: Connection, now: Now, lease_id: str, reason: str) -> tuple[str, int] | None:
    """End a lease exactly once: its (id, epoch), or None if it was released already."""
    row = db.execute(select(leases).where(leases.c.id == lease_id)).one_or_none()
    if row is None or not row.held:
        return None
    db.execute(
        update(leases)
        .where(leases.c.id == lease_id, leases.c.held.is_(True))
        .values(
            held=False,
            released_ns=now.wall_ns,
            released_control_ns=now.control_ns,
            release_reason=reason[:64],
        )
    )
    db.execute(update(subleases).where(subleases.c.lease_id == lease_id).values(state="RELEASED"))
    record(
        db,
        now,
        "lease.released",
        {"epoch": row.epoch, "reason": reason},
        team=row.team,
        job_id=row.job_id,
        lease_id=lease_id,
    )
    return lease_id, int(row.epoch)


def release_all(db: Connection, now: Now, job: JobRow, reason: str) -> list[tuple[str, int]]:
    """End every lease a job holds, its waiting subleases and its attempt's token."""
    held = db.execute(select(leases.c.id).where(leases.c.job_id == job.id, leases.c.held.is_(True))).scalars()
    done = [freed for lease_id in list(held) if (freed := release(db, now, lease_id, reason))]
    db.execute(
        update(subleases)
        .where(subleases.c.job_id == job.id, subleases.c.state == "WAITING")
        .values(state="EXPIRED")
    )
    db.execute(
        update(principals)
        .where(principals.c.job_id == job.id, principals.c.revoked_ns.is_(None))
        .values(revoked_ns=now.wall_ns)
    )
    return done


def held_leases(db: Connection) -> list[Lease]:
    """Every lease that is held, in order of epoch."""
    rows = db.execute(select(leases).where(leases.c.held.is_(True)).order_by(leases.c.epoch)).all()
    return [read_lease(db, row) for row in rows]


def read_lease(db: Connection, row: Row[Any]) -> Lease:
    parts = db.execute(
        select(placements).where(placements.c.lease_id == row.id).order_by(placements.c.row)
    ).all()
    grouped: dict[tuple[str, int], list[Row[Any]]] = {}
    for part in parts:
        grouped.setdefault((part.role, part.task), []).append(part)
    return Lease(
        lease=row.id,
        job=row.job_id,
        team=row.team,
        epoch=row.epoch,
        tasks=tuple(_task(role, index, group) for (role, index), group in grouped.items()),
    )


def _placement_rows(lease: Lease) -> Iterable[dict[str, Any]]:
    number = 0
    for task in lease.tasks:
        for position, device in enumerate(task.devices or (None,)):
            yield {
                "lease_id": lease.lease,
                "row": number,
                "role": str(task.role),
                "task": task.index,
                "node": task.node,
                "device_id": None if device is None else f"{task.node}/{device}",
                "device_index": device,
                "milli_gpu": 0 if device is None else task_milli_per_device(task),
                "gpu_mib": 0 if device is None else task.gpu_mib,
                "milli_cpu": 0 if position else task.milli_cpu,
                "mib": 0 if position else task.mib,
            }
            number += 1


def _task(role: str, index: int, group: list[Row[Any]]) -> TaskPlacement:
    return TaskPlacement(
        role=Role(role),
        index=index,
        node=group[0].node,
        devices=tuple(part.device_index for part in group if part.device_index is not None),
        milli_gpu=sum(part.milli_gpu for part in group),
        gpu_mib=group[0].gpu_mib,
        milli_cpu=sum(part.milli_cpu for part in group),
        mib=sum(part.mib for part in group),
    )


def enqueue(
    db: Connection,
    now: Now,
    kind: str,
    submission_id: str,
    job_id: str,
    payload: dict[str, Any],
    due_control_ns: int = 0,
) -> None:
    """An outbox row precedes every effect on Ray. One row per kind and attempt: a second call changes nothing."""
    known: Select[Any] = select(outbox.c.id).where(
        outbox.c.kind == kind, outbox.c.submission_id == submission_id
    )
    if db.execute(known).scalar() is None:
        db.execute(
            insert(outbox).values(
                kind=kind,
                submission_id=submission_id,
                job_id=job_id,
                payload=payload,
                created_ns=now.wall_ns,
                next_control_ns=due_control_ns,
            )
        )


def close_outbox(db: Connection, now: Now, submission_id: str, kinds: tuple[str, ...]) -> None:
    """Nothing more is to be done for an attempt."""
    db.execute(
        update(outbox)
        .where(outbox.c.submission_id == submission_id, outbox.c.kind.in_(kinds), outbox.c.done_ns.is_(None))
        .values(done_ns=now.wall_ns)
    )
