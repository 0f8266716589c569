"""A lease that grows and shrinks while its job runs: who may be resized, what is asked of it, what it says.

A job that follows its lease (it said so) gives up workers before any job leaves as a whole. It is asked, with a
deadline; the lease shrinks once the job says that it did, or once the cluster shows that it holds no more. What a
lease grows by is the job's from the commit on: it is told afterwards. A job that was admitted and not started yet
grows without a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import Connection, select

from moorage.configs.job import JobAsk
from moorage.errors import Conflict, InvalidRequest
from moorage.runtime import answers
from moorage.runtime.control import launching, records
from moorage.runtime.control.admitting import within_quota
from moorage.runtime.control.api import ADMITTED, RUNNING, STARTING
from moorage.runtime.control.book import request_of
from moorage.runtime.control.core import Change, Core
from moorage.runtime.control.leaving import Shrinking
from moorage.runtime.control.records import JobRow
from moorage.runtime.control.store import record
from moorage.runtime.control.tables import attempts, jobs, leases, outbox, placements
from moorage.scheduling.guard import Holder, Seen
from moorage.scheduling.ledger import LeaseResized, LedgerError, step
from moorage.scheduling.model import UNLIMITED, WHOLE, Lease, Plan, Role, Snapshot, TaskPlacement
from moorage.scheduling.queue import TaskClass
from moorage.scheduling.running import Gang, least_tasks, most_tasks

Tasks = tuple[TaskPlacement, ...]


def gangs(db: Connection, core: Core, control_ns: int) -> dict[str, Gang]:
    """Lease -> what is known of it, of those that may be resized: of running jobs that follow, and of admitted ones
    that Ray was not asked to start yet."""
    settings = core.settings
    if not settings.elastic.enabled:
        return {}
    workers, least = (jobs.c.ask[name].as_integer() for name in ("workers", "min_workers"))
    launch = (outbox.c.submission_id == attempts.c.submission_id) & (outbox.c.kind == "launch")
    rows = db.execute(
        select(
            jobs,
            attempts.c.number,
            attempts.c.wants,
            attempts.c.lease_id,
            attempts.c.started_control_ns.label("since"),
            leases.c.grown_control_ns.label("grown"),
            leases.c.shrunk_control_ns.label("shrunk"),
            outbox.c.begun_ns.label("begun"),
        )
        .join(attempts, (attempts.c.job_id == jobs.c.id) & (attempts.c.number == jobs.c.attempt))
        .join(leases, leases.c.id == attempts.c.lease_id)
        .join(outbox, launch)
        .where(jobs.c.state.in_((ADMITTED, RUNNING)), jobs.c.stop_reason == "", least < workers)
    ).all()
    found = {}
    for row in rows:
        fresh = row.state == ADMITTED and row.begun is None
        if not fresh and (row.state == ADMITTED or core.book.following.get(row.id) != row.number):
            continue
        request = request_of(row.id, row.team, JobAsk.model_validate(row.ask), row.created_control_ns)
        most = most_tasks(request)
        if row.wants is not None:
            most += min(max(row.wants, request.min_workers), request.workers) - request.workers
        found[row.lease_id] = Gang(
            least=least_tasks(request),
            most=most,
            worker=TaskClass.of(request, request.worker),
            keeps=not (request.preemptible and settings.preemption.enabled),
            ran_ns=UNLIMITED if fresh or row.since is None else control_ns - row.since,
            grown_ns=UNLIMITED if fresh or row.grown is None else control_ns - row.grown,
            shrunk_ns=UNLIMITED if row.shrunk is None else control_ns - row.shrunk,
        )
    return found


def hungry(core: Core, found: dict[str, Gang]) -> frozenset[str]:
    """The leases that would take more workers now."""
    book, settle = core.book, core.policy.settle_ns
    if not core.policy.grow or book.leaving or book.promises or book.shrinking:
        return frozenset()
    return frozenset(
        name
        for name, gang in found.items()
        if name in book.ledger.leases
        and len(book.ledger.leases[name].tasks) < gang.most
        and min(gang.ran_ns, gang.grown_ns, gang.shrunk_ns) >= settle
    )


# -- giving up


def ask(
    core: Core, change: Change, lease: Lease, kept: int, for_whom: tuple[str, str], why: tuple[str, str]
) -> Shrinking:
    """Ask the job of a lease to keep its first `kept` tasks only. `for_whom`: job, team. `why`: rule, text."""
    now, grace_s = change.now, core.settings.preemption.grace_s
    row = records.job_row(change.db, lease.job)
    assert row is not None
    asked = Shrinking(
        job=lease.job,
        attempt=row.attempt,
        lease=lease.lease,
        kept=kept,
        workers=sum(task.role is Role.WORKER for task in lease.tasks[:kept]),
        for_job=for_whom[0],
        for_team=for_whom[1],
        rule=why[0],
        text=why[1],
        asked_ns=now.wall_ns,
        deadline_ns=now.control_ns + grace_s * 10**9,
    )
    records.set_attempt(change.db, row, shrink=asdict(asked))
    about = {
        name: getattr(asked, name) for name in ("attempt", "workers", "for_job", "for_team", "rule", "text")
    }
    payload = about | {"has_workers": lease.workers, "grace_s": grace_s}
    record(change.db, now, "resize.asked", payload, team=row.team, job_id=row.id, lease_id=lease.lease)
    return asked


def withdraw(core: Core, change: Change, one: Shrinking, how: str) -> None:
    """The ask is over without a resize: nobody needs it any more (`withdrawn`), or its grace is (`grace-over`)."""
    row = records.job_row(change.db, one.job)
    assert row is not None
    _forget(core, change, row)
    about = {"attempt": one.attempt, "workers": one.workers, "for_job": one.for_job}
    record(change.db, change.now, f"resize.{how}", about, team=row.team, job_id=one.job, lease_id=one.lease)


def _forget(core: Core, change: Change, row: JobRow) -> None:
    records.set_attempt(change.db, row, shrink=None)
    change.after.append(lambda: core.book.unask(row.id))


def shown(seen: Seen, one: Shrinking, lease: Lease) -> bool:
    """Whether what the cluster booked for the job is no more than what it keeps, node by node, and its processes, where
    they are seen, are on no more devices."""
    room: dict[str, int] = {}
    keeps: dict[str, set[int]] = {}
    runs: dict[str, set[int]] = {}
    for task in lease.tasks[: one.kept]:
        room[task.node] = room.get(task.node, 0) + task.milli_gpu
        keeps.setdefault(task.node, set()).update(task.devices)
    for held in seen.holdings:
        if held.submission == f"{one.job}-{one.attempt}":
            for part in held.parts:
                room[part.node] = room.get(part.node, 0) - part.milli_gpu
                if held.holder is Holder.PROCESS:
                    runs.setdefault(part.node, set()).add(part.device)
    if any(len(on) > len(keeps.get(node, ())) for node, on in runs.items()):
        return False
    return seen.complete and seen.at_ns > one.asked_ns and min(room.values(), default=0) >= 0


def shrink(core: Core, change: Change, row: JobRow, lease: Lease, kept: int, why: Mapping[str, Any]) -> bool:
    """Commit that a lease keeps its first `kept` tasks."""
    if not _resize(core, change, lease, kept, (), why):
        return False
    if row.id in core.book.shrinking:
        _forget(core, change, row)
    core.wake.set()
    return True


def give(core: Core, change: Change, row: JobRow, workers: int | None, wants: int | None) -> bool:
    """A job says that it holds no more than its first `workers` workers, and how many it has use for. True: its lease
    is that small now. InvalidRequest below its least; Conflict when it does not follow its lease."""
    if core.book.following.get(row.id) != row.attempt or row.state != RUNNING:
        raise Conflict(
            f"job {row.id} does not follow its lease",
            todo='say {"follows": true} first',
            code="not-following",
        )
    ask = JobAsk.model_validate(row.ask)
    for name, figure in (("workers", workers), ("wants", wants)):
        if figure is not None and not ask.min_workers <= figure <= ask.workers:
            raise InvalidRequest(
                f"{name}={figure} is not a size of this gang",
                why=f"it was submitted with {ask.min_workers} to {ask.workers} workers",
                code="invalid-field",
                field=name,
            )
    if wants is not None:
        records.set_attempt(change.db, row, wants=wants)
        core.book.dirty = True
    if workers is None:
        return False
    lease = core.book.ledger.leases.get(records.current_attempt(change.db, row).lease_id)
    asked = core.book.shrinking.get(row.id)
    if lease is None or workers >= lease.workers or (asked is not None and workers > asked.workers):
        return False
    kept = len(lease.tasks) - lease.workers + workers
    about = (
        {"said": "job"} if asked is None else {"said": "job", "for_job": asked.for_job, "rule": asked.rule}
    )
    return shrink(core, change, row, lease, kept, about)


def follow(core: Core, change: Change, row: JobRow) -> None:
    """The running attempt follows its lease from now on. Again is nothing more."""
    if core.book.following.get(row.id) == row.attempt or row.state not in (STARTING, RUNNING):
        return
    records.set_attempt(change.db, row, follows_ns=change.now.wall_ns)
    record(change.db, change.now, "resize.follows", {"attempt": row.attempt}, team=row.team, job_id=row.id)
    change.after.append(lambda: core.book.following.__setitem__(row.id, row.attempt))
    core.wake.set()


def renew(core: Core, change: Change) -> None:
    """The whole grace again for everyone who was asked: this process was away."""
    deadline = change.now.control_ns + core.settings.preemption.grace_s * 10**9
    mine = (attempts.c.job_id == jobs.c.id) & (attempts.c.number == jobs.c.attempt)
    rows = change.db.execute(
        select(jobs, attempts.c.shrink)
        .join(attempts, mine)
        .where(jobs.c.state == RUNNING, attempts.c.shrink.is_not(None))
    ).all()
    for row in rows:
        records.set_attempt(change.db, row, shrink={**row.shrink, "deadline_ns": deadline})


# -- growing


def grow(core: Core, snapshot: Snapshot, decided: Plan) -> int:
    """Commit the growth of a plan that still holds; how many leases grew."""
    if not decided.grown or core.book.leaving or core.book.promises or core.book.shrinking:
        return 0
    done = 0
    with core.change("resize") as change:
        for name, tasks in decided.growth(snapshot):
            done += _grow(core, change, name, tasks)
    return done


def _grow(core: Core, change: Change, name: str, tasks: Tasks) -> bool:
    lease = core.book.ledger.leases.get(name)
    row = None if lease is None else records.job_row(change.db, lease.job)
    if lease is None or row is None or row.stop_reason or row.state not in (ADMITTED, RUNNING):
        return False
    if not within_quota(core.book.ledger, replace(lease, tasks=tasks)):
        return False
    if any(task.milli_gpu % WHOLE for task in tasks) and _starting(
        change.db, row.id, {t.node for t in tasks}
    ):
        return False  # Ray's raylet picks the device: what starts there first might take the part that is meant here
    return _resize(core, change, lease, len(lease.tasks), tasks, {"rule": "idle"})


def _starting(db: Connection, job: str, nodes: Iterable[str]) -> bool:
    """Whether another job is about to start on one of these nodes."""
    found = db.execute(
        select(placements.c.lease_id)
        .join(attempts, attempts.c.lease_id == placements.c.lease_id)
        .where(
            attempts.c.state.in_((ADMITTED, STARTING)), attempts.c.job_id != job, placements.c.node.in_(nodes)
        )
        .limit(1)
    )
    return found.first() is not None


def _resize(
    core: Core, change: Change, lease: Lease, kept: int, tasks: Tasks, why: Mapping[str, Any]
) -> bool:
    ledger = core.book.ledger
    granted = max(records.next_epoch(change.db), ledger.last_epoch + 1)
    event = LeaseResized(lease.lease, lease.epoch, granted, kept, tasks)
    try:
        change.touched_book = True
        step(ledger, event)
    except LedgerError:
        return False
    core.book.dirty = True
    change.after.append(lambda: core.book.changed(lease.job))
    models = {
        name: ledger.models[int(ledger.model[i])] for name, i in ledger.node_row.items() if ledger.model[i]
    }
    held = ledger.leases[lease.lease]
    records.resize(change.db, change.now, held, event, models=models, settings=core.settings, why=dict(why))
    return True


# -- what a job sees


def lease_now(core: Core, db: Connection, row: JobRow) -> answers.HeldLease | None:
    """What a job holds, and what it may use of it. Under the lock. None when it holds nothing."""
    if not row.attempt:
        return None
    held = db.execute(
        select(leases)
        .join(attempts, attempts.c.lease_id == leases.c.id)
        .where(attempts.c.job_id == row.id, attempts.c.number == row.attempt, leases.c.held.is_(True))
    ).one_or_none()
    if held is None:
        return None
    lease, ask = records.read_lease(db, held), JobAsk.model_validate(row.ask)
    one, now = core.book.shrinking.get(row.id), core.store.clock.now()
    left = max(0, one.deadline_ns - now.control_ns) if one else 0
    return answers.HeldLease(
        version=f"{lease.epoch}.{one.asked_ns if one else 0}",
        lease=launching.view_json(launching.lease_view(lease, core.book.ray_ids)),
        workers=one.workers if one else lease.workers,
        min_workers=ask.min_workers,
        max_workers=ask.workers,
        follows=core.book.following.get(row.id) == row.attempt,
        asked=answers.Asked(
            workers=one.workers,
            for_job=one.for_job,
            rule=one.rule,
            text=one.text,
            deadline_ns=now.wall_ns + left,
            left_s=left / 1e9,
        )
        if one
        else None,
    )
