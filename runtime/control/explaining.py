"""Why a job waits, for people who ask: `scheduling.explain` on a copy of the pool, within bounds.

An explanation plans dozens of times. It runs in the thread of whoever asks, one at a time, on a copy taken as the loop
takes its own; between plans it rests as long as the last one took, so that the loop gets its share of the interpreter.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, select

from moorage.errors import MoorageError
from moorage.runtime import answers
from moorage.runtime.control import preempting, resizing
from moorage.runtime.control.api import PENDING
from moorage.runtime.control.clock import Now
from moorage.runtime.control.core import Core
from moorage.runtime.control.states import WITH_ATTEMPT
from moorage.runtime.control.tables import attempts, jobs, leases
from moorage.scheduling.explain import explain
from moorage.scheduling.explanation import Explanation
from moorage.scheduling.ledger import Ledger
from moorage.scheduling.model import Policy, Snapshot

MOST_PLANS = 400
MOST_SECONDS = 2.0
MOST_WAITING = 8
PATIENCE_S = 20.0
FRESH_NS = 2 * 10**9
"""An answer is given again for so long, if no lease has come or gone."""
_REMEMBERED = 64
_LONGEST_REST_S = 0.05


class Busy(MoorageError):
    """Too many ask at once."""

    code = "why-busy"
    http_status = 429


@dataclass(frozen=True, slots=True)
class _Case:
    """Row `row` of the snapshot's queue waits; `ends` is control time by lease. Paused: not to be tried yet."""

    snapshot: Snapshot
    row: int
    ends: dict[str, int]
    now: Now
    paused: bool


class Explainer:
    """`of(job row)` answers one question. `policy` is the loop's own."""

    def __init__(self, core: Core, policy: Policy, seconds: Callable[[], float] = time.monotonic) -> None:
        self._core, self._policy, self._seconds = core, policy, seconds
        self._one = threading.Lock()
        self._asking = threading.BoundedSemaphore(MOST_WAITING)
        self._known: OrderedDict[str, tuple[int, int, answers.Explanation | None]] = OrderedDict()

    def of(self, job_id: str) -> answers.Explanation | None:
        """The explanation, times on the wall clock; None when nothing of the job waits, or it is about
        to start. For a running job that asked for more room it is that of the ask."""
        with self._turn():
            with self._core.store.lock, self._core.store.read() as db:
                self._core.refresh()
                now = self._core.store.clock.now()
                version = self._core.book.ledger.version
                known = self._known.get(job_id)
                if known and known[0] == version and now.control_ns - known[1] <= FRESH_NS:
                    return known[2]
                case = self._case(db, job_id, now)
            answer = None if case is None else self._answer(case)
            self._known[job_id] = (version, now.control_ns, answer)
            self._known.move_to_end(job_id)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
            return answer

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One explanation at a time; few may wait for their turn, and not for long."""
        if not self._asking.acquire(blocking=False):
            raise _busy()
        try:
            if not self._one.acquire(timeout=PATIENCE_S):
                raise _busy()
            try:
                yield
            finally:
                self._one.release()
        finally:
            self._asking.release()

    def _case(self, db: Connection, job_id: str, now: Now) -> _Case | None:
        book = self._core.book
        asks = [key for key, one in book.pending.items() if job_id in (one.job, one.parent)]
        if not asks:
            return None
        wanted = book.pending[asks[0]]
        if wanted.job in book.promises:
            return None
        waiting = book.waiting(now.control_ns)
        paused = book.not_before.get(asks[0], 0) > now.control_ns
        of_lease = lease_ends(db, book.ledger)
        leavers = preempting.leavers(db, self._core, now.control_ns)
        gangs = resizing.gangs(db, self._core, now.control_ns)
        snapshot = self._core.snapshot((*waiting, wanted) if paused else waiting, of_lease, leavers, gangs)
        return _Case(snapshot, snapshot.pending.names.index(wanted.job), of_lease, now, paused)

    def _answer(self, case: _Case) -> answers.Explanation | None:
        now = case.now.control_ns
        try:
            found = explain(case.snapshot, self._policy, now, case.row, case.ends, _Pace(self._seconds))
        except ValueError:  # it starts in the plan that the loop makes next, or when its pause is over
            return None
        return _json(found, case)


class _Pace:
    """Whether to go on, asked before each plan: rests as long as the last plan took, ends when the bounds are met."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._begun = self._woke = seconds()

    def __call__(self, made: int) -> bool:
        at = self._seconds()
        if made >= MOST_PLANS or at - self._begun >= MOST_SECONDS:
            return False
        time.sleep(min(at - self._woke, _LONGEST_REST_S))
        self._woke = self._seconds()
        return True


def _json(found: Explanation, case: _Case) -> answers.Explanation:
    to_wall = case.now.wall_ns - case.now.control_ns
    on_wall = replace(
        found,
        now_ns=found.now_ns + to_wall,
        earliest_ns=None if found.earliest_ns is None else found.earliest_ns + to_wall,
    )
    held = len(case.snapshot.ledger.leases)
    said = on_wall.to_json()
    return {
        "job": found.job,
        "now_ns": on_wall.now_ns,
        "reason": said["reason"],
        "suggestions": said["suggestions"],
        "earliest_ns": on_wall.earliest_ns,
        "earliest_text": said["earliest_text"],
        "plans": found.plans,
        "complete": found.complete,
        "ends_known": len(case.ends),
        "ends_unknown": held - len(case.ends),
        "paused": case.paused,
    }


def _busy() -> Busy:
    return Busy(
        "too many explanations are asked for at once",
        why=f"one is made at a time, and {MOST_WAITING} may wait",
        todo="ask again in a few seconds; `moorage status` shows the reason of every waiting job",
    )


def lease_ends(db: Connection, ledger: Ledger) -> dict[str, int]:
    """Lease -> control time by which its job will have ended, where that is known."""
    ends = known_ends(db)
    return {one.lease: ends[one.job] for one in ledger.leases.values() if one.job in ends}


def known_ends(db: Connection) -> dict[str, int]:
    """Job -> control time by which it will have ended: its start plus its `max_runtime`, where it has both."""
    rows = db.execute(
        select(jobs.c.id, jobs.c.ask, attempts.c.started_control_ns)
        .join(attempts, (attempts.c.job_id == jobs.c.id) & (attempts.c.number == jobs.c.attempt))
        .where(jobs.c.state.in_(WITH_ATTEMPT), attempts.c.started_control_ns.is_not(None))
    )
    found = {}
    for row in rows:
        if limit := row.ask.get("max_runtime_ns"):
            found[row.id] = int(row.started_control_ns) + int(limit)
    return found


def holdings(db: Connection, row: Row[Any], now: Now) -> list[answers.Held]:
    """The leases a job holds now, oldest first, with when they end at the latest (wall time; None = not known)."""
    if row.state == PENDING:
        return []
    end = known_ends(db).get(row.id)
    held = db.execute(
        select(leases).where(leases.c.job_id == row.id, leases.c.held.is_(True)).order_by(leases.c.epoch)
    )
    return [
        {
            "lease": one.id,
            "kind": one.kind,
            "milli_gpu": one.milli_gpu,
            "since_ns": one.granted_ns,
            "ends_ns": None if end is None else end + now.wall_ns - now.control_ns,
        }
        for one in held
    ]
