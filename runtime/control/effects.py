"""The outbox at work: each row is one effect on Ray, repeated until observation or an answer closes it.

Starts are serialised per node, and wait (up to a deadline) until Ray has freed the devices that the ledger says are
free: the raylet picks the device, and its rule is predictable only then.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

from sqlalchemy import Row, select, update

from moorage.cluster.backend import Backend, BackendUnavailable, LaunchRefused, Observation
from moorage.errors import MoorageError, Unavailable
from moorage.runtime.control import failpoints, guarding, launching, records, tokens
from moorage.runtime.control.api import ADMITTED, FAILED, QUARANTINED, STARTING, STOPPED
from moorage.runtime.control.core import Change, Core
from moorage.runtime.control.observing import launched
from moorage.runtime.control.outcome import PREEMPT
from moorage.runtime.control.records import JobRow
from moorage.runtime.control.states import ON_RAY
from moorage.runtime.control.store import record
from moorage.runtime.control.tables import attempts, leases, outbox, placements
from moorage.runtime.control.uploads import Uploads
from moorage.scheduling.guard import Target
from moorage.scheduling.model import Lease

log = logging.getLogger(__name__)
_REPEAT_STOP_NS = 5 * 10**9
_RETRY_NS, _RETRY_DOUBLINGS = 10**9, 5
LAUNCH_TRIES = 6
"""Starts that failed while others got through, before it is the job's own fault: a minute, by their pauses."""


