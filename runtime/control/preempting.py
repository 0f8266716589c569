"""Preemption as a conversation: who is told to leave, whose place is kept, what is said to the job, what it answers.

A plan that pushes somebody out starts nobody yet. In one transaction the victims become PREEMPTING, each with its
notice, its deadline and the stop that falls due then; the starter is promised its place. The notice is read, not sent.
When a victim's end was observed its lease is released as always, and the promise is kept as soon as Ray could start
the job on its nodes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, replace

from sqlalchemy import Connection, select, update

from moorage.runtime import answers
from moorage.runtime.control import records, resizing
from moorage.runtime.control.admitting import admit
from moorage.runtime.control.api import PENDING, PREEMPTING, RUNNING
from moorage.runtime.control.core import Change, Core
from moorage.runtime.control.leaving import PATIENCE_NS, Leaving, Promise, Shrinking
from moorage.runtime.control.outcome import PREEMPT
from moorage.runtime.control.records import JobRow
from moorage.runtime.control.states import ON_RAY
from moorage.runtime.control.store import record
from moorage.runtime.control.tables import attempts, jobs, outbox, subleases
from moorage.scheduling.guard import Seen
from moorage.scheduling.model import JobRequest, Plan, Reason, ReasonCode, Snapshot, TaskPlacement
from moorage.scheduling.planner import plan
from moorage.scheduling.promises import fits_later, only_on
from moorage.scheduling.queue import Queue
from moorage.scheduling.running import Leaver

_SAID = {
    "reclaim": "team {team} takes back quota that team {own} borrows",
    "priority": "job {job} has the higher priority",
    "index": "job {job} comes first by its index",
}
Tasks = tuple[TaskPlacement, ...]


def leavers(db: Connection, core: Core, control_ns: int) -> dict[str, Leaver]:
    """Job -> what is known of it, of those that a plan may push out. Nobody while room is being made for nobody."""
    book = core.book
    if not core.settings.preemption.enabled:
        return {}
    expected = _expected(core)
    if any(control_ns < one.patience_ns and one.job not in expected for one in book.leaving.values()):
        return {}
    priority, may = jobs.c.ask["priority"].as_integer(), jobs.c.ask["preemptible"].as_boolean()
    rows = db.execute(
        select(jobs.c.id, priority.label("priority"), attempts.c.started_control_ns)
        .join(attempts, (attempts.c.job_id == jobs.c.id) & (attempts.c.number == jobs.c.attempt))
        .where(jobs.c.state == RUNNING, jobs.c.stop_reason == "", may)
        .where(attempts.c.started_control_ns.is_not(None))
    )
    return {row.id: Leaver(row.priority, max(0, control_ns - row.started_control_ns)) for row in rows}


def _expected(core: Core) -> set[str]:
    """The jobs that room is being made by for somebody."""
    return {job for one in core.book.promises.values() for job in one.victims}


# -- a plan that pushes somebody out


def makes_room(core: Core, decided: Plan) -> bool:
    """Whether places of this plan are not free yet."""
    book = core.book
    return bool(decided.preempted or decided.shrunk or book.leaving or book.promises or book.shrinking)


def apply(core: Core, snapshot: Snapshot, decided: Plan, older: Callable[[int], int]) -> int:
    """Start who has a place that nobody is leaving, tell the victims to leave or to shrink, promise their starters the
    room.

    How many started. `older`: how many of those that wait on were submitted before a time.
    """
    book, started = core.book, 0
    victims, shrinks = _victims(core, decided), _shrinks(decided)
    with core.change("preempt") as change:
        touched = {
            task.node
            for job in (*book.leaving, *book.shrinking)
            for one in book.ledger.held_by(job)
            for task in one.tasks
        }
        touched |= {node for one in book.promises.values() for node in one.nodes}
        leaving, promises, shrinking = dict(book.leaving), dict(book.promises), dict(book.shrinking)
        rows = decided.admitted.tolist()
        for row, (request, tasks) in zip(rows, decided.admissions(snapshot), strict=True):
            count = older(request.submitted_ns)
            nodes = {task.node for task in tasks}
            told = _tell(core, change, request, victims.get(row, ()), shrinks.get(row, ()))
            if told is None:
                continue
            for one in told:
                if isinstance(one, Leaving):
                    leaving[one.job] = one
                    shrinking.pop(one.job, None)
                else:
                    shrinking[one.job] = one
                touched |= {task.node for it in book.ledger.held_by(one.job) for task in it.tasks}
            if not told and not nodes & touched:
                started += admit(core, change, request, tasks, count)
                continue
            there = [job for job in (*leaving, *shrinking) if any(_on(core, job, nodes))]
            if told or (there and not _fits_now(core, request, tasks)):
                # Who leaves for the quota alone may be on other nodes.
                made = _promise(change, request, tasks, dict.fromkeys([*there, *(one.job for one in told)]))
                promises[made.job] = made
                touched |= nodes
                continue
            before = [one.tasks for one in promises.values() if one.nodes & nodes]
            now = _place(core, request, nodes, before, change.now.control_ns)
            started += now is not None and admit(core, change, request, now, count)
        change.after.append(lambda: book.leaving.update(leaving))
        change.after.append(lambda: book.ask(shrinking))
        change.after.append(lambda: book.promises.update(promises))
    core.wake.set()
    return started


def _on(core: Core, job: str, nodes: set[str]) -> Iterable[bool]:
    return (task.node in nodes for lease in core.book.ledger.held_by(job) for task in lease.tasks)


def _victims(core: Core, decided: Plan) -> dict[int, list[tuple[str, str]]]:
    """Row of the queue -> (job, rule) of those pushed out for it."""
    found: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for lease, row, rule in zip(decided.preempted, decided.preempted_for, decided.preempted_by, strict=True):
        found[row].append((core.book.ledger.leases[lease].job, rule))
    return found


def _shrinks(decided: Plan) -> dict[int, list[tuple[str, int, str]]]:
    """Row of the queue -> (lease, tasks it keeps, rule) of those that give workers up for it."""
    found: dict[int, list[tuple[str, int, str]]] = defaultdict(list)
    kept = decided.shrunk_tasks.tolist()
    for lease, tasks, rows, rule in zip(
        decided.shrunk, kept, decided.shrunk_for, decided.shrunk_by, strict=True
    ):
        for row in rows:
            found[row].append((lease, tasks, rule))
    return found


def _fits_now(core: Core, request: JobRequest, tasks: Tasks) -> bool:
    return fits_later(core.book.ledger, (), request, tasks)


def _tell(
    core: Core,
    change: Change,
    request: JobRequest,
    victims: Iterable[tuple[str, str]],
    shrinks: Iterable[tuple[str, int, str]],
) -> list[Leaving | Shrinking] | None:
    """Tell each victim to leave, and each lease of `shrinks` to keep so many tasks. None, and nobody is told, when
    one of them is not simply running any more, or when who it is for does not wait any more."""
    if not _waits(change.db, request):
        change.after.append(lambda: core.book.drop(request.job))
        return None
    asked = [(core.book.ledger.leases.get(name), kept, rule) for name, kept, rule in shrinks]
    rows = [(records.job_row(change.db, job), rule) for job, rule in victims]
    there = [row for row, _ in rows]
    there += [None if lease is None else records.job_row(change.db, lease.job) for lease, _, _ in asked]
    if any(row is None or row.state != RUNNING or row.stop_reason for row in there):
        return None
    for_whom = request.parent or request.job, request.team
    told: list[Leaving | Shrinking] = []
    for row, rule in rows:
        assert row is not None
        told.append(_notify(core, change, row, for_whom, (rule, _said(rule, request, row.team))))
    for lease, kept, rule in asked:
        assert lease is not None
        why = rule, _said(rule, request, lease.team)
        told.append(resizing.ask(core, change, lease, kept, for_whom, why))
    return told


def _waits(db: Connection, request: JobRequest) -> bool:
    """Whether it waits still: it may have been given up since the plan was made, or its job may have ended."""
    row = records.job_row(db, request.parent or request.job)
    if row is None or row.stop_reason:
        return False
    if not request.parent:
        return bool(row.state == PENDING)
    state = db.execute(select(subleases.c.state).where(subleases.c.id == request.job)).scalar()
    return row.state in ON_RAY and state == "WAITING"


def _said(rule: str, request: JobRequest, own: str) -> str:
    return _SAID[rule].format(team=request.team, own=own, job=request.parent or request.job)


def _notify(
    core: Core, change: Change, job: JobRow, for_whom: tuple[str, str], why: tuple[str, str]
) -> Leaving:
    """`for_whom`: job, team. `why`: rule, text."""
    now, settings = change.now, core.settings.preemption
    attempt = records.current_attempt(change.db, job)
    (for_job, for_team), (rule, text) = for_whom, why
    notice = Leaving(
        job=job.id,
        attempt=job.attempt,
        for_job=for_job,
        rule=rule,
        text=text,
        noticed_ns=now.wall_ns,
        deadline_ns=now.control_ns + settings.grace_s * 10**9,
    )
    records.set_attempt(change.db, job, state=PREEMPTING, notice=asdict(notice), shrink=None)
    change.after.append(lambda: core.book.unask(job.id))
    message = f"told to leave within {settings.grace_s} s for job {for_job}: {text}"
    records.transition(change.db, now, job, PREEMPTING, "preempted", message, stop_reason=PREEMPT)
    record(
        change.db,
        now,
        "preemption.notice",
        {
            "attempt": job.attempt,
            "for_job": for_job,
            "for_team": for_team,
            "rule": rule,
            "text": text,
            "grace_s": settings.grace_s,
        },
        team=job.team,
        job_id=job.id,
        lease_id=attempt.lease_id,
    )
    # The stop lies ready, due when the grace is over; the end of the attempt closes it.
    records.enqueue(
        change.db, now, "stop", attempt.submission_id, job.id, {"reason": PREEMPT}, notice.deadline_ns
    )
    return notice


def _promise(change: Change, request: JobRequest, tasks: Tasks, victims: Iterable[str]) -> Promise:
    """Keep a place. A sublease's is not stored: who asked for it is gone with this process."""
    promise = Promise(
        job=request.job,
        tasks=tasks,
        victims=tuple(victims),
        made_ns=change.now.control_ns,
    )
    if not request.parent:
        change.db.execute(update(jobs).where(jobs.c.id == request.job).values(promise=promise.to_json()))
    record(
        change.db,
        change.now,
        "preemption.promised",
        {"waits_for": list(promise.victims), "nodes": sorted(promise.nodes), "sublease": request.job}
        if request.parent
        else {"waits_for": list(promise.victims), "nodes": sorted(promise.nodes)},
        team=request.team,
        job_id=request.parent or request.job,
    )
    return promise


