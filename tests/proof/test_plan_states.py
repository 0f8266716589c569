"""S2-S4: every history of three jobs through `plan()` and its application, with a crash anywhere.

What is durable: the recorded events, and of each job whether it arrived, started, ended. What a crash takes: the
ledger, the queue, and a plan that was made and not applied. A plan is applied job by job, and the crash may come after
each. No job is lost, started twice, or started by a plan that is older than the ledger. The applier is a small one of
this test: the control plane's own is tested with its store.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from ledger_events import image, replay

from moorage.scheduling.ledger import (
    Event,
    LeaseGranted,
    LeaseReleased,
    Ledger,
    NodeDown,
    NodeUp,
    TeamSet,
    step,
)
from moorage.scheduling.model import (
    PLANNED,
    JobRequest,
    Lease,
    NodeSpec,
    Plan,
    Policy,
    Shape,
    Snapshot,
    TaskPlacement,
    TeamSpec,
)
from moorage.scheduling.planner import plan
from moorage.scheduling.queue import Queue
from moorage.scheduling.validate import violations

ABSENT, WAITING, RUNNING, ENDED = "absent", "waiting", "running", "ended"
NODES = (
    NodeSpec(name="n0", gpu_model="A", devices=2, device_mib=24, milli_cpu=16, mib=16),
    NodeSpec(name="n1", gpu_model="B", devices=1, device_mib=24, milli_cpu=16, mib=16),
)
START: tuple[Event, ...] = (
    TeamSet(TeamSpec(name="a", quota=(("*", 1000),), limit=(("*", 2000),))),
    TeamSet(TeamSpec(name="b", quota=(("*", 2000),), lend=(("*", 500),))),
    *(NodeUp(spec) for spec in NODES),
)


@dataclass(frozen=True, slots=True)
class Job:
    """`started` counts the leases it was ever given."""

    state: str = ABSENT
    milli: int = 0
    started: int = 0


@dataclass(frozen=True, slots=True)
class World:
    """`log`, `jobs`, `queue` (names in order of arrival) are durable; `made` is the plan in memory, if any."""

    log: tuple[Event, ...]
    jobs: tuple[Job, ...]
    queue: tuple[int, ...] = ()
    made: tuple[tuple[int, tuple[TaskPlacement, ...]], ...] | None = None
    made_at: int = 0


@dataclass(frozen=True, slots=True)
class Kind:
    """The teams of the jobs, and the shares that a job may ask for on each of `workers` devices."""

    teams: tuple[str, ...] = ("a", "b", "a")
    shares: tuple[int, ...] = (500, 1000)
    workers: tuple[int, ...] = (1, 1, 1)
    least: tuple[int, ...] = (1, 1, 1)


def decide(kind: Kind, ledger: Ledger, world: World) -> list[tuple[int, tuple[TaskPlacement, ...]]]:
    """(job, its tasks) of those that start now, by the real `plan()`, which must speak of every waiting job."""
    requests = tuple(
        JobRequest(
            job=f"j{j}",
            team=kind.teams[j],
            submitted_ns=at,
            worker=Shape(milli_gpu=world.jobs[j].milli, gpu_mib=8),
            workers=kind.workers[j],
            min_workers=kind.least[j],
        )
        for at, j in enumerate(world.queue)
    )
    snapshot = Snapshot(version=ledger.version, ledger=ledger, pending=Queue.of(requests))
    decided, before = plan(snapshot, Policy(), 10), image(ledger)
    again = replace(snapshot, ledger=replay(world.log))
    assert columns(plan(again, Policy(), 10)) == columns(decided), "the recorded events give the same plan"
    assert image(ledger) == before, "planning changes nothing"
    starts = [(int(request.job[1:]), tasks) for request, tasks in decided.admissions(snapshot)]
    waits = [int(request.job[1:]) for request, _ in decided.waiting(snapshot)]
    assert sorted([j for j, _ in starts] + waits) == sorted(world.queue), (
        "each waiting job starts or has a reason"
    )
    return starts


def columns(decided: Plan) -> list[object]:
    """A plan as bytes."""
    values = (getattr(decided, name) for name in PLANNED)
    return [value.tobytes() if isinstance(value, np.ndarray) else value for value in values]


def neighbours(kind: Kind, world: World, ledger: Ledger) -> Iterator[World]:
    """Where one event leads, a crash included."""
    for j, job in enumerate(world.jobs):
        if job.state == ABSENT:
            for milli in kind.shares:
                yield arrived(world, j, milli)
        elif job.state == RUNNING:
            lease = ledger.leases[f"j{j}"]
            ended = Job(ENDED, job.milli, job.started)
            yield recorded(world, LeaseReleased(lease.lease, lease.epoch), j, ended)
    for n, spec in enumerate(NODES):
        yield recorded(world, NodeDown(spec.name) if ledger.up[n] else NodeUp(spec))
    if world.made is None:
        yield replace(world, made=tuple(decide(kind, ledger, world)), made_at=ledger.version)
        return
    yield from (replace(applied(kind, world, ledger, upto), made=None) for upto in range(len(world.made) + 1))


def arrived(world: World, j: int, milli: int) -> World:
    return replace(world, jobs=changed(world, j, Job(WAITING, milli)), queue=(*world.queue, j))


def recorded(world: World, event: Event, j: int = 0, job: Job | None = None) -> World:
    return replace(world, log=(*world.log, event), jobs=changed(world, j, job) if job else world.jobs)


def changed(world: World, j: int, job: Job) -> tuple[Job, ...]:
    return (*world.jobs[:j], job, *world.jobs[j + 1 :])


def applied(kind: Kind, world: World, ledger: Ledger, upto: int) -> World:
    """The first `upto` starts of the plan are durable, then the applier is done, or crashes. A stale plan: none are."""
    if world.made_at != ledger.version:
        return world
    work = ledger.copy()
    for j, tasks in (world.made or ())[:upto]:
        lease = Lease(lease=f"j{j}", job=f"j{j}", team=kind.teams[j], epoch=work.last_epoch + 1, tasks=tasks)
        step(work, LeaseGranted(lease))  # raises if the plan gave what is not there
        job = Job(RUNNING, world.jobs[j].milli, world.jobs[j].started + 1)
        world = recorded(world, LeaseGranted(lease), j, job)
        world = replace(world, queue=tuple(q for q in world.queue if q != j))
    return world


def key(world: World, ledger: Ledger) -> tuple[object, ...]:
    """The state, without how many events led to it."""
    arrays = tuple(getattr(ledger, name).tobytes() for name in ("up", "milli_free", "cpu_free", "used"))
    fresh = world.made is not None and world.made_at == ledger.version
    made = None if world.made is None else world.made if fresh else "stale"
    return arrays, tuple(ledger.leases), world.jobs, world.queue, made


def check(kind: Kind, world: World, ledger: Ledger) -> None:
    assert violations(ledger) == []
    assert Counter(lease.job for lease in ledger.leases.values()) == Counter(
        f"j{j}" for j, job in enumerate(world.jobs) if job.state == RUNNING
    )
    assert sorted(world.queue) == [j for j, job in enumerate(world.jobs) if job.state == WAITING]
    for j, job in enumerate(world.jobs):
        assert job.started == (job.state in (RUNNING, ENDED)), "started once, never twice, never lost"
        held = sum(len(lease.tasks) for lease in ledger.held_by(f"j{j}"))
        assert job.state != RUNNING or kind.least[j] <= held <= kind.workers[j]
    assert (ledger.used <= ledger.limit).all()


def search(kind: Kind) -> tuple[int, int]:
    """(states, events) of all there is to reach; each state is rebuilt from what is durable."""
    first = World(START, tuple(Job() for _ in kind.teams))
    ledger = replay(first.log)
    seen, todo, events = {key(first, ledger)}, deque([first]), 0
    while todo:
        world = todo.popleft()
        ledger = replay(world.log)  # what a crash leaves is what there is: memory holds the plan alone
        check(kind, world, ledger)
        for after in neighbours(kind, world, ledger):
            events += 1
            at = key(after, replay(after.log[len(world.log) :], ledger.copy()))
            if at not in seen:
                seen.add(at)
                todo.append(after)
    return len(seen), events


def test_no_job_is_lost_or_started_twice_whatever_happens_when() -> None:
    states, events = search(Kind())
    assert states > 10_000
    assert events > 5 * states


def test_no_gang_is_lost_or_started_twice_or_in_part() -> None:
    states, _ = search(Kind(workers=(2, 1, 3), least=(2, 1, 1)))
    assert states > 8_000
