"""`Service`: the facade of the control plane (see `api.Control`), thread-safe and synchronous."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select, update

from moorage.cluster.backend import Backend
from moorage.configs.pool import PoolSettings
from moorage.configs.teams import Teams
from moorage.errors import Conflict, Forbidden, NotFound
from moorage.runtime.control import (
    admission,
    draining,
    growth,
    guarding,
    lifecycle,
    outcome,
    preempting,
    quotas,
    records,
    tokens,
    views,
)
from moorage.runtime.control.api import (
    FINAL,
    PENDING,
    RUNNING,
    STOPPED,
    AttemptView,
    Caller,
    EndpointView,
    GrowAsk,
    JobView,
    NoticeView,
    SubleaseView,
    Submission,
    WhyView,
)
from moorage.runtime.control.book import Book, policy_of, request_of
from moorage.runtime.control.clock import Clock, SystemClock
from moorage.runtime.control.core import Core
from moorage.runtime.control.cost import Fold
from moorage.runtime.control.explaining import Explainer, holdings
from moorage.runtime.control.launching import LaunchSettings
from moorage.runtime.control.loop import Loop
from moorage.runtime.control.packing import Packing
from moorage.runtime.control.records import JobRow
from moorage.runtime.control.spending import Spending
from moorage.runtime.control.store import Store, record
from moorage.runtime.control.tables import attempts, events, jobs, subleases
from moorage.runtime.control.usage import Usage
from moorage.scheduling.guard import GuardPolicy
from moorage.scheduling.model import WHOLE, DeviceRule, Policy

MAX_EVENTS = 1000


class Service:
    """Opens the store, makes tokens, and owns the loop. Call `start()` to run it, or `loop.tick()` by hand."""

    def __init__(
        self,
        *,
        url: str,
        teams: Teams,
        backend: Backend,
        token_folder: Path,
        where: LaunchSettings,
        settings: PoolSettings | None = None,
        clock: Clock | None = None,
        policy: Policy | None = None,
        guard: GuardPolicy | None = None,
    ) -> None:
        self.store = Store(url, clock or SystemClock())
        self._tokens = token_folder
        with self.store.write() as db:
            teams = quotas.begin(db, self.store.clock.now(), teams)
        self.core = Core(
            store=self.store,
            book=Book(teams, settings),
            settings=settings or PoolSettings(),
            device_rule=DeviceRule(str(backend.device_rule)),
            policy=policy or policy_of(settings or PoolSettings()),
            packing=Packing(self.store, settings or PoolSettings()),
            spending=Spending(self.store, teams, settings or PoolSettings()),
        )
        with self.core.change() as change:
            tokens.provision(change.db, change.now, token_folder, teams)
            # Whoever waited for these is gone with the process that answered them.
            change.db.execute(update(subleases).where(subleases.c.state == "WAITING").values(state="EXPIRED"))
            preempting.renew(self.core, change)
            record(change.db, change.now, "control.started", {"teams": sorted(teams.teams)})
        self.core.reload()
        self.loop = Loop(self.core, backend, where, guard=guard)
        self._explainer = Explainer(self.core, self.loop.policy)
        self._fold = Fold()
        self._usage = Usage()

    @property
    def teams(self) -> Teams:
        """The tree in force."""
        return self.core.book.teams

    def start(self) -> None:
        self.loop.start()

    def close(self) -> None:
        """Stop the loop and close the store. Jobs go on; the next start picks them up."""
        self.loop.stop()
        self.core.packing.close()
        self.store.close()

    # -- identity and submission

    def authenticate(self, bearer: str | None) -> Caller:
        with self.store.read() as db:
            return tokens.authenticate(db, bearer)

    def check_submission(
        self, caller: Caller, metadata: Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> str:
        return admission.resolve_team(caller, self.teams, metadata, headers)

    def submit(
        self,
        caller: Caller,
        submission: Submission,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        team = admission.resolve_team(caller, self.teams, submission.metadata, headers)
        submission = admission.validate(submission)
        ask = admission.parse(submission, headers, team, self.teams)
        digest = admission.content_digest(submission, ask)
        core = self.core
        with core.change("submit") as change:
            known = admission.known_job(change.db, caller, submission, idempotency_key, digest)
            if known is not None:
                return known
            request = request_of(submission.submission_id or "", team, ask, change.now.control_ns)
            admission.check_feasible(core.book.ledger, request, core.device_rule, core.policy)
            job_id = admission.insert_job(
                change.db,
                change.now,
                self.store.cluster_id,
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

    # -- jobs

    def job(self, caller: Caller, job_id: str) -> JobView:
        with self.store.lock, self.store.read() as db:
            row = self._visible(db, caller, job_id)
            return self._view(db, row)

    def jobs(self, caller: Caller) -> list[JobView]:
        query = select(jobs).where(jobs.c.deleted_ns.is_(None)).order_by(jobs.c.created_ns.desc(), jobs.c.id)
        if not caller.is_admin:
            query = query.where(jobs.c.team.in_(caller.teams))
        with self.store.lock, self.store.read() as db:
            return [self._view(db, row) for row in db.execute(query).all()]

    def why(self, caller: Caller, job_id: str) -> WhyView:
        with self.store.lock, self.store.read() as db:
            row = self._visible(db, caller, job_id)
            view, held = self._view(db, row), holdings(db, row, self.store.clock.now())
        explanation = None if view.final else self._explainer.of(row.id)
        return WhyView(job=view, explanation=explanation, holds=tuple(held))

    def stop(self, caller: Caller, job_id: str) -> bool:
        core = self.core
        with core.change("stop") as change:
            job = self._visible(change.db, caller, job_id)
            self._may_change(caller, job)
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

    def delete(self, caller: Caller, job_id: str) -> bool:
        with self.core.change() as change:
            job = self._visible(change.db, caller, job_id)
            self._may_change(caller, job)
            if job.state not in FINAL:
                raise Conflict(f"job {job.id} is {job.state}", todo="stop it first", code="job-not-final")
            change.db.execute(update(jobs).where(jobs.c.id == job.id).values(deleted_ns=change.now.wall_ns))
            launched = attempts.c.launched_ns.is_not(None)
            asked = select(attempts.c.submission_id).where(attempts.c.job_id == job.id, launched)
            for submission_id in list(change.db.execute(asked).scalars()):
                records.enqueue(change.db, change.now, "forget", submission_id, job.id, {})
            record(
                change.db, change.now, "job.deleted", principal=caller.principal, team=job.team, job_id=job.id
            )
        self.core.wake.set()
        return True

    def attempts(self, job_id: str) -> list[AttemptView]:
        with self.store.read() as db:
            return views.attempt_views(db, job_id)

    # -- growth and endpoints

    def grow(self, caller: Caller, ask: GrowAsk) -> SubleaseView:
        return growth.grow(self.core, caller, ask)

    def release_sublease(self, caller: Caller, lease_id: str) -> bool:
        return growth.release(self.core, caller, lease_id)

    def publish_endpoint(
        self, caller: Caller, name: str, app: str, route: str, job_id: str | None = None
    ) -> EndpointView:
        return growth.publish(self.core, caller, name, app, route, job_id)

    def endpoint(self, name: str) -> EndpointView:
        with self.store.read() as db:
            found = growth.endpoint_views(db, name)
        if not found:
            raise NotFound(f"there is no endpoint {name!r}", code="endpoint-not-found")
        return found[0]

    def endpoints(self, caller: Caller) -> list[EndpointView]:
        with self.store.read() as db:
            return [view for view in growth.endpoint_views(db) if caller.may_see(view.team)]

    # -- preemption

    def notice(self, caller: Caller, job_id: str) -> NoticeView | None:
        with self.store.lock, self.store.read() as db:
            return preempting.notice_view(self.core, self._visible(db, caller, job_id))

    def noticed(self, job_id: str) -> bool:
        return job_id in self.core.book.leaving

    def answer_notice(self, caller: Caller, job_id: str, said: str, step: int | None = None) -> bool:
        with self.core.change() as change:
            job = growth.own_job(change.db, caller, job_id)
            return preempting.answer(self.core, change, job, said, step)

    # -- the pool

    def status(self, caller: Caller) -> dict[str, Any]:
        now = self.store.clock.now()
        with self.store.lock, self.store.read() as db:
            return views.status(
                db,
                self.core.book,
                self.loop.unreachable,
                now.wall_ns,
                now.control_ns,
                caller,
                self.core.spending.accounts(),
            )

    def events(
        self,
        caller: Caller,
        after: int = 0,
        limit: int = 100,
        job_id: str | None = None,
        last: bool = False,
    ) -> list[dict[str, Any]]:
        order = events.c.seq.desc() if last else events.c.seq
        query = select(events).where(events.c.seq > after).order_by(order)
        with self.store.read() as db:
            if job_id is not None:
                self._visible(db, caller, job_id)
                query = query.where(events.c.job_id == job_id)
            elif not caller.is_admin:
                query = query.where(events.c.team.in_(caller.teams))
            rows = db.execute(query.limit(max(1, min(limit, MAX_EVENTS)))).all()
        return [dict(row._mapping) for row in (reversed(rows) if last else rows)]

    def quotas(self, caller: Caller) -> dict[str, Any]:
        with self.store.read() as db:
            return quotas.in_force(db)

    def put_quotas(
        self, caller: Caller, text: str, base: int | None = None, force: bool = False, dry: bool = False
    ) -> dict[str, Any]:
        return quotas.change(self.core, self._tokens, caller, text, base=base, force=force, dry=dry)

    def drain(self, caller: Caller, node: str, drain: bool, why: str = "") -> dict[str, Any]:
        return draining.change(self.core, caller, node, drain, why)

    def cost(self, caller: Caller) -> dict[str, Any]:
        now = self.store.clock.now().control_ns
        with self.store.lock, self.store.read() as db:
            self._fold.advance(db)
            return self._fold.report(now, None if caller.is_admin else caller.teams)

    def usage(self, caller: Caller, minutes: int, points: int) -> dict[str, Any]:
        now = self.store.clock.now()
        with self.store.lock, self.store.read() as db:
            self._usage.advance(db)
            held = self._usage.report(now.control_ns, minutes, points)
        ledger = self.core.book.ledger
        return {
            "from_ns": now.wall_ns - minutes * 60 * 10**9,
            "to_ns": now.wall_ns,
            "capacity_milli_gpu": int(ledger.devices[ledger.up].sum()) * WHOLE,
            "teams": held,
        }

    def guard(self, caller: Caller) -> dict[str, Any]:
        with self.store.read() as db:
            return self.loop.guard.report(db, caller)

    def health(self) -> dict[str, Any]:
        now = self.store.clock.now().control_ns
        with self.store.read() as db:
            counts = _states(db)
        loop = self.loop
        return {
            "ok": True,
            "ray": "unreachable" if loop.unreachable else "reachable",
            "message": loop.unreachable,
            "tick_age_ms": (now - loop.last_tick_ns) // 10**6 if loop.last_tick_ns else None,
            "pending": counts.get(PENDING, 0),
            "running": counts.get(RUNNING, 0),
        }

    def metrics(self) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        with self.store.lock, self.store.read() as db:
            counts = _states(db)
            ledger = self.core.book.ledger
            held = {name: int(ledger.used[row, 0]) / 1000 for name, row in ledger.team_row.items()}
            quota = {name: int(ledger.quota[row, 0]) / 1000 for name, row in ledger.team_row.items()}
            free = int(ledger.milli_free[ledger.up].sum()) / 1000
            total = int(ledger.capacity()[0]) / 1000
            self._fold.advance(db)
            bill = self._fold.report(self.store.clock.now().control_ns)
            found = guarding.counts(db)
        return {
            "moorage_jobs": {(("state", state),): float(n) for state, n in counts.items()},
            "moorage_team_gpus_held": {(("team", team),): gpus for team, gpus in held.items()},
            "moorage_team_gpus_quota": {(("team", team),): gpus for team, gpus in quota.items()},
            "moorage_pool_gpus_free": {(): free},
            "moorage_pool_gpus": {(): total},
            "moorage_ray_reachable": {(): 0.0 if self.loop.unreachable else 1.0},
            "moorage_team_gpu_seconds_total": {
                (("team", row["team"]),): row["milli_gpu_ns"] / 1e12 for row in bill["teams"]
            },
            "moorage_guard_sees": {(): 0.0 if self.loop.guard.blind else 1.0},
            **guarding.samples(found),
            "moorage_team_cost_dollars_total": {
                (("team", row["team"]),): row["micro_dollars"] / 1e6 for row in bill["teams"]
            },
        }

    # -- inside

    def _view(self, db: Connection, row: JobRow) -> JobView:
        control_ns = self.store.clock.now().control_ns
        return views.job_view(db, self.core.book, row, self.loop.unreachable, control_ns)

    @staticmethod
    def _visible(db: Connection, caller: Caller, job_id: str) -> JobRow:
        row = records.job_row(db, job_id)
        if row is None or row.deleted_ns is not None or not caller.may_see(row.team):
            raise NotFound(
                f"there is no job {job_id!r}", todo="list yours with: moorage jobs", code="job-not-found"
            )
        return row

    @staticmethod
    def _may_change(caller: Caller, job: JobRow) -> None:
        """A job's token may stop itself and what it submitted, nothing else."""
        if caller.kind == "job" and job.id != caller.job_id and job.principal != caller.principal:
            raise Forbidden(
                "a job's token may change only that job and its own submissions", code="job-forbidden"
            )


def _states(db: Connection) -> dict[str, int]:
    rows = db.execute(select(jobs.c.state, func.count()).group_by(jobs.c.state))
    return {str(row[0]): int(row[1]) for row in rows}