# -- keeping promises


def settle(core: Core, seen: Seen | None = None) -> None:
    """Start each promised job that fits on its nodes by now; drop a promise that cannot be kept. Under the lock.
    `seen`: what the cluster has booked, as the guard saw it last."""
    _settle_shrinks(core, seen)
    book, now = core.book, core.store.clock.now()
    for job in [job for job in book.leaving if not book.ledger.held_by(job)]:
        del book.leaving[job]
    earlier: list[Promise] = []
    for key, promise in list(book.promises.items()):
        request = book.pending.get(key)
        if request is None:
            book.promises.pop(key, None)
            continue
        before = [one.tasks for one in earlier if one.nodes & promise.nodes]
        left = [job for job in promise.victims if job in book.leaving or job in book.shrinking]
        until = max((_patience_ns(core, job) for job in left), default=now.control_ns)
        asked = request
        if left:  # it starts as large as promised while those who leave for it have not all left
            least = min(max(promise.workers, request.min_workers), request.workers)
            asked = replace(request, min_workers=least)
        tasks = _place(core, asked, promise.nodes, before, now.control_ns)
        if tasks is not None and _keep(core, request, tasks):
            continue
        if key not in book.promises:  # its job has ended, or is being stopped
            continue
        gone = [job for job, one in book.leaving.items() if now.control_ns < one.patience_ns]
        hopeless = not fits_later(book.ledger, gone, request, promise.tasks, book.kept())
        if (left and now.control_ns >= until) or (not before and (not left or hopeless)):
            _drop(core, request)
            continue
        earlier.append(promise)
        book.reasons[key] = _reason(request, promise, left or list(promise.victims), until - now.control_ns)