class Effects:
    """Runs what the outbox holds. One instance, called by the loop's thread only."""

    def __init__(self, core: Core, backend: Backend, where: launching.LaunchSettings) -> None:
        self._core, self._backend, self._where = core, backend, where
        self.failures: Counter[str] = Counter()
        self._waited: dict[str, int] = {}
        """Attempt -> control time since which its start waits for Ray to free devices."""
        self._failing: dict[str, int] = {}
        """Attempt -> how many others had been started when its own start first failed."""
        self._started = 0
        self._uploads = Uploads(backend.stage, core.wake.set)

    def run(self, seen: Observation) -> int:
        """Try every open row once, in order; how many effects were done. Raises `BackendUnavailable`, and
        `Unavailable` where the store is away.

        A row that fails is put off, longer each time: the next round begins with the others, so no one job can
        hold up the starts and stops of all.
        """
        now = self._core.store.clock.now()
        with self._core.store.read() as db:
            rows = db.execute(
                select(outbox)
                .where(outbox.c.done_ns.is_(None), outbox.c.next_control_ns <= now.control_ns)
                .order_by(outbox.c.id)
            ).all()
            busy = self._starting_nodes(db, now.control_ns)
        done = 0
        for row in rows:
            self._core.steps += 1
            try:
                done += self._run(row, seen, busy)
            except Exception as error:
                # The store's, as when somebody else has a job's row: no fault of the effect's.
                store = isinstance(error, Unavailable) and not isinstance(error, BackendUnavailable)
                self.failures[row.kind] += not store
                with self._core.change() as change:  # raises where the store is away for all
                    self._later(change, row, _RETRY_NS * 2 ** min(_RETRY_DOUBLINGS, row.tries))
                if store:
                    log.warning("%s of %s is put off: %s", row.kind, row.submission_id, error)
                    continue
                if row.kind == "launch" and self._poisonous(row, error):
                    self._quarantine(row, error)
                    continue
                if isinstance(error, BackendUnavailable):
                    raise
                log.exception("%s of %s failed", row.kind, row.submission_id)
        self._uploads.sweep()
        return done

    def _run(self, row: Row[Any], seen: Observation, busy: set[str]) -> bool:
        if row.kind == "launch":
            return self._launch(row, seen, busy)
        if row.kind == guarding.EFFECT:
            return self._guard(row)
        return self._stop(row) if row.kind == "stop" else self._forget(row)

    # -- launch

    def _launch(self, row: Row[Any], seen: Observation, busy: set[str]) -> bool:
        with self._core.store.lock, self._core.store.read() as db:
            job = records.job_row(db, row.job_id)
            assert job is not None
            lease = records.read_lease(
                db,
                db.execute(
                    select(leases)
                    .join(attempts, attempts.c.lease_id == leases.c.id)
                    .where(attempts.c.submission_id == row.submission_id)
                ).one(),
            )
        if job.state != ADMITTED:
            return False
        if job.stop_reason and row.begun_ns is None:
            self._cancel(job, row)
            return True
        homes = {task.node for task in lease.tasks}
        try:
            brought = self._uploads.ready(launching.packages_of(job))
        except LaunchRefused as error:
            self._refused(job, row, error)
            return True
        if not brought or (row.begun_ns is None and not self._may_start(row, lease, homes, seen, busy)):
            busy |= homes  # starts on a node keep their order
            return False
        busy |= homes
        prepared = self._begin(row, job, lease)
        failpoints.hit("launch.begun")
        try:
            self._backend.launch(launching.complete(prepared, self._where))
        except LaunchRefused as error:
            self._refused(job, row, error)
            return True
        failpoints.hit("launch.after-effect")
        with self._core.change() as change:
            launched(change, job, "launch-accepted")
            records.close_outbox(change.db, change.now, row.submission_id, ("launch",))
        failpoints.hit("launch.after-commit")
        self._waited.pop(row.submission_id, None)
        self._failing.pop(row.submission_id, None)
        self._started += 1
        return True

    def _poisonous(self, row: Row[Any], error: Exception) -> bool:
        """Whether this start fails and not the cluster: it failed many times, and others got through since."""
        if isinstance(error, MoorageError) and not isinstance(error, BackendUnavailable):
            return False
        before = self._failing.setdefault(row.submission_id, self._started)
        return bool(row.tries + 1 >= LAUNCH_TRIES and self._started > before)

    def _quarantine(self, row: Row[Any], error: Exception) -> None:
        """Given up, and stopped in case that the cluster has it after all."""
        self._backend.stop(row.submission_id)
        self._failing.pop(row.submission_id, None)
        text = (
            f"given up after {row.tries + 1} starts that failed while others got through; the last: {error}"
        )
        log.error("%s: %s", row.submission_id, text)
        with self._core.change() as change:
            job = records.job_row(change.db, row.job_id)
            assert job is not None
            records.close_outbox(change.db, change.now, row.submission_id, ("launch", "stop"))
            records.set_attempt(change.db, job, state="LOST", ended_ns=change.now.wall_ns, message=text)
            records.transition(change.db, change.now, job, QUARANTINED, "launch-failed", text)
            self._core.freed(change, records.release_all(change.db, change.now, job, "launch-failed"))

    def _begin(self, row: Row[Any], job: JobRow, lease: Lease) -> dict[str, Any]:
        """Write down exactly what will be launched, once: a repeat after a crash sends the same content."""
        if row.begun_ns is not None:
            return dict(row.payload)
        with self._core.change() as change:
            prepared = launching.prepare(job, job.attempt, lease, self._core.book.ray_ids, self._where)
            change.db.execute(
                update(outbox)
                .where(outbox.c.id == row.id)
                .values(begun_ns=change.now.wall_ns, payload=prepared)
            )
            tokens.put(
                change.db,
                change.now,
                f"job:{row.submission_id}",
                "job",
                job.team,
                [job.team],
                tokens.job_token(self._where.secret, row.submission_id),
                job_id=job.id,
            )
        return prepared

    def _cancel(self, job: JobRow, row: Row[Any]) -> None:
        """Stopped before Ray was asked for anything."""
        with self._core.change() as change:
            records.close_outbox(change.db, change.now, row.submission_id, ("launch", "stop"))
            ended = {
                "state": STOPPED,
                "ended_ns": change.now.wall_ns,
                "message": "stopped before it was started",
            }
            records.set_attempt(change.db, job, **ended)
            text = "stopped by its user before it was started"
            records.transition(change.db, change.now, job, STOPPED, "stopped-by-user", text)
            self._core.freed(change, records.release_all(change.db, change.now, job, "stopped-by-user"))

    def _refused(self, job: JobRow, row: Row[Any], error: LaunchRefused) -> None:
        with self._core.change() as change:
            records.close_outbox(change.db, change.now, row.submission_id, ("launch", "stop"))
            ended = {"state": FAILED, "ended_ns": change.now.wall_ns, "message": str(error)}
            records.set_attempt(change.db, job, **ended)
            records.transition(change.db, change.now, job, FAILED, "launch-refused", str(error))
            self._core.freed(change, records.release_all(change.db, change.now, job, "launch-refused"))

    def _starting_nodes(self, db: Any, control_ns: int) -> set[str]:
        """Nodes on which an attempt that Ray accepted does not run yet, unless it has taken too long."""
        since = control_ns - self._core.settings.start_deadline_ms * 10**6
        rows = db.execute(
            select(placements.c.node)
            .join(attempts, attempts.c.lease_id == placements.c.lease_id)
            .where(attempts.c.state == STARTING, attempts.c.launched_control_ns > since)
        )
        return set(rows.scalars())

    def _may_start(
        self, row: Row[Any], lease: Lease, homes: set[str], seen: Observation, busy: set[str]
    ) -> bool:
        if homes & busy:
            return False
        short = self._not_freed(lease, seen)
        if not short:
            return True
        now = self._core.store.clock.now().control_ns
        since = self._waited.setdefault(row.submission_id, now)
        if now - since < self._core.settings.start_deadline_ms * 10**6:
            return False
        log.warning(
            "start of %s: Ray still holds devices on %s that no lease covers", row.submission_id, short
        )
        with self._core.change() as change:
            record(
                change.db,
                change.now,
                "start.unfreed",
                {"nodes": short, "attempt": row.submission_id},
                team=lease.team,
                job_id=row.job_id,
                lease_id=lease.lease,
            )
        return True

    def _not_freed(self, lease: Lease, seen: Observation) -> list[str]:
        """Nodes where Ray has less GPU free than this lease is about to take."""
        free = {node.name: node.free_milli_gpu for node in seen.nodes if node.alive}
        need: dict[str, int] = {}
        for task in lease.tasks:
            need[task.node] = need.get(task.node, 0) + task.milli_gpu
        return sorted(name for name, amount in need.items() if amount > free.get(name, 0))

    # -- stop and forget

    def _stop(self, row: Row[Any]) -> bool:
        """Ask, and ask again every few seconds until the end is seen; `end_attempt` closes the row."""
        with self._core.store.read() as db:
            job = records.job_row(db, row.job_id)
        if job is None or job.state not in ON_RAY or f"{job.id}-{job.attempt}" != row.submission_id:
            if job is not None and job.state != ADMITTED:
                with self._core.change() as change:
                    records.close_outbox(change.db, change.now, row.submission_id, ("stop",))
            return False
        self._backend.stop(row.submission_id)
        failpoints.hit("stop.after-effect")
        with self._core.change() as change:
            if row.payload.get("reason") == PREEMPT and not row.tries:
                about = {"attempt": job.attempt}
                record(change.db, change.now, "preemption.grace-over", about, team=job.team, job_id=job.id)
            self._later(change, row, _REPEAT_STOP_NS)
        return True

    def _guard(self, row: Row[Any]) -> bool:
        """End what the guard found, again every few seconds until a look shows that it is gone (which closes the row).
        A cluster that does not answer this is no reason to hold up anything else."""
        what = row.payload
        try:
            self._backend.end(Target(what["target"]), what["id"], what["owner"])
        except BackendUnavailable as error:
            log.warning("the guard could not end %s %s: %s", what["target"], what["id"], error)
        failpoints.hit("guard.after-effect")
        with self._core.change() as change:
            self._later(change, row, _REPEAT_STOP_NS)
        return True

    def _forget(self, row: Row[Any]) -> bool:
        self._backend.forget(row.submission_id)
        with self._core.change() as change:
            records.close_outbox(change.db, change.now, row.submission_id, ("forget",))
        return True

    @staticmethod
    def _later(change: Change, row: Row[Any], pause_ns: int) -> None:
        change.db.execute(
            update(outbox)
            .where(outbox.c.id == row.id)
            .values(tries=outbox.c.tries + 1, next_control_ns=change.now.control_ns + pause_ns)
        )
