"""How an attempt ends: finished for good, or its job requeued with its progress kept. Uses an open `Change`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, update

from moorage.runtime.control import records, states
from moorage.runtime.control.api import FAILED, PENDING, PREEMPTING, QUARANTINED, STOPPED, SUCCEEDED
from moorage.runtime.control.core import Change, Core
from moorage.runtime.control.outcome import Outcome
from moorage.runtime.control.records import JobRow
from moorage.runtime.control.tables import jobs, outbox

_FINAL = {"succeeded": SUCCEEDED, "failed": FAILED, "stopped": STOPPED}
_BACKOFF_NS = 10**9
_BACKOFF_DOUBLINGS = 5


def end_attempt(core: Core, change: Change, job: JobRow, outcome: Outcome, exit_code: int | None) -> None:
    """Record what `outcome` means: the job is final, or waits again. Its leases are released in both cases."""
    attempt = records.current_attempt(change.db, job)
    records.set_attempt(
        change.db,
        job,
        state={"lost": "LOST", "retry": FAILED, "released": "PREEMPTED"}.get(outcome.kind)
        or _FINAL[outcome.kind],
        ended_ns=change.now.wall_ns,
        message=outcome.message,
        driver_exit_code=exit_code,
    )
    records.close_outbox(change.db, change.now, attempt.submission_id, ("launch", "stop"))
    if outcome.kind in _FINAL:
        records.transition(
            change.db,
            change.now,
            job,
            _FINAL[outcome.kind],
            outcome.reason,
            outcome.message,
            driver_exit_code=exit_code,
        )
        core.freed(change, records.release_all(change.db, change.now, job, outcome.reason))
        return
    _again(core, change, job, outcome, exit_code)


def _again(core: Core, change: Change, job: JobRow, outcome: Outcome, exit_code: int | None) -> None:
    """Requeue, or quarantine when the infrastructure has taken too many attempts. Who left for others lost none."""
    lost = job.lost_attempts + (outcome.kind == "lost")
    failed = job.failed_attempts + (outcome.kind == "retry")
    count = {"lost_attempts": lost, "failed_attempts": failed, "driver_exit_code": exit_code}
    if outcome.kind == "lost" and lost >= core.settings.infra_attempts:
        text = f"given up after {lost} attempts that the infrastructure lost; the last: {outcome.message}"
        records.transition(change.db, change.now, job, QUARANTINED, "attempts-exhausted", text, **count)
        core.freed(change, records.release_all(change.db, change.now, job, "attempts-exhausted"))
        return
    pause = _BACKOFF_NS * 2 ** min(_BACKOFF_DOUBLINGS, max(0, lost + failed - 1))
    if outcome.kind == "released":
        pause = 0
    core.freed(change, records.release_all(change.db, change.now, job, outcome.reason))
    requeue(core, change, job, outcome.reason, outcome.message, pause, **count)


def requeue(
    core: Core, change: Change, job: JobRow, reason: str, message: str, pause_ns: int = 0, **columns: Any
) -> None:
    """Back to PENDING, through PREEMPTING from RUNNING. Its leases must be released by the caller."""
    if (job.state, PENDING) not in states.TRANSITIONS and job.state != PREEMPTING:
        job = records.transition(change.db, change.now, job, PREEMPTING, reason, message)
    if job.state == PREEMPTING:
        reason = "requeued"
    not_before = change.now.control_ns + pause_ns
    row = records.transition(
        change.db,
        change.now,
        job,
        PENDING,
        reason,
        f"attempt {job.attempt} ended: {message}",
        not_before_control_ns=not_before,
        stop_reason="",
        **columns,
    )
    change.after.append(lambda: core.book.add_job(row))


def ask_stop(change: Change, job: JobRow, attempt: Row[Any], reason: str) -> None:
    """Remember why, and put the stop in the outbox, due now. The end is what observation says."""
    change.db.execute(update(jobs).where(jobs.c.id == job.id).values(stop_reason=reason))
    records.enqueue(change.db, change.now, "stop", attempt.submission_id, job.id, {"reason": reason})
    waits = (outbox.c.kind == "stop") & (outbox.c.submission_id == attempt.submission_id)
    change.db.execute(update(outbox).where(waits).values(next_control_ns=0, payload={"reason": reason}))