def _patience_ns(core: Core, job: str) -> int:
    """Until when (control time) room is expected of a job that was told to make some."""
    leaving = core.book.leaving.get(job)
    if leaving is not None:
        return leaving.patience_ns
    return core.book.shrinking[job].deadline_ns + core.settings.preemption.grace_s * 10**9 + PATIENCE_NS


def _settle_shrinks(core: Core, seen: Seen | None) -> None:
    """Shrink the lease of who gave its workers up, by what the cluster shows; whose grace is over is told to leave as a
    whole; what nobody needs any more is withdrawn."""
    book, now = core.book, core.store.clock.now()
    for job in [job for job in book.shrinking if not book.ledger.held_by(job)]:
        del book.shrinking[job]
    for job in [job for job in book.following if not book.ledger.held_by(job)]:
        del book.following[job]
    for one in list(book.shrinking.values()):
        lease = book.ledger.leases.get(one.lease)
        if lease is None:
            continue
        freed = seen is not None and resizing.shown(seen, one, lease)
        over, needed = now.control_ns >= one.deadline_ns, one.job in _expected(core)
        if needed and not freed and not over:
            continue
        with core.change("resize" if freed else "preempt") as change:
            row = records.job_row(change.db, one.job)
            if row is None or row.state != RUNNING or row.attempt != one.attempt:
                continue
            if not needed:
                resizing.withdraw(core, change, one, "withdrawn")
            elif freed:
                about = {"said": "cluster", "for_job": one.for_job, "rule": one.rule}
                resizing.shrink(core, change, row, lease, one.kept, about)
            elif not row.stop_reason:
                resizing.withdraw(core, change, one, "grace-over")
                told = _notify(core, change, row, (one.for_job, one.for_team), (one.rule, one.text))
                change.after.append(lambda told=told: book.leaving.__setitem__(told.job, told))  # type: ignore[misc]


