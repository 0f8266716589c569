"""The guard: what holds GPUs without a lease is seen several times, warned about, and stopped after its grace.

A finding lives in the store: WARNED -> STOPPING -> STOPPED, or CLEARED when it ended by itself or a lease covers it
now. Only the looks before the warning are remembered in memory: a restart sees the thing anew, warns nobody twice,
and keeps the deadline of what was warned about. What is stopped goes through the outbox.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from time import monotonic
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Row, func, insert, select, update

from moorage.cluster.backend import Backend, BackendUnavailable
from moorage.runtime import answers
from moorage.runtime.control import lifecycle, outcome, records, serving
from moorage.runtime.control.api import Caller
from moorage.runtime.control.book import Book
from moorage.runtime.control.clock import Now
from moorage.runtime.control.core import Change, Core
from moorage.runtime.control.states import ON_RAY, WITH_ATTEMPT
from moorage.runtime.control.store import record
from moorage.runtime.control.tables import findings, jobs
from moorage.scheduling.guard import Cover, Finding, GuardPolicy, Holder, Kind, Mode, Seen, Target, judge
from moorage.scheduling.ledger import task_milli_per_device

if TYPE_CHECKING:
    from moorage.runtime.control.measures import Distribution, Labels, Samples

log = logging.getLogger(__name__)
WARNED, STOPPING, STOPPED, CLEARED = "WARNED", "STOPPING", "STOPPED", "CLEARED"
OPEN = (WARNED, STOPPING)
EFFECT = "guard-stop"
LOOKS = 2
"""Observations in a row that say the same, before it is believed."""
MAX_WARNINGS, MAX_STOPS = 100, 20
"""Per look, so that no crowd of findings holds up the loop."""
PATIENCE = 10
MAX_SHOWN = 200
Key = tuple[str, str]


@dataclass(slots=True)
class Sights:
    """What was seen in a row: key -> (looks, first control time, first wall time). An answer that is shown again is not
    another look: what ended after it is still in it."""

    seen: dict[Key, tuple[int, int, int]] = field(default_factory=dict)
    answers: dict[Key, int] = field(default_factory=dict)
    """Which answer each was last seen in."""
    absent: dict[Key, int] = field(default_factory=dict)

    def look(self, found: Mapping[Key, int], open_: Iterable[Key], now: Now, complete: bool = True) -> None:
        """`found`: which answer each is in. What an incomplete look does not show is neither there nor gone: nodes are
        asked in turns then."""
        there = set(found)
        before = {} if complete else self.seen
        again = {
            key: (self.seen[key][0] + (found[key] != self.answers.get(key)), *self.seen[key][1:])
            if key in self.seen
            else (1, now.control_ns, now.wall_ns)
            for key in there
        }
        self.seen = {**before, **again}
        self.answers = {key: found[key] if key in found else self.answers[key] for key in self.seen}
        self.absent = {key: self.absent.get(key, 0) + complete for key in open_ if key not in there}

    def believed(self, key: Key, confirm_ns: int, now: Now) -> bool:
        looks, since, _ = self.seen[key]
        return looks >= LOOKS and now.control_ns - since >= confirm_ns

    def gone(self, key: Key) -> bool:
        return self.absent.get(key, 0) >= LOOKS


class Guard:
    """Called by the loop's thread only, but for `report`."""

    def __init__(self, core: Core, backend: Backend, policy: GuardPolicy) -> None:
        self._core, self._backend, self.policy = core, backend, policy
        self._sights = Sights()
        self._next_ns = self._soonest_ns = 0
        self.last: Seen | None = None
        self.blind = ""
        """Why the guard cannot see now; "" when it can."""

    def look(self) -> None:
        """One look, if it is time for one. Never raises because the cluster does not answer."""
        now = self._core.store.clock.now()
        # Somebody may wait for what a job gives up by what the cluster shows: then also after a slow look.
        if now.control_ns < (self._soonest_ns if self._core.book.shrinking else self._next_ns):
            return
        self._next_ns = self._soonest_ns = now.control_ns + self.policy.interval_ns
        if self.policy.mode is Mode.OFF:
            self._next_ns = self._soonest_ns = 1 << 62
            self._absorb({}, Seen(at_ns=now.wall_ns, holdings=()), off=True)
            return
        began = monotonic()
        try:
            seen = self._backend.holdings(self.policy.devices)
        except BackendUnavailable as error:
            if not self.blind:
                log.warning("the guard sees nothing: %s", error)
            self.blind = str(error)
            return
        finally:
            # The loop waits for a look: a slow one is not repeated before ten times as long has passed.
            self._next_ns = max(self._next_ns, now.control_ns + int((monotonic() - began) * PATIENCE * 1e9))
        self.blind, self.last = "", seen
        with self._core.store.lock, self._core.store.read() as db:
            covers, apps = leased(db, self._core.book, seen)
        found = judge(seen, covers, apps, self.policy.allow)
        self._absorb(_by_target(one for one in found if self.policy.mode_of(one.kind) is not Mode.OFF), seen)

    def _absorb(self, found: Mapping[Key, Finding], seen: Seen, off: bool = False) -> None:
        """Bring the findings in the store in line with what was found, in one transaction (none if nothing changed)."""
        core = self._core
        with core.store.read() as db:
            rows = db.execute(
                select(findings).where(findings.c.state.in_(OPEN)).order_by(findings.c.id)
            ).all()
        opened = {(row.target, row.target_id): row for row in rows}
        now = core.store.clock.now()
        answers = {key: _answer(one, seen) for key, one in found.items()}
        self._sights.look(answers, opened, now, seen.complete)
        worse = [key for key, row in opened.items() if key in found and self._worse(row, found[key])]
        ended = [key for key in opened if off or key in worse or (seen.complete and self._sights.gone(key))]
        due = [key for key, row in opened.items() if key not in ended and self._due(row, found.get(key), now)]
        fresh = [
            key
            for key in found
            if (key not in opened or key in worse) and self._sights.believed(key, self.policy.confirm_ns, now)
        ]
        due, fresh = due[:MAX_STOPS], fresh[:MAX_WARNINGS]  # the others have their turn in the next looks
        if not (ended or due or fresh):
            return
        present = {name for one in seen.holdings for name in (one.id, one.app)}
        with core.change("guard") as change:
            for key in ended:
                self._end(change, opened[key], still_there=off or key in worse or key[1] in present)
            for key in due:
                self._stop(change, opened[key])
            for key in fresh:
                self._warn(change, found[key], self._sights.seen[key][2])

    def _worse(self, row: Row[Any], now: Finding) -> bool:
        """What was only warned about is of a kind now that is stopped: its owner was not told so."""
        before = self.policy.mode_of(Kind(row.kind))
        return row.state == WARNED and before is not Mode.STOP and self.policy.mode_of(now.kind) is Mode.STOP

    def _due(self, row: Row[Any], found: Finding | None, now: Now) -> bool:
        return (
            found is not None
            and row.state == WARNED
            and self.policy.mode_of(found.kind) is Mode.STOP
            and now.control_ns >= row.stop_control_ns
        )

    # -- the life of a finding

    def _warn(self, change: Change, found: Finding, first_ns: int) -> None:
        stops = self.policy.mode_of(found.kind) is Mode.STOP
        grace = 0 if stops and _again(change.db, found) else self.policy.grace_of(found.kind)
        row = {
            "id": f"f-{secrets.token_hex(8)}",
            "kind": str(found.kind),
            "target": str(found.target),
            "target_id": found.target_id,
            "owner": found.holding.owner,
            "job_id": found.job,
            "team": found.team,
            "state": WARNED,
            "milli_gpu": found.holding.milli_gpu,
            "message": found.text(),
            "detail": _detail(found),
            "first_ns": first_ns,
            "warned_ns": change.now.wall_ns,
            "stop_control_ns": change.now.control_ns + grace,
        }
        change.db.execute(insert(findings).values(**row))
        will = f"stopped in {grace / 1e9:g} s" if stops else "not stopped"
        log.warning("guard: %s: %s; %s", found.kind, row["message"], will)
        _tell(change, "guard.warned", row, {"stops": stops, "grace_ns": grace})

    def _stop(self, change: Change, row: Row[Any]) -> None:
        if row.target == Target.JOB:
            job = records.job_row(change.db, row.target_id)
            if job is None or job.state not in ON_RAY or job.stop_reason:
                return  # it is ending already
            lifecycle.ask_stop(change, job, records.current_attempt(change.db, job), outcome.GUARD)
        else:
            what = {"target": row.target, "id": row.target_id, "owner": row.owner}
            records.enqueue(change.db, change.now, EFFECT, row.id, row.job_id, what)
        change.db.execute(update(findings).where(findings.c.id == row.id).values(state=STOPPING))
        log.warning("guard: stopping %s %s: %s", row.target, row.target_id, row.message)
        _tell(change, "guard.stopping", row._asdict())

    def _end(self, change: Change, row: Row[Any], *, still_there: bool) -> None:
        """It is over: stopped by us, gone by itself, or covered (or another thing) now."""
        state = STOPPED if row.state == STOPPING and not still_there else CLEARED
        records.close_outbox(change.db, change.now, row.id, (EFFECT,))
        values = {"state": state, "ended_ns": change.now.wall_ns}
        change.db.execute(update(findings).where(findings.c.id == row.id).values(**values))
        log.info("guard: %s: %s", state.lower(), row.message)
        _tell(change, f"guard.{state.lower()}", row._asdict())

    # -- for readers

    def report(self, db: Connection, caller: Caller) -> answers.GuardReport:
        """What the caller may see: open findings first, then the last that ended."""
        query = select(findings)
        if not caller.is_admin:
            query = query.where(findings.c.team.in_(caller.teams))
        still = findings.c.state.in_(OPEN)
        rows = list(db.execute(query.where(still).order_by(findings.c.warned_ns.desc())).all())
        rows += db.execute(query.where(~still).order_by(findings.c.ended_ns.desc()).limit(MAX_SHOWN)).all()
        last, now = self.last, self._core.store.clock.now()
        return {
            "mode": str(self.policy.mode),
            "kinds": {
                str(kind): {
                    "mode": str(self.policy.mode_of(kind)),
                    "grace_s": self.policy.grace_of(kind) // 10**9,
                }
                for kind in Kind
            },
            "looked_ns": last.at_ns if last else None,
            "message": self.blind,
            "complete": last.complete if last else False,
            "unexplained_milli_gpu": dict(last.unexplained) if last and caller.is_admin else {},
            "findings": [self._json(row, now) for row in rows],
        }

    def _json(self, row: Row[Any], now: Now) -> answers.GuardFinding:
        stops = row.state == WARNED and self.policy.mode_of(Kind(row.kind)) is Mode.STOP
        left = max(0, row.stop_control_ns - now.control_ns)
        return {
            "id": row.id,
            "kind": row.kind,
            "state": row.state,
            "target": row.target,
            "target_id": row.target_id,
            "owner": row.owner,
            "job": row.job_id,
            "team": row.team,
            "milli_gpu": row.milli_gpu,
            "message": row.message,
            "detail": row.detail,
            "first_ns": row.first_ns,
            "warned_ns": row.warned_ns,
            "ended_ns": row.ended_ns,
            "stops_in_ns": left if stops else None,
        }


