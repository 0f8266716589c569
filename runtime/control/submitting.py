"""Submit, stop, delete: what a user does with a job, each in one transaction with its event."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, select, update

from moorage.errors import Conflict, Forbidden, NotFound
from moorage.runtime.control import admission, lifecycle, outcome, records
from moorage.runtime.control.api import FINAL, PENDING, STOPPED, Caller, Submission
from moorage.runtime.control.book import request_of
from moorage.runtime.control.core import Core
from moorage.runtime.control.records import JobRow
from moorage.runtime.control.store import record
from moorage.runtime.control.tables import attempts, jobs


def submit(
    core: Core,
    caller: Caller,
    submission: Submission,
    headers: Mapping[str, str] | None,
    idempotency_key: str | None,
) -> str:
    """The job's id once it is durable; see `api.Control.submit`."""
    teams = core.book.teams
    team = admission.resolve_team(caller, teams, submission.metadata, headers)
    submission = admission.validate(submission)
    ask = admission.parse(submission, headers, team, teams)
    digest = admission.content_digest(submission, ask)
    with core.store.lock:
        ledger = admission.at_its_largest(core.book.ledger, core.settings.autoscaling.types())
    # Not in the transaction: the first to ask may have to wait for the planner's kernels to be compiled.
    refusal = admission.refusal(
        ledger, request_of(submission.submission_id or "", team, ask, 0), core.device_rule, core.policy
    )
    with core.change("submit") as change:
        known = admission.known_job(change.db, caller, submission, idempotency_key, digest)
        if known is not None:
            return known
        if refusal is not None:
            raise refusal
        job_id = admission.insert_job(
            change.db,
            change.now,
            core.store.cluster_id,
            caller,
            submission,
            ask,
            digest,
            idempotency_key,
            core.settings.max_pending,
        )
        row = records.job_row(change.db, job_id)
        change.after.append(lambda: core.book.add_job(row))  # type: ignore[arg-type]
    core.wake.set()
    return job_id


def stop(core: Core, caller: Caller, job_id: str) -> bool:
    """Ask that a job ends, or take it out of the queue; False when it has ended. NotFound, Forbidden."""
    with core.change("stop") as change:
        job = visible(change.db, caller, job_id)
        _may_change(caller, job)
        if job.state in FINAL:
            return False
        record(
            change.db,
            change.now,
            "job.stop-asked",
            principal=caller.principal,
            team=job.team,
            job_id=job.id,
        )
        if job.state == PENDING:
            records.transition(
                change.db,
                change.now,
                job,
                STOPPED,
                "stopped-by-user",
                "stopped by its user while it waited",
            )
            change.after.append(lambda: core.book.drop(job.id))
        else:
            attempt = records.current_attempt(change.db, job)
            lifecycle.ask_stop(change, job, attempt, outcome.USER_STOP)
    core.wake.set()
    return True


def delete(core: Core, caller: Caller, job_id: str) -> bool:
    """Hide a job that has ended, and have Ray forget its attempts. Conflict while it has not; NotFound, Forbidden."""
    with core.change("delete") as change:
        job = visible(change.db, caller, job_id)
        _may_change(caller, job)
        if job.state not in FINAL:
            raise Conflict(f"job {job.id} is {job.state}", todo="stop it first", code="job-not-final")
        change.db.execute(update(jobs).where(jobs.c.id == job.id).values(deleted_ns=change.now.wall_ns))
        launched = attempts.c.launched_ns.is_not(None)
        asked = select(attempts.c.submission_id).where(attempts.c.job_id == job.id, launched)
        for submission_id in list(change.db.execute(asked).scalars()):
            records.enqueue(change.db, change.now, "forget", submission_id, job.id, {})
        record(change.db, change.now, "job.deleted", principal=caller.principal, team=job.team, job_id=job.id)
    core.wake.set()
    return True


def visible(db: Connection, caller: Caller, job_id: str) -> JobRow:
    """The job, or NotFound: also for one of another team's, and one that was deleted."""
    row = records.job_row(db, job_id)
    if row is None or row.deleted_ns is not None or not caller.may_see(row.team):
        raise NotFound(
            f"there is no job {job_id!r}", todo="list yours with: moorage jobs", code="job-not-found"
        )
    return row


def _may_change(caller: Caller, job: JobRow) -> None:
    """A job's token may stop itself and what it submitted, nothing else."""
    if caller.kind == "job" and job.id != caller.job_id and job.principal != caller.principal:
        raise Forbidden(
            "a job's token may change only that job and its own submissions", code="job-forbidden"
        )
