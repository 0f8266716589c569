"""Subleases: a running job's lease grows. Grow holds nothing while it waits: granted, given up, or failed."""

from __future__ import annotations

import secrets
import time
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, insert, select, update

from moorage.configs import units
from moorage.configs.job import JobAsk
from moorage.errors import Conflict, Forbidden, InvalidRequest, LeaseTimeout, NotFound
from moorage.runtime import answers
from moorage.runtime.control import admission, launching, records
from moorage.runtime.control.api import Caller, GrowAsk
from moorage.runtime.control.book import Book, sublease_request
from moorage.runtime.control.core import Change, Core
from moorage.runtime.control.records import JobRow
from moorage.runtime.control.states import ON_RAY
from moorage.runtime.control.store import record
from moorage.runtime.control.tables import leases, subleases
from moorage.runtime.control.views import reason_json

MAX_TIMEOUT_S = 3600.0


def own_job(db: Connection, caller: Caller, job_id: str | None) -> JobRow:
    """The job a caller acts for: its own (job token), or one of its teams'."""
    wanted = job_id or caller.job_id
    if wanted is None:
        raise InvalidRequest(
            "which job?", why="this token is not a job's own", todo="name the job", field="job_id"
        )
    row = records.job_row(db, wanted)
    if row is None or row.deleted_ns is not None or not caller.may_see(row.team):
        raise NotFound(
            f"there is no job {wanted!r}", todo="list yours with: moorage jobs", code="job-not-found"
        )
    if caller.kind == "job" and caller.job_id != row.id:
        raise Forbidden("a job's token acts for that job only", code="job-forbidden")
    return row


def grow(core: Core, caller: Caller, ask: GrowAsk) -> answers.Lease:
    """Ask, wait up to the timeout, give up holding nothing.

    A named ask that is held already is answered again; one that still waits is joined, not asked twice: a client
    that lost the answer asks again under the same name. Whoever gives up first ends it for both.
    """
    _check(ask)
    with core.change("sublease") as change:
        held, key = _open(core, change, caller, ask)
    if held is not None:
        return held
    core.wake.set()
    deadline = time.monotonic() + ask.timeout_s
    while True:
        with core.changed:
            generation = core.generation
        with core.store.lock, core.store.read() as db:
            row = db.execute(select(subleases).where(subleases.c.id == key)).one()
            if row.state == "HELD":
                return _view(core, db, row)
            reason = core.book.reasons.get(key)
        left = deadline - time.monotonic()
        if row.state != "WAITING" or left <= 0:
            return _give_up(core, key, reason.text() if reason else "the scheduler has not answered", ask)
        with core.changed:
            if core.generation == generation:
                core.changed.wait(min(left, 1.0))


def _check(ask: GrowAsk) -> None:
    units.whole("workers", ask.workers, 1, units.MAX_WORKERS)
    units.milli_gpu("gpus", ask.milli_gpu / 1000)
    units.whole("gpu_mib", ask.gpu_mib, 0, units.MAX_MIB)
    units.whole("milli_cpu", ask.milli_cpu, 0, units.MAX_CPUS * 1000)
    if not (ask.milli_gpu or ask.milli_cpu):
        raise units.refuse("gpus", 0, "a sublease must ask for some GPU or CPU")
    if not 0 < ask.timeout_s <= MAX_TIMEOUT_S:
        raise units.refuse("timeout_s", ask.timeout_s, f"it must be above 0 and at most {MAX_TIMEOUT_S:g}")
    if len(ask.name) > 100 or not ask.name.isprintable():
        raise units.refuse("name", ask.name, "it must be printable and at most 100 characters")


def _open(core: Core, change: Change, caller: Caller, ask: GrowAsk) -> tuple[answers.Lease | None, str]:
    db, now = change.db, change.now
    job = own_job(db, caller, ask.job_id)
    if job.state not in ON_RAY or job.stop_reason:
        raise Conflict(
            f"job {job.id} is {job.state}", why="only a running job's lease can grow", code="job-not-running"
        )
    values = {key: value for key, value in asdict(ask).items() if key not in ("job_id", "timeout_s", "name")}
    if ask.name:
        same = db.execute(
            select(subleases).where(
                subleases.c.job_id == job.id,
                subleases.c.attempt == job.attempt,
                subleases.c.name == ask.name,
                subleases.c.state.in_(("HELD", "WAITING")),
            )
        ).one_or_none()
        if same is not None:
            if same.ask != values:
                raise Conflict(
                    f"the job has another sublease named {ask.name!r}", code="sublease-name-in-use"
                )
            return (_view(core, db, same) if same.state == "HELD" else None), same.id
    key = f"s-{secrets.token_hex(8)}"
    db.execute(
        insert(subleases).values(
            id=key,
            job_id=job.id,
            attempt=job.attempt,
            team=job.team,
            name=ask.name,
            ask=values,
            state="WAITING",
            created_ns=now.wall_ns,
            created_control_ns=now.control_ns,
        )
    )
    row = db.execute(select(subleases).where(subleases.c.id == key)).one()
    asked = JobAsk.model_validate(job.ask)
    request = sublease_request(row, core.book.staying(job.id, asked), asked.priority)
    admission.check_feasible(
        core.book.ledger, request, core.device_rule, core.policy, core.settings.autoscaling.types()
    )
    record(
        db,
        now,
        "sublease.asked",
        {"sublease": key, **values},
        principal=caller.principal,
        team=job.team,
        job_id=job.id,
    )
    change.after.append(lambda: core.book.add_sublease(row, asked, asked.priority))
    return None, key