def counts(db: Connection) -> dict[tuple[str, str], int]:
    """Findings of all time by (kind, state)."""
    rows = db.execute(
        select(findings.c.kind, findings.c.state, func.count()).group_by(findings.c.kind, findings.c.state)
    )
    return {(str(row[0]), str(row[1])): int(row[2]) for row in rows}


def samples(found: Mapping[tuple[str, str], int]) -> Samples:
    """`counts` as Prometheus samples: what is open now, and what was ever warned about and stopped."""
    kinds = [str(kind) for kind in Kind]

    def of(*states: str) -> dict[Labels, float | Distribution]:
        return {
            (("kind", kind),): float(sum(found.get((kind, state), 0) for state in states)) for kind in kinds
        }

    return {
        "moorage_guard_findings": of(*OPEN),
        "moorage_guard_warned_total": of(WARNED, STOPPING, STOPPED, CLEARED),
        "moorage_guard_stopped_total": of(STOPPED),
    }


def leased(db: Connection, book: Book, seen: Seen) -> tuple[dict[str, Cover], dict[str, str]]:
    """What the attempts behind the holders have leased, by submission id, and which submission published which Serve
    application. Only of those that something seen may belong to."""
    apps = {
        app: view.job_id
        for view in (serving.endpoint_views(book, db) if any(one.app for one in seen.holdings) else [])
        if view.live
        for app in (view.app, *(one["app"] for one in (view.scaling["replicas"] if view.scaling else ())))
    }
    wanted = {one.submission.rpartition("-")[0] for one in seen.holdings} | set(apps.values())
    covers, current = {}, {}
    for job in sorted(wanted - {""}):
        row = db.execute(
            select(jobs.c.id, jobs.c.team, jobs.c.attempt).where(
                jobs.c.id == job, jobs.c.state.in_(WITH_ATTEMPT)
            )
        ).one_or_none()
        if row is not None:
            submission = current[job] = f"{row.id}-{row.attempt}"
            covers[submission] = Cover(job=row.id, team=row.team, parts=_parts(book, row.id))
    return covers, {app: current[job] for app, job in apps.items() if job in current}


