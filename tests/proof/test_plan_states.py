"""S2-S4: every history of three jobs through `plan()` and its application, with a crash anywhere.

What is durable: the recorded events, and of each job whether it arrived, started, ended. What a crash takes: the
ledger, the queue, and a plan that was made and not applied. A plan is applied job by job, and the crash may come after
each. No job is lost, started twice, or started by a plan that is older than the ledger; and planning again and again
comes to rest: jobs do not push each other out in turn. The applier is a small one of this test: the control plane's own
is tested with its store.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from ledger_events import image, replay

from moorage.scheduling.ledger import (
    Event,
    LeaseGranted,
    LeaseReleased,
    LeaseResized,
    Ledger,
    NodeDown,
    NodeUp,
    TeamSet,
    step,
)
from moorage.scheduling.model import (
    JobRequest,
    Lease,
    NodeSpec,
    Policy,
    Shape,
    Snapshot,
    TaskPlacement,
    TeamSpec,
)
from moorage.scheduling.planner import plan
from moorage.scheduling.queue import Queue, TaskClass
from moorage.scheduling.running import RunningJobs
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
    """`balance`: how many leases it was ever given, less those that it was asked to leave."""

    state: str = ABSENT
    milli: int = 0
    balance: int = 0


@dataclass(frozen=True, slots=True)
class Made:
    """A plan: (job, tasks) of those that start once the leases `leave` are released."""

    starts: tuple[tuple[int, tuple[TaskPlacement, ...]], ...]
    leave: tuple[str, ...]
    give: tuple[tuple[str, int], ...] = ()
    """(lease, tasks that it keeps)"""


@dataclass(frozen=True, slots=True)
class World:
    """`log`, `jobs`, `order` (in which they arrived, less those that ended) are durable; `made` is in memory."""

    log: tuple[Event, ...]
    jobs: tuple[Job, ...]
    order: tuple[int, ...] = ()
    made: Made | None = None
    made_at: int = 0

    def waiting(self) -> list[int]:
        return [j for j in self.order if self.jobs[j].state == WAITING]


@dataclass(frozen=True, slots=True)
class Kind:
    """The teams of the jobs, and the shares that a job may ask for on each of `workers` devices."""

    teams: tuple[str, ...] = ("a", "b", "a")
    shares: tuple[int, ...] = (500, 1000)
    workers: tuple[int, ...] = (1, 1, 1)
    least: tuple[int, ...] = (1, 1, 1)
    priority: tuple[int, ...] = (0, 0, 0)
    preempts: bool = False
    unsteady: tuple[int, ...] = (1,)
    """The nodes that go down and come back."""

    def shape(self, job: Job) -> Shape:
        return Shape(milli_gpu=job.milli, gpu_mib=8)

    def twins(self, one: int, other: int) -> bool:
        """Jobs that differ in name alone: they arrive in order of name, the other order is the same history."""
        columns = (self.teams, self.workers, self.least, self.priority)
        return all(column[one] == column[other] for column in columns)


def decide(kind: Kind, ledger: Ledger, world: World) -> Made:
    """What the real `plan()` starts now; it must speak of every waiting job."""
    requests = tuple(
        JobRequest(
            job=f"j{j}",
            team=kind.teams[j],
            submitted_ns=at,
            worker=kind.shape(world.jobs[j]),
            workers=kind.workers[j],
            min_workers=kind.least[j],
            priority=kind.priority[j],
        )
        for at, j in enumerate(world.order)
        if world.jobs[j].state == WAITING
    )
    snapshot = Snapshot(
        version=ledger.version,
        ledger=ledger,
        pending=Queue.of(requests),
        running=running(kind, ledger, world) if kind.preempts else None,
    )
    before = image(ledger)
    decided = plan(snapshot, Policy(), 10)
    assert image(ledger) == before, "planning changes nothing"
    starts = tuple((int(request.job[1:]), tasks) for request, tasks in decided.admissions(snapshot))
    waits = [int(requests[row].job[1:]) for row in decided.deferred]
    assert sorted([j for j, _ in starts] + waits) == sorted(world.waiting()), "each starts, or has a reason"
    return Made(
        starts, decided.preempted, tuple(zip(decided.shrunk, decided.shrunk_tasks.tolist(), strict=True))
    )


def running(kind: Kind, ledger: Ledger, world: World) -> RunningJobs:
    """All that run, all of which may be asked to leave."""
    held = list(ledger.leases.values())
    jobs = [int(lease.job[1:]) for lease in held]
    tasks = [(v, task) for v, lease in enumerate(held) for task in lease.tasks]
    teams = tuple(dict.fromkeys(kind.teams))
    zeros = np.zeros(len(held), np.int64)
    return RunningJobs(
        leases=[lease.lease for lease in held],
        teams=teams,
        team=ints(teams.index(lease.team) for lease in held),
        priority=ints(kind.priority[j] for j in jobs),
        key=zeros,
        fixed=zeros,
        least_tasks=ints(kind.least[j] for j in jobs),
        lost=zeros,
        classes=tuple(TaskClass(shape=kind.shape(world.jobs[j])) for j in jobs),
        first=ints([0, *np.cumsum([len(lease.tasks) for lease in held])]),
        task_node=ints(ledger.node_row[task.node] for _, task in tasks),
        task_mask=ints(sum(1 << d for d in task.devices) for _, task in tasks),
        task_class=ints(v for v, _ in tasks),
    )


def ints(values: Iterable[int]) -> np.ndarray:
    return np.array(list(values), np.int64)


def neighbours(kind: Kind, world: World, ledger: Ledger) -> Iterator[World]:
    """Where one event leads, a crash included; the last is the plan, made or applied in full."""
    for j, job in enumerate(world.jobs):
        if job.state == ABSENT:
            if any(kind.twins(i, j) and world.jobs[i].state == ABSENT for i in range(j)):
                continue
            for milli in kind.shares:
                yield replace(world, jobs=changed(world, j, Job(WAITING, milli)), order=(*world.order, j))
        elif job.state == RUNNING:
            lease = ledger.leases[f"j{j}"]
            ended = recorded(world, LeaseReleased(lease.lease, lease.epoch), j, replace(job, state=ENDED))
            yield replace(ended, order=tuple(i for i in world.order if i != j))
    for n in kind.unsteady:
        yield recorded(world, NodeDown(NODES[n].name) if ledger.up[n] else NodeUp(NODES[n]))
    if world.made is None:
        yield replace(world, made=decide(kind, ledger, world), made_at=ledger.version)
    elif world.made_at != ledger.version:
        yield replace(world, made=None)  # the plan is stale: the applier drops it
    else:
        yield from applied(kind, world, world.made, ledger.copy())


def applied(kind: Kind, world: World, made: Made, work: Ledger) -> Iterator[World]:
    """What is durable after each event of the plan, if the control plane is gone then; last, the whole plan."""
    world = replace(world, made=None)
    yield world
    for name in made.leave:
        lease, j = work.leases[name], int(name[1:])
        event: Event = LeaseReleased(name, lease.epoch)
        step(work, event)
        job = world.jobs[j]
        world = recorded(world, event, j, replace(job, state=WAITING, balance=job.balance - 1))
        yield world
    for name, kept in made.give:
        event = LeaseResized(name, work.leases[name].epoch, work.last_epoch + 1, kept)
        step(work, event)
        world = recorded(world, event)
        yield world
    for j, tasks in made.starts:
        lease = Lease(lease=f"j{j}", job=f"j{j}", team=kind.teams[j], epoch=work.last_epoch + 1, tasks=tasks)
        step(work, LeaseGranted(lease))  # raises if the plan gave what is not there
        job = world.jobs[j]
        world = recorded(world, LeaseGranted(lease), j, replace(job, state=RUNNING, balance=job.balance + 1))
        yield world


def recorded(world: World, event: Event, j: int = 0, job: Job | None = None) -> World:
    return replace(world, log=(*world.log, event), jobs=changed(world, j, job) if job else world.jobs)


def changed(world: World, j: int, job: Job) -> tuple[Job, ...]:
    return (*world.jobs[:j], job, *world.jobs[j + 1 :])


def key(world: World, ledger: Ledger) -> tuple[object, ...]:
    """The state, without how many events led to it."""
    arrays = tuple(getattr(ledger, name).tobytes() for name in ("up", "milli_free", "cpu_free", "used"))
    sizes = ((name, len(lease.tasks)) for name, lease in ledger.leases.items())
    fresh = world.made is not None and world.made_at == ledger.version
    made = None if world.made is None else world.made if fresh else "stale"
    return arrays, tuple(sizes), world.jobs, world.order, made


def check(kind: Kind, world: World, ledger: Ledger) -> None:
    assert violations(ledger) == []
    assert Counter(lease.job for lease in ledger.leases.values()) == Counter(
        f"j{j}" for j, job in enumerate(world.jobs) if job.state == RUNNING
    )
    for j, job in enumerate(world.jobs):
        assert job.balance == (job.state in (RUNNING, ENDED)), "started once, never twice, never lost"
        held = sum(len(lease.tasks) for lease in ledger.held_by(f"j{j}"))
        assert job.state != RUNNING or kind.least[j] <= held <= kind.workers[j]
    assert (ledger.used <= ledger.limit).all()


@dataclass(slots=True)
class Search:
    """What was reached: by its key, and of plans where making or applying them leads."""

    states: int = 0
    events: int = 0
    left: int = 0
    gave: int = 0
    onward: dict[tuple[object, ...], tuple[object, ...]] = field(default_factory=dict)


def search(kind: Kind) -> Search:
    """All there is to reach; each state is rebuilt from what is durable."""
    first, found = World(START, tuple(Job() for _ in kind.teams)), Search()
    seen, todo = {key(first, replay(first.log))}, deque([first])
    while todo:
        world = todo.popleft()
        ledger = replay(world.log)  # what a crash leaves is what there is: memory holds the plan alone
        check(kind, world, ledger)
        for after in neighbours(kind, world, ledger):
            found.events += 1
            at = key(after, replay(after.log[len(world.log) :], ledger.copy()))
            if at not in seen:
                seen.add(at)
                todo.append(after)
                found.left += bool(after.made and after.made.leave)
                found.gave += bool(after.made and after.made.give)
        found.onward[key(world, ledger)] = at
    found.states = len(seen)
    return found


def rests(found: Search) -> int:
    """The most plans that start or end something, one after the other, before one that does nothing.

    Fails where plans come back to a state they left: jobs that push each other out in turn.
    """
    most = 0
    for at in found.onward:
        path: list[tuple[object, ...]] = []
        while at not in path:
            path.append(at)
            at = found.onward[at]
        turns = {step_[-1] for step_ in path[path.index(at) :]}
        assert turns <= {None, Made((), ())}, "planning never comes to rest"
        most = max(most, sum(isinstance(step_[-1], Made) and step_[-1] != Made((), ()) for step_ in path))
    return most


def test_no_job_is_lost_or_started_twice_whatever_happens_when() -> None:
    found = search(Kind())
    assert found.states > 3_000
    assert found.events > 3 * found.states
    assert rests(found) <= 2


def test_no_gang_is_lost_or_started_twice_or_in_part() -> None:
    found = search(Kind(workers=(2, 1, 3), least=(2, 1, 1), shares=(1000,), unsteady=(0, 1)))
    assert found.states > 1_000
    assert rests(found) <= 2


def test_jobs_that_may_be_pushed_out_come_to_rest() -> None:
    """Reclaim and priority at once, over every history: nobody is lost, nobody goes round in circles."""
    first = search(Kind(priority=(0, 0, 1), shares=(1000,), preempts=True))
    equal = search(Kind(workers=(1, 2, 1), least=(1, 2, 1), unsteady=(), preempts=True))
    for found in (first, equal):
        assert found.left > 0, "somebody must have been pushed out"
        assert rests(found) <= 3


def test_gangs_that_give_up_workers_come_to_rest() -> None:
    """An elastic gang, and jobs of higher priority and of another team that ask it for workers."""
    kind = Kind(
        teams=("b", "a", "b"),
        workers=(2, 1, 1),
        priority=(0, 0, 1),
        shares=(1000,),
        unsteady=(),
        preempts=True,
    )
    found = search(kind)
    assert found.gave > 0
    assert rests(found) <= 3


@pytest.mark.soak
@pytest.mark.parametrize(
    "kind",
    [
        Kind(unsteady=(0, 1)),
        Kind(unsteady=(0, 1), workers=(2, 1, 3), least=(2, 1, 1)),
        Kind(priority=(0, 0, 1), preempts=True),
        Kind(priority=(1, 0, 0), preempts=True, workers=(2, 1, 3), least=(2, 1, 1)),
    ],
    ids=["any share", "gangs", "pushed out", "gangs pushed out"],
)
def test_a_larger_scope_loses_no_job_either(kind: Kind) -> None:
    found = search(kind)
    print(found.states, found.events, found.left, rests(found))
    assert kind.preempts == (found.left > 0)
