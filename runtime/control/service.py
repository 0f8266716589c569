"""`Service`: the facade of the control plane (see `api.Control`), thread-safe and synchronous."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from sqlalchemy import Connection, func, select, update

from moorage.cluster.backend import Backend
from moorage.configs.pool import PoolSettings
from moorage.configs.teams import Teams
from moorage.errors import NotFound
from moorage.runtime import answers
from moorage.runtime.control import (
    admission,
    draining,
    growth,
    measures,
    preempting,
    quotas,
    resizing,
    serving,
    submitting,
    tokens,
    views,
)
from moorage.runtime.control.api import (
    PENDING,
    RUNNING,
    Caller,
    EndpointView,
    GrowAsk,
    JobView,
    ReplicaReport,
    Submission,
    WhyView,
)
from moorage.runtime.control.book import Book, policy_of
from moorage.runtime.control.clock import Clock, SystemClock
from moorage.runtime.control.core import Core
from moorage.runtime.control.cost import Fold
from moorage.runtime.control.explaining import Explainer, holdings
from moorage.runtime.control.launching import LaunchSettings
from moorage.runtime.control.leadership import Standing
from moorage.runtime.control.loop import Loop
from moorage.runtime.control.packing import Packing
from moorage.runtime.control.records import JobRow
from moorage.runtime.control.spending import Spending
from moorage.runtime.control.store import Store, record
from moorage.runtime.control.tables import events, jobs, subleases
from moorage.runtime.control.usage import Usage
from moorage.scheduling.guard import GuardPolicy
from moorage.scheduling.model import WHOLE, DeviceRule, Policy

MAX_EVENTS = 1000
STOP_S, FENCED_S = 35.0, 3.0
"""How long the end waits for the loop's round: what it asked Ray for may take that long. When another one leads, no
longer than it takes to be sure that nothing more comes of it."""


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
        standing: Standing | None = None,
    ) -> None:
        self.store = Store(url, clock or SystemClock(), standing)
        backend.permit = self.store.leader.confirm
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
            revoked = tokens.provision(change.db, change.now, token_folder, teams)
            # Whoever waited for these is gone with the process that answered them.
            change.db.execute(update(subleases).where(subleases.c.state == "WAITING").values(state="EXPIRED"))
            preempting.renew(self.core, change)
            resizing.renew(self.core, change)
            record(change.db, change.now, "control.started", {"teams": sorted(teams.teams)})
            change.after.append(lambda: tokens.remove(revoked))
        self.core.reload()
        self.loop = Loop(self.core, backend, where, guard=guard)
        self._explainer = Explainer(self.core, self.loop.policy)
        self._fold = Fold()
        self._usage = Usage()
        self._tally = measures.Tally()

    @property
    def teams(self) -> Teams:
        """The tree in force."""
        return self.core.book.teams

    def start(self) -> None:
        self.store.leader.start()
        self.loop.start()

    def close(self) -> None:
        """Stop the loop and close the store. Jobs go on; the next start picks them up."""
        self.loop.stop(FENCED_S if self.store.leader.lost.is_set() else STOP_S)
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
        return submitting.submit(self.core, caller, submission, headers, idempotency_key)

    # -- jobs

    def job(self, caller: Caller, job_id: str) -> JobView:
        with self.store.lock, self.store.read() as db:
            row = submitting.visible(db, caller, job_id)
            return self._view(db, row)

    def jobs(self, caller: Caller) -> list[JobView]:
        query = select(jobs).where(jobs.c.deleted_ns.is_(None)).order_by(jobs.c.created_ns.desc(), jobs.c.id)
        if not caller.is_admin:
            query = query.where(jobs.c.team.in_(caller.teams))
        with self.store.lock, self.store.read() as db:
            return [self._view(db, row) for row in db.execute(query).all()]

    def why(self, caller: Caller, job_id: str) -> WhyView:
        with self.store.lock, self.store.read() as db:
            row = submitting.visible(db, caller, job_id)
            view, held = self._view(db, row), holdings(db, row, self.store.clock.now())
            asks = growth.asks_view(self.core.book, db, row.id)
        explanation = None if view.final else self._explainer.of(row.id)
        return WhyView(job=view, explanation=explanation, holds=held, asks=asks)

    def stop(self, caller: Caller, job_id: str) -> bool:
        return submitting.stop(self.core, caller, job_id)

    def delete(self, caller: Caller, job_id: str) -> bool:
        return submitting.delete(self.core, caller, job_id)

    def attempts(self, job_id: str) -> list[answers.Attempt]:
        with self.store.read() as db:
            return views.attempt_views(db, job_id)

    # -- growth and endpoints

    def grow(self, caller: Caller, ask: GrowAsk) -> answers.Lease:
        return growth.grow(self.core, caller, ask)

    def release_sublease(self, caller: Caller, lease_id: str) -> bool:
        return growth.release(self.core, caller, lease_id)

    def withdraw_ask(self, caller: Caller, job_id: str, name: str) -> bool:
        return growth.withdraw(self.core, caller, job_id, name)

    def publish_endpoint(
        self, caller: Caller, name: str, app: str, route: str, job_id: str | None = None
    ) -> EndpointView:
        return serving.publish(self.core, caller, name, app, route, job_id)

    def report_replicas(self, caller: Caller, name: str, said: ReplicaReport) -> EndpointView:
        return serving.report(self.core, caller, name, said)

    def endpoint(self, name: str) -> EndpointView:
        with self.store.read() as db:
            found = serving.endpoint_views(self.core.book, db, name)
        if not found:
            raise NotFound(f"there is no endpoint {name!r}", code="endpoint-not-found")
        return found[0]

    def endpoints(self, caller: Caller) -> list[EndpointView]:
        with self.store.read() as db:
            return [view for view in serving.endpoint_views(self.core.book, db) if caller.may_see(view.team)]

    # -- preemption

    def notice(self, caller: Caller, job_id: str) -> answers.Notice | None:
        with self.store.lock, self.store.read() as db:
            return preempting.notice_view(self.core, submitting.visible(db, caller, job_id))

    def noticed(self, job_id: str) -> bool:
        return job_id in self.core.book.leaving

    def answer_notice(self, caller: Caller, job_id: str, said: str, step: int | None = None) -> bool:
        with self.core.change() as change:
            job = growth.own_job(change.db, caller, job_id)
            return preempting.answer(self.core, change, job, said, step)

    def lease_now(self, caller: Caller, job_id: str) -> answers.HeldLease | None:
        with self.store.lock, self.store.read() as db:
            return resizing.lease_now(self.core, db, submitting.visible(db, caller, job_id))

    def lease_changes(self, job_id: str) -> int:
        return self.core.book.reloads + self.core.book.changes.get(job_id, 0)

    def follow_lease(
        self,
        caller: Caller,
        job_id: str,
        *,
        follows: bool = False,
        workers: int | None = None,
        wants: int | None = None,
    ) -> bool:
        with self.core.change("resize") as change:
            job = growth.own_job(change.db, caller, job_id)
            if follows:
                resizing.follow(self.core, change, job)
            if workers is None and wants is None:
                return False
            return resizing.give(self.core, change, job, workers, wants)

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
    ) -> list[answers.Event]:
        order = events.c.seq.desc() if last else events.c.seq
        query = select(events).where(events.c.seq > after).order_by(order)
        with self.store.read() as db:
            if job_id is not None:
                submitting.visible(db, caller, job_id)
                query = query.where(events.c.job_id == job_id)
            elif not caller.is_admin:
                query = query.where(events.c.team.in_(caller.teams))
            rows = db.execute(query.limit(max(1, min(limit, MAX_EVENTS)))).all()
        return [cast(answers.Event, dict(row._mapping)) for row in (reversed(rows) if last else rows)]

    def quotas(self, caller: Caller) -> answers.Quotas:
        with self.store.read() as db:
            return quotas.in_force(db)

    def put_quotas(
        self, caller: Caller, text: str, base: int | None = None, force: bool = False, dry: bool = False
    ) -> answers.QuotasPut:
        return quotas.change(self.core, self._tokens, caller, text, base=base, force=force, dry=dry)

    def drain(self, caller: Caller, node: str, drain: bool, why: str = "") -> answers.Drained:
        return draining.change(self.core, caller, node, drain, why)

    def cost(self, caller: Caller) -> dict[str, Any]:
        now = self.store.clock.now().control_ns
        with self.store.lock, self.store.read() as db:
            self._fold.advance(db)
            return self._fold.report(now, None if caller.is_admin else caller.teams)

    def usage(self, caller: Caller, minutes: int, points: int) -> answers.Usage:
        now = self.store.clock.now()
        with self.store.lock, self.store.read() as db:
            self._usage.advance(db)
            held = self._usage.report(now.control_ns, minutes, points)
            ledger = self.core.book.ledger
            devices = int(ledger.devices[ledger.up].sum())
        return {
            "from_ns": now.wall_ns - minutes * 60 * 10**9,
            "to_ns": now.wall_ns,
            "capacity_milli_gpu": devices * WHOLE,
            "teams": held,
        }

    def guard(self, caller: Caller) -> answers.GuardReport:
        with self.store.read() as db:
            return self.loop.guard.report(db, caller)

    def health(self) -> dict[str, Any]:
        now = self.store.clock.now().control_ns
        with self.store.read() as db:
            counts = _states(db)
        loop = self.loop
        return {
            "ok": not self.store.leader.lost.is_set(),
            "role": "leader",
            "generation": self.store.leader.generation,
            "ray": "unreachable" if loop.unreachable else "reachable",
            "message": loop.unreachable,
            "tick_age_ms": (now - loop.last_tick_ns) // 10**6 if loop.last_tick_ns else None,
            "pending": counts.get(PENDING, 0),
            "running": counts.get(RUNNING, 0),
        }

    def ready(self) -> dict[str, Any]:
        self.store.leader.confirm()
        return {"ready": True, "role": "leader", "generation": self.store.leader.generation}

    def metrics(self) -> measures.Samples:
        with self.store.lock, self.store.read() as db:
            self._fold.advance(db)
            self._tally.advance(db)
            bill = self._fold.report(self.store.clock.now().control_ns)
            return measures.samples(self, db, self._tally, bill)

    # -- inside

    def _view(self, db: Connection, row: JobRow) -> JobView:
        control_ns = self.store.clock.now().control_ns
        return views.job_view(db, self.core.book, row, self.loop.unreachable, control_ns)


def _states(db: Connection) -> dict[str, int]:
    rows = db.execute(select(jobs.c.state, func.count()).group_by(jobs.c.state))
    return {str(row[0]): int(row[1]) for row in rows}