def _parts(book: Book, job: str) -> dict[tuple[str, int], int]:
    parts: dict[tuple[str, int], int] = {}
    for lease in book.ledger.held_by(job):
        for task in lease.tasks:
            for device in task.devices:
                place = (task.node, device)
                parts[place] = parts.get(place, 0) + task_milli_per_device(task)
    return parts


def _answer(found: Finding, seen: Seen) -> int:
    """Which answer of the cluster shows it: of a process its node's, which stands for several looks."""
    return found.holding.since_ms if found.holding.holder is Holder.PROCESS else seen.at_ns


def _by_target(found: Iterable[Finding]) -> dict[Key, Finding]:
    """One finding per thing to stop: an application with several replicas is one thing."""
    merged: dict[Key, Finding] = {}
    for one in found:
        key = (str(one.target), one.target_id)
        if key in merged:
            first = merged[key]
            parts = first.holding.parts + one.holding.parts
            one = replace(first, holding=replace(first.holding, parts=parts), held=first.held + one.held)
        merged[key] = one
    return merged


def _again(db: Connection, found: Finding) -> bool:
    """Whether the same owner was stopped for the same before: it is not given another grace."""
    owner = found.holding.owner
    before = select(findings.c.id).where(
        findings.c.owner == owner, findings.c.kind == str(found.kind), findings.c.state == STOPPED
    )
    return bool(owner) and db.execute(before.limit(1)).first() is not None


def _detail(found: Finding) -> dict[str, Any]:
    held = asdict(found.holding)
    kept = (
        "holder",
        "id",
        "submission",
        "detached",
        "name",
        "namespace",
        "app",
        "pid",
        "since_ms",
        "parts",
        "mib",
    )
    return {
        **{name: str(held[name]) if name == "holder" else held[name] for name in kept},
        "held_milli_gpu": found.held,
        "leased_milli_gpu": found.leased,
    }


def _tell(change: Change, kind: str, row: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> None:
    """An event of the job, where there is one, and of the audit record always."""
    payload = {
        "finding": row["id"],
        "reason": row["kind"],
        "target": row["target"],
        "target_id": row["target_id"],
        "owner": row["owner"],
        "milli_gpu": row["milli_gpu"],
        "message": row["message"],
        **(more or {}),
    }
    record(change.db, change.now, kind, payload, team=row["team"], job_id=row["job_id"])