def _place(
    core: Core, request: JobRequest, nodes: Collection[str], before: list[Tasks], control_ns: int
) -> Tasks | None:
    """Its place on these nodes as they are now, as Ray would give it, less what the promises `before` it wait for."""
    snapshot = Snapshot(
        version=core.book.ledger.version,
        ledger=only_on(core.book.ledger, nodes, before),
        pending=Queue.of((request,)),
        device_rule=core.device_rule,
    )
    decided = plan(snapshot, core.policy, control_ns)
    return next((tasks for _, tasks in decided.admissions(snapshot)), None)


def _keep(core: Core, request: JobRequest, tasks: Tasks) -> bool:
    with core.change("promise") as change:
        if not admit(core, change, request, tasks, 0):
            return False
        change.db.execute(update(jobs).where(jobs.c.id == request.job).values(promise=None))
    return True


def _drop(core: Core, request: JobRequest) -> None:
    """It is planned anew."""
    with core.change() as change:
        change.db.execute(update(jobs).where(jobs.c.id == request.job).values(promise=None))
        about = {"sublease": request.job} if request.parent else {}
        job = request.parent or request.job
        record(change.db, change.now, "preemption.dropped", about, team=request.team, job_id=job)
        change.after.append(lambda: core.book.promises.__delitem__(request.job))


def _reason(request: JobRequest, promise: Promise, holders: list[str], left_ns: int) -> Reason:
    return Reason(
        code=ReasonCode.LEAVING,
        team=request.team,
        asked=sum(task.milli_gpu for task in promise.tasks),
        holders=tuple(holders),
        starts_in_ns=max(0, left_ns),
    )


# -- what a job hears, and what it says


def notice_view(core: Core, job: JobRow) -> answers.Notice | None:
    """Under the lock."""
    one = core.book.leaving.get(job.id)
    if one is None or job.state != PREEMPTING or one.attempt != job.attempt:
        return None
    now = core.store.clock.now()
    left = max(0, one.deadline_ns - now.control_ns)
    return answers.Notice(
        attempt=one.attempt,
        for_job=one.for_job,
        rule=one.rule,
        text=one.text,
        noticed_ns=one.noticed_ns,
        deadline_ns=now.wall_ns + left,
        left_s=left / 1e9,
    )


def answer(core: Core, change: Change, job: JobRow, said: str, step: int | None) -> bool:
    """What a job did after its notice, for the record."""
    if notice_view(core, job) is None:
        return False
    payload = {"attempt": job.attempt} | ({} if step is None else {"step": step})
    record(change.db, change.now, f"preemption.{said}", payload, team=job.team, job_id=job.id)
    return True


def renew(core: Core, change: Change) -> None:
    """The whole grace again for everyone who was told to leave: this process was away, and so was what it said.

    So a clock that was set forward meanwhile ends nobody's grace either.
    """
    deadline = change.now.control_ns + core.settings.preemption.grace_s * 10**9
    rows = change.db.execute(select(jobs).where(jobs.c.state == PREEMPTING)).all()
    for job in rows:
        attempt = records.current_attempt(change.db, job)
        if not attempt.notice or job.stop_reason != PREEMPT:
            continue
        records.set_attempt(change.db, job, notice={**attempt.notice, "deadline_ns": deadline})
        due = (outbox.c.kind == "stop") & (outbox.c.submission_id == attempt.submission_id)
        change.db.execute(update(outbox).where(due, outbox.c.tries == 0).values(next_control_ns=deadline))