def _give_up(core: Core, key: str, why: str, ask: GrowAsk) -> answers.Lease:
    """Turn WAITING into EXPIRED, unless it was granted in this very moment."""
    with core.change() as change:
        gone = change.db.execute(
            update(subleases)
            .where(subleases.c.id == key, subleases.c.state == "WAITING")
            .values(state="EXPIRED")
        )
        row = change.db.execute(select(subleases).where(subleases.c.id == key)).one()
        if gone.rowcount:
            record(
                change.db,
                change.now,
                "sublease.expired",
                {"sublease": key, "why": why},
                team=row.team,
                job_id=row.job_id,
            )
        change.after.append(lambda: core.book.drop(key))
        if row.state == "HELD":
            return _view(core, change.db, row)
    raise LeaseTimeout(
        f"the lease did not grow within {ask.timeout_s:g} s",
        why=why if gone.rowcount else "the job ended, or the same ask was given up elsewhere",
        todo="nothing is held; try again later or ask for less",
    )


def _view(core: Core, db: Connection, row: Any) -> answers.Lease:
    lease_row = db.execute(select(leases).where(leases.c.id == row.lease_id)).one()
    lease = records.read_lease(db, lease_row)
    return answers.Lease(
        lease_id=lease.lease,
        job_id=lease.job,
        team=lease.team,
        epoch=lease.epoch,
        lease=launching.view_json(launching.lease_view(lease, core.book.ray_ids)),
    )


def release(core: Core, caller: Caller, lease_id: str) -> bool:
    """Give a sublease back; False if it was released already. NotFound for what is no sublease of the caller's."""
    with core.change() as change:
        row = change.db.execute(
            select(leases).where(leases.c.id == lease_id, leases.c.kind == "sublease")
        ).one_or_none()
        if row is None:
            raise NotFound(f"there is no sublease {lease_id!r}", code="lease-not-found")
        own_job(change.db, caller, row.job_id)
        freed = records.release(change.db, change.now, lease_id, "released by its job")
        core.freed(change, [freed] if freed else [])
    core.wake.set()
    return freed is not None


def withdraw(core: Core, caller: Caller, job_id: str, name: str) -> bool:
    """End a job's ask of that name, whether it waits or was granted in this moment; False when there is none.

    Whoever waits for it hears that it did not come. Room that was being made for it goes to who is next.
    """
    with core.change("sublease") as change:
        job = own_job(change.db, caller, job_id)
        row = change.db.execute(
            select(subleases).where(
                subleases.c.job_id == job.id,
                subleases.c.attempt == job.attempt,
                subleases.c.name == name,
                subleases.c.state.in_(("HELD", "WAITING")),
            )
        ).one_or_none()
        if not name or row is None:
            return False
        if row.state == "HELD":
            freed = records.release(change.db, change.now, row.lease_id, "withdrawn by its job")
            core.freed(change, [freed] if freed else [])
        else:
            change.db.execute(update(subleases).where(subleases.c.id == row.id).values(state="EXPIRED"))
            why = {"sublease": row.id, "why": "withdrawn by its job"}
            record(change.db, change.now, "sublease.expired", why, team=row.team, job_id=row.job_id)
            change.after.append(lambda: core.book.drop(row.id))
    core.wake.set()
    return True


def asks_view(book: Book, db: Connection, job_id: str) -> list[answers.Ask]:
    """What a running job has asked for and waits for, oldest first, each with why it waits (None: not planned yet)."""
    rows = db.execute(
        select(subleases)
        .where(subleases.c.job_id == job_id, subleases.c.state == "WAITING")
        .order_by(subleases.c.created_control_ns, subleases.c.id)
    ).all()
    return [
        {
            "sublease": row.id,
            "name": row.name,
            "workers": row.ask["workers"],
            "milli_gpu": row.ask["milli_gpu"],
            "since_ns": row.created_ns,
            "reason": reason_json(book.reasons.get(row.id)),
        }
        for row in rows
    ]
