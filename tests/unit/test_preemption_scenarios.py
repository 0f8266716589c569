"""S2, S3: who leaves for whom, as a table: pool, teams, who runs, who waits -> who starts and who is asked to leave."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from moorage.scheduling.ledger import LeaseGranted, LeaseReleased, Ledger, NodeUp, TeamSet, step
from moorage.scheduling.model import (
    DeviceRule,
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
from moorage.scheduling.running import RunningJobs
from moorage.scheduling.validate import check


def team(name: str, quota: int | None = None, limit: int | None = None) -> TeamSpec:
    """GPUs."""
    quotas = () if quota is None else (("*", quota * 1000),)
    return TeamSpec(name=name, quota=quotas, limit=() if limit is None else (("*", limit * 1000),))


def job(name: str, owner: str, workers: int, milli: int = 1000, **more: object) -> JobRequest:
    figures = {"preemptible": True, "min_workers": workers, "submitted_ns": 0, **more}
    return JobRequest(job=name, team=owner, worker=Shape(milli_gpu=milli), workers=workers, **figures)  # type: ignore[arg-type]


TWO = (team("ops", 4), team("research", 4))
FREE_FOR_ALL = (team("ops"),)


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    nodes: tuple[tuple[str, int], ...] = (("n0", 4), ("n1", 4))
    teams: tuple[TeamSpec, ...] = TWO
    runs: tuple[JobRequest, ...] = ()
    waits: tuple[JobRequest, ...] = ()
    keys: dict[str, int] = field(default_factory=dict)
    """Job -> index; 0 where not named."""
    margin: int = 0
    starts: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ()


CASES = [
    Case(
        name="reclaim: the owner takes back what is lent",
        runs=(job("borrowed", "ops", 8),),
        waits=(job("own", "research", 4),),
        starts=("own",),
        leaves=("borrowed",),
    ),
    Case(
        name="reclaim takes no more borrowers than it must",
        runs=(job("a", "ops", 4), job("b", "ops", 2), job("c", "ops", 2)),
        waits=(job("own", "research", 2),),
        starts=("own",),
        leaves=("b",),
    ),
    Case(
        name="what holds its own quota is safe",
        runs=(job("a", "ops", 4), job("b", "research", 4)),
        waits=(job("more", "third", 1, priority=9),),
        teams=(*TWO, team("third", 0)),
    ),
    Case(
        name="who would borrow does not push out a borrower of another team at equal priority",
        teams=(team("ops", 2), team("research", 2), team("third", 4)),
        runs=(job("a", "ops", 8),),
        waits=(job("b", "research", 4),),
        leaves=(),
    ),
    Case(
        name="a borrower of higher priority pushes out one of lower",
        teams=(team("ops", 2), team("research", 2), team("third", 4)),
        runs=(job("a", "ops", 4), job("a2", "ops", 4)),
        waits=(job("b", "research", 4, priority=5),),
        starts=("b",),
        leaves=("a",),
    ),
    Case(
        name="not preemptible is not asked",
        runs=(job("borrowed", "ops", 8, preemptible=False),),
        waits=(job("own", "research", 4),),
    ),
    Case(
        name="no reclaim where there is room",
        runs=(job("borrowed", "ops", 5),),
        waits=(job("own", "research", 3),),
        starts=("own",),
    ),
    Case(
        name="priority within a team",
        teams=(team("ops", 8),),
        runs=(job("low", "ops", 8),),
        waits=(job("high", "ops", 2, priority=5),),
        starts=("high",),
        leaves=("low",),
    ),
    Case(
        name="equal priority pushes nobody out",
        teams=(team("ops", 8),),
        runs=(job("first", "ops", 8),),
        waits=(job("second", "ops", 2),),
    ),
    Case(
        name="the lowest priority leaves first",
        teams=(team("ops", 8),),
        runs=(job("mid", "ops", 4, priority=3), job("low", "ops", 4, priority=1)),
        waits=(job("high", "ops", 4, priority=5),),
        starts=("high",),
        leaves=("low",),
    ),
    Case(
        name="one large victim is given back when smaller ones do",
        teams=(team("ops", 8),),
        runs=(job("large", "ops", 4), job("s1", "ops", 1, priority=1), job("s2", "ops", 1, priority=1)),
        waits=(job("high", "ops", 3, priority=5),),
        starts=("high",),
        leaves=("large",),
    ),
    Case(
        name="a gang that cannot be made to fit pushes nobody out",
        teams=(team("ops", 8),),
        runs=(job("low", "ops", 4), job("stays", "ops", 4, preemptible=False)),
        waits=(job("high", "ops", 6, priority=5),),
    ),
    Case(
        name="index: ahead by more than the margin",
        teams=FREE_FOR_ALL,
        runs=(job("old", "ops", 8),),
        waits=(job("new", "ops", 8),),
        keys={"old": 3000, "new": 1000},
        margin=1024,
        starts=("new",),
        leaves=("old",),
    ),
    Case(
        name="index: within the margin nobody moves",
        teams=FREE_FOR_ALL,
        runs=(job("old", "ops", 8),),
        waits=(job("new", "ops", 8),),
        keys={"old": 2000, "new": 1000},
        margin=1024,
    ),
    Case(
        name="index: the worst leaves, the better stays",
        teams=FREE_FOR_ALL,
        runs=(job("good", "ops", 4), job("bad", "ops", 4)),
        waits=(job("new", "ops", 4),),
        keys={"good": 5000, "bad": 9000, "new": 0},
        starts=("new",),
        leaves=("bad",),
    ),
    Case(
        name="index: who waits with the worse index waits on",
        teams=FREE_FOR_ALL,
        runs=(job("good", "ops", 8),),
        waits=(job("new", "ops", 4),),
        keys={"good": 0, "new": 9000},
    ),
    Case(
        name="index: a whole node is freed, the other is left alone",
        teams=FREE_FOR_ALL,
        runs=(job("x", "ops", 4), job("y", "ops", 1), job("z", "ops", 3)),
        waits=(job("new", "ops", 1, 4000),),
        keys={"x": 5000, "y": 9000, "z": 8000, "new": 0},
        starts=("new",),
        leaves=("y", "z"),
    ),
    Case(
        name="a limit is made room in by one's own lower priority only",
        teams=(team("ops", 8, limit=2), team("research", 0)),
        runs=(job("own", "ops", 2), job("other", "research", 2)),
        waits=(job("high", "ops", 2, priority=5),),
        starts=("high",),
        leaves=("own",),
    ),
    Case(
        name="an elastic gang pushes out for its minimum, no more",
        teams=(team("ops", 8),),
        runs=tuple(job(f"r{n}", "ops", 1) for n in range(8)),
        waits=(job("high", "ops", 8, priority=5, min_workers=2),),
        starts=("high",),
        leaves=("r0", "r1"),
    ),
    Case(
        name="under a limit somebody leaves though his place is of no use",
        teams=(team("ops", limit=4), team("research")),
        runs=(job("other", "research", 3), job("low", "ops", 1)),
        waits=(job("high", "ops", 1, 4000, priority=5),),
        starts=("high",),
        leaves=("low",),
    ),
    Case(
        name="fractions leave one by one",
        nodes=(("n0", 1),),
        teams=(team("ops", 1),),
        runs=tuple(job(f"r{n}", "ops", 1, 250) for n in range(4)),
        waits=(job("high", "ops", 1, 500, priority=5),),
        starts=("high",),
        leaves=("r0", "r1"),
    ),
]


def grant(ledger: Ledger, request: JobRequest, tasks: tuple[TaskPlacement, ...]) -> None:
    epoch = ledger.last_epoch + 1
    lease = Lease(lease=request.job, job=request.job, team=request.team, epoch=epoch, tasks=tasks)
    step(ledger, LeaseGranted(lease))


def decide(case: Case) -> tuple[Ledger, Snapshot, Plan]:
    ledger = Ledger()
    for name, devices in case.nodes:
        step(ledger, NodeUp(NodeSpec(name=name, gpu_model="A", devices=devices)))
    for spec in case.teams:
        step(ledger, TeamSet(spec))
    for request in case.runs:
        queue = Queue.of((request,))
        first = Snapshot(version=ledger.version, ledger=ledger, pending=queue, device_rule=DeviceRule.FREE)
        ((_, tasks),) = plan(first, Policy(), 0).admissions(first)
        grant(ledger, request, tasks)
    running = RunningJobs.of(ledger, {request.job: request for request in case.runs})
    queue = Queue.of(case.waits)
    keyed = np.array([case.keys.get(request.job, 0) for request in case.waits], np.int64)
    for at, request in enumerate(case.runs):
        running.key[at] = case.keys.get(request.job, 0)
    snapshot = Snapshot(
        version=ledger.version,
        ledger=ledger,
        pending=replace(queue, key=keyed),
        running=running,
        device_rule=DeviceRule.FREE,
    )
    return ledger, snapshot, plan(snapshot, Policy(margin=case.margin), 0)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_scenario(case: Case) -> None:
    ledger, snapshot, decided = decide(case)
    starts = list(decided.admissions(snapshot))
    assert tuple(request.job for request, _ in starts) == case.starts
    assert decided.preempted == case.leaves
    for name in decided.preempted:
        step(ledger, LeaseReleased(name, ledger.leases[name].epoch))
    for request, tasks in starts:
        grant(ledger, request, tasks)
    check(ledger)


@pytest.mark.parametrize("case", [case for case in CASES if case.leaves], ids=lambda c: c.name)
def test_who_was_pushed_out_does_not_push_back(case: Case) -> None:
    """The next decision, with the one that left waiting again, pushes nobody out: never a cycle."""
    ledger, snapshot, decided = decide(case)
    starts = {request.job: (request, tasks) for request, tasks in decided.admissions(snapshot)}
    for name in decided.preempted:
        step(ledger, LeaseReleased(name, ledger.leases[name].epoch))
    for request, tasks in starts.values():
        grant(ledger, request, tasks)
    out = tuple(request for request in case.runs if request.job in decided.preempted)
    runs = [request for request in case.runs if request.job not in decided.preempted]
    runs += [request for request, _ in starts.values()]
    running = RunningJobs.of(ledger, {request.job: request for request in runs})
    for at, request in enumerate(runs):
        running.key[at] = case.keys.get(request.job, 0)
    keyed = np.array([case.keys.get(request.job, 0) for request in out], np.int64)
    again = Snapshot(
        version=ledger.version,
        ledger=ledger,
        pending=replace(Queue.of(out), key=keyed),
        running=running,
        device_rule=DeviceRule.FREE,
    )
    assert plan(again, Policy(margin=case.margin), 0).preempted == ()
