"""Starting one admitted job, or holding one granted sublease: re-checked against the book as it is now, in a change."""

from __future__ import annotations

from sqlalchemy import insert, update

from moorage.runtime.control import deciding, records
from moorage.runtime.control.api import ADMITTED, PENDING
from moorage.runtime.control.core import Change, Core
from moorage.runtime.control.states import ON_RAY
from moorage.runtime.control.tables import attempts, subleases
from moorage.scheduling.ledger import LeaseGranted, Ledger, LedgerError, step
from moorage.scheduling.model import JobRequest, Lease, TaskPlacement
from moorage.scheduling.quota import Quotas


def within_quota(ledger: Ledger, lease: Lease) -> bool:
    """Whether the lease keeps its team within its allowance now, for every GPU model it touches."""
    room = Quotas.of(ledger).room(ledger.team_row[lease.team])
    return all(amount <= room[column] for column, amount in deciding.needs(ledger, lease).items())


def admit(
    core: Core, change: Change, request: JobRequest, tasks: tuple[TaskPlacement, ...], older: int
) -> bool:
    """Grant the lease, if it still holds; `older`: jobs submitted before it that wait on. False: nothing was done."""
    ledger = core.book.ledger
    epoch = max(records.next_epoch(change.db), ledger.last_epoch + 1)
    lease = Lease(
        lease=f"l-{epoch}", job=request.parent or request.job, team=request.team, epoch=epoch, tasks=tasks
    )
    if lease.team not in ledger.team_row or not within_quota(ledger, lease):
        return False
    row = records.job_row(change.db, lease.job)
    if (
        row is None
        or row.stop_reason
        or (row.state not in ON_RAY if request.parent else row.state != PENDING)
    ):
        change.after.append(lambda: core.book.drop(request.job))
        return False
    rule = deciding.admitted_by(ledger, lease, older)
    try:
        change.touched_book = True
        step(ledger, LeaseGranted(lease))
    except LedgerError:
        return False
    attempt = row.attempt if request.parent else row.attempt + 1
    kind = "sublease" if request.parent else "job"
    models = {
        name: ledger.models[int(ledger.model[i])] for name, i in ledger.node_row.items() if ledger.model[i]
    }
    records.grant(
        change.db,
        change.now,
        lease,
        kind=kind,
        attempt=attempt,
        models=models,
        settings=core.settings,
        rule=rule,
    )
    if request.parent:
        return _hold(core, change, request, lease)
    _start(core, change, row, lease, attempt)
    return True


def _hold(core: Core, change: Change, request: JobRequest, lease: Lease) -> bool:
    changed = change.db.execute(
        update(subleases)
        .where(subleases.c.id == request.job, subleases.c.state == "WAITING")
        .values(state="HELD", lease_id=lease.lease)
    )
    if changed.rowcount != 1:  # its caller gave up: hold nothing
        freed = records.release(change.db, change.now, lease.lease, "nobody waits for it")
        core.freed(change, [freed] if freed else [])
    change.after.append(lambda: core.book.drop(request.job))
    return changed.rowcount == 1


def _start(core: Core, change: Change, row: records.JobRow, lease: Lease, attempt: int) -> None:
    submission_id = f"{row.id}-{attempt}"
    change.db.execute(
        insert(attempts).values(
            job_id=row.id,
            number=attempt,
            submission_id=submission_id,
            lease_id=lease.lease,
            state=ADMITTED,
            created_ns=change.now.wall_ns,
        )
    )
    records.transition(change.db, change.now, row, ADMITTED, "lease-granted", attempt=attempt)
    records.enqueue(change.db, change.now, "launch", submission_id, row.id, {})
    change.after.append(lambda: core.book.drop(row.id))
