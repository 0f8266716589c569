"""S5, S7: gangs within racks, spread over nodes, and the power of a rack: scenarios as tables.

A pool is a text: `r0: a4 b4 | r1: c2` is rack r0 with nodes a and b of 4 devices, and rack r1 with c; `-` is no rack.
Placements are node/devices per worker.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from moorage.scheduling.constraints import Constraints, Effect, Power, Taint, Toleration, Traits
from moorage.scheduling.ledger import LeaseGranted, Ledger, NodeUp, TeamSet, step
from moorage.scheduling.model import (
    DeviceRule,
    JobRequest,
    Lease,
    NodeSpec,
    Policy,
    ReasonCode,
    Shape,
    Snapshot,
    TeamSpec,
)
from moorage.scheduling.planner import feasible, plan
from moorage.scheduling.queue import Queue
from moorage.scheduling.running import RunningJobs
from moorage.scheduling.validate import check

R = ReasonCode
RACK = Constraints(required="rack")
NEAR = Constraints(preferred="rack")
NONE = Constraints()


def spread(most: int, by: str = "", **more: str) -> Constraints:
    return Constraints(spread=most, spread_by=by, **more)


@dataclass(frozen=True, kw_only=True)
class Job:
    workers: int
    constraints: Constraints = NONE
    least: int | None = None
    milli: int = 1000
    head: int = 0
    """milli-GPU of the entrypoint"""
    priority: int = 0
    preemptible: bool = False


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    pool: str
    job: Job
    held: dict[str, str] = field(default_factory=dict)
    """job -> 'node/devices ...', held by others"""
    starts: str = ""
    waits: str = ""
    """the reason: a code, or a part of the sentence"""
    policy: Policy = field(default_factory=Policy)
    traits: dict[str, Traits] = field(default_factory=dict)
    """node -> its traits, where a rack is not all there is to say"""


def power(*caps: tuple[str, int], watts: int = 100) -> Policy:
    return Policy(power=Power(watts=(("*", watts),), caps=caps))


TWO = "r0: a4 b4 | r1: c4 d4"
CASES = [
    Case(name="a gang in one rack", pool=TWO, job=Job(workers=5, constraints=RACK), starts="a/0123 b/0"),
    Case(
        name="a gang that spills over starts elsewhere whole",
        pool=TWO,
        held={"h": "a/0"},
        job=Job(workers=8, constraints=RACK),
        starts="c/0123 d/0123",
    ),
    Case(
        name="the smallest rack that holds it",
        pool="r0: a4 b4 | r1: c2 d1 | r2: e2 f2",
        job=Job(workers=3, constraints=RACK),
        starts="d/0 c/01",
    ),
    Case(
        name="smallest by what is free now, not by what it has",
        pool="r0: a4 b4 | r1: c4",
        held={"h": "a/012 b/012"},
        job=Job(workers=2, constraints=RACK),
        starts="a/3 b/3",
    ),
    Case(
        name="ties go to the first name",
        pool="r9: a2 | r1: b2 | r5: c2",
        job=Job(workers=2, constraints=RACK),
        starts="b/01",
    ),
    Case(
        name="enough is free, but in no rack",
        pool=TWO,
        held={"h": "a/01 c/01"},
        job=Job(workers=7, constraints=RACK),
        waits="asks for 7 GPUs within one rack; 12 are free in the pool, but in no rack is there room for the whole "
        "gang; starts when h ends",
    ),
    Case(
        name="not enough is free anywhere",
        pool=TWO,
        held={"h": "a/0123 b/0123 c/0123"},
        job=Job(workers=7, constraints=RACK),
        waits="pool-full",
    ),
    Case(
        name="no rack is large enough",
        pool=TWO,
        job=Job(workers=9, constraints=RACK),
        waits="(9 GPUs asked; no rack is large enough for the whole gang)",
    ),
    Case(
        name="nodes without a rack are in none",
        pool="-: a4 b4 | r1: c2",
        job=Job(workers=3, constraints=RACK),
        waits="no-device",
    ),
    Case(
        name="the head is in the rack too",
        pool="r0: a2 | r1: b2 c1",
        job=Job(workers=2, head=1000, constraints=RACK),
        starts="c/0 b/01",
    ),
    Case(
        name="an elastic gang goes where all of it fits",
        pool="r0: a3 | r1: b4",
        job=Job(workers=4, least=1, constraints=RACK),
        starts="b/0123",
    ),
    Case(
        name="where all of it fits nowhere, where most does",
        pool="r0: a2 | r1: b3 | r2: c3",
        job=Job(workers=4, least=1, constraints=RACK),
        starts="b/012",
    ),
    Case(
        name="and waits below its least",
        pool="r0: a2 | r1: b3",
        job=Job(workers=5, least=4, constraints=RACK),
        waits="no-device",
    ),
    Case(
        name="whole devices per worker count as they fit nodes",
        pool="r0: a3 b3 | r1: c4 d4",
        job=Job(workers=3, milli=2000, constraints=RACK),
        starts="c/01 c/23 d/01",
    ),
    Case(
        name="fractions share within the rack",
        pool="r0: a1 | r1: b2",
        job=Job(workers=3, milli=600, constraints=RACK),
        waits="no-device",
    ),
    Case(
        name="preferred: one rack where one will do, the smallest",
        pool="r0: a4 b4 | r1: c3",
        job=Job(workers=3, constraints=NEAR),
        starts="c/012",
    ),
    Case(
        name="preferred: few racks, the largest first, the rest in the smallest that holds it",
        pool="r0: a2 | r1: b4 | r2: c3 | r3: d1",
        job=Job(workers=5, constraints=NEAR),
        starts="b/0123 d/0",
    ),
    Case(
        name="preferred: nodes without a rack come last",
        pool="-: a4 | r1: c2",
        job=Job(workers=3, constraints=NEAR),
        starts="c/01 a/0",
    ),
    Case(
        name="preferred racks within a required zone",
        pool="z0/r0: a4 | z0/r1: b1 | z1/r2: c2 | z1/r3: d3",
        job=Job(workers=5, constraints=Constraints(required="zone", preferred="rack")),
        starts="a/0123 b/0",
    ),
    Case(
        name="racks of one name in two zones are two",
        pool="z0/r1: a2 | z1/r1: b2",
        job=Job(workers=3, constraints=RACK),
        policy=Policy(topology=("zone", "rack")),
        waits="no rack is large enough",
    ),
    Case(
        name="where no levels are named they are one",
        pool="z0/r1: a2 | z1/r1: b2",
        job=Job(workers=3, constraints=RACK),
        starts="a/01 b/0",
    ),
    Case(name="one per node", pool=TWO, job=Job(workers=3, constraints=spread(1)), starts="a/0 b/0 c/0"),
    Case(name="two per node", pool=TWO, job=Job(workers=3, constraints=spread(2)), starts="a/01 b/0"),
    Case(
        name="too few nodes to spread over",
        pool=TWO,
        job=Job(workers=5, constraints=spread(1)),
        waits="with at most 1 worker per node there are too few",
    ),
    Case(
        name="too few nodes with room to spread over now",
        pool=TWO,
        held={"h": "d/0123"},
        job=Job(workers=4, constraints=spread(1)),
        waits="asks for 4 GPUs with at most 1 worker per node; 12 are free in the pool, but not so far apart; starts "
        "when h ends",
    ),
    Case(
        name="spread over racks",
        pool=TWO,
        job=Job(workers=4, constraints=spread(2, "rack")),
        starts="a/01 c/01",
    ),
    Case(
        name="spread over nodes of one rack",
        pool="r0: a4 b4 | r1: c1 d1 e1",
        job=Job(workers=3, constraints=spread(1, required="rack")),
        starts="c/0 d/0 e/0",
    ),
    Case(
        name="an elastic gang takes what spreading leaves",
        pool=TWO,
        job=Job(workers=8, least=2, constraints=spread(1)),
        starts="a/0 b/0 c/0 d/0",
    ),
    Case(
        name="the head does not count for spread",
        pool="r0: a2 b2",
        job=Job(workers=2, head=1000, constraints=spread(1)),
        starts="a/0 a/1 b/0",
    ),
    Case(
        name="power: no more than the rack's cap in use",
        pool="r0: a4 b4 | r1: c4",
        job=Job(workers=4),
        policy=power(("r0", 200), ("r1", 300)),
        starts="a/01 c/01",
    ),
    Case(
        name="power: what others use counts",
        pool="r0: a4",
        held={"h": "a/0"},
        job=Job(workers=2),
        policy=power(("*", 200)),
        waits="asks for 2 GPUs; 3 are free in the pool, but more in use would exceed a power cap: rack r0 (100 of 200 "
        "W); starts when h ends, or when a cap is raised",
    ),
    Case(
        name="power: beyond any cap is refused",
        pool="r0: a4",
        job=Job(workers=3),
        policy=power(("*", 200)),
        waits="(3 GPUs asked; a power cap allows less: rack r0 (0 of 200 W))",
    ),
    Case(
        name="power: a second share of a device in use costs nothing",
        pool="r0: a4",
        held={"h": "a/0:500"},
        job=Job(workers=1, milli=500),
        policy=power(("*", 100)),
        starts="a/0",
    ),
    Case(
        name="power: a node's own figure goes before its model's",
        pool="r0: a2",
        traits={"a": Traits.of({"rack": "r0"}, device_watts=150)},
        job=Job(workers=2, least=1),
        policy=power(("*", 200)),
        starts="a/0",
    ),
    Case(
        name="power: racks without a cap, and nodes without a rack, are free",
        pool="r0: a2 | r1: b2 | -: c2",
        job=Job(workers=5),
        policy=power(("r0", 100)),
        starts="a/0 b/01 c/01",
    ),
    Case(
        name="power: a required rack is one whose cap holds the gang",
        pool="r0: a2 | r1: b4",
        job=Job(workers=2, constraints=RACK),
        policy=power(("r0", 100)),
        starts="b/01",
    ),
    Case(
        name="a last resort is taken last",
        pool="-: a2 b2",
        traits={"a": Traits(taints=(Taint(key="old", effect=Effect.PREFER_NO_SCHEDULE),))},
        job=Job(workers=3),
        starts="b/01 a/0",
    ),
    Case(
        name="a last resort that is tolerated is none",
        pool="-: a2 b2",
        traits={"a": Traits(taints=(Taint(key="old", effect=Effect.PREFER_NO_SCHEDULE),))},
        job=Job(workers=3, constraints=Constraints(tolerations=(Toleration(key="old"),))),
        starts="a/01 b/0",
    ),
]


def build(case: Case) -> Ledger:
    ledger = Ledger()
    for name in ("ops", "other"):
        step(ledger, TeamSet(TeamSpec(name=name)))
    for part in case.pool.split("|"):
        rack, _, nodes = part.partition(":")
        zone, _, rack = rack.strip().rpartition("/")
        labels = {k: v for k, v in (("zone", zone), ("rack", rack)) if v not in ("", "-")}
        for node in nodes.split():
            traits = case.traits.get(node[0], Traits.of(labels))
            spec = NodeSpec(
                name=node[0], gpu_model="L4", devices=int(node[1:]), device_mib=1000, traits=traits
            )
            step(ledger, NodeUp(spec))
    for job, text in case.held.items():
        hold(ledger, job, text)
    return ledger


def hold(ledger: Ledger, job: str, text: str) -> JobRequest:
    """A lease of single devices at given places, through a plan of its own for its tasks' figures."""
    from moorage.scheduling.model import Role, TaskPlacement

    tasks = []
    for at in text.split():
        node, _, rest = at.partition("/")
        devices, _, milli = rest.partition(":")
        for d in devices:
            amount = int(milli or 1000)
            tasks.append(
                TaskPlacement(
                    role=Role.WORKER,
                    index=len(tasks),
                    node=node,
                    devices=(int(d),),
                    milli_gpu=amount,
                    gpu_mib=amount,
                    milli_cpu=0,
                    mib=0,
                )
            )
    lease = Lease(lease=job, job=job, team="other", epoch=ledger.last_epoch + 1, tasks=tuple(tasks))
    step(ledger, LeaseGranted(lease))
    return request(job, Job(workers=len(tasks), milli=amount, preemptible=True), team="other")


def request(name: str, job: Job, team: str = "ops") -> JobRequest:
    return JobRequest(
        job=name,
        team=team,
        submitted_ns=0,
        head=Shape(milli_gpu=job.head),
        worker=Shape(milli_gpu=job.milli),
        workers=job.workers,
        min_workers=job.workers if job.least is None else job.least,
        priority=job.priority,
        preemptible=job.preemptible,
        constraints=job.constraints,
    )


def places(tasks: tuple[object, ...]) -> str:
    """'a/01 b/0': neighbours on one node are written together, but for tasks of several devices."""
    found: list[tuple[str, str, int]] = []
    for t in tasks:
        devices = "".join(map(str, t.devices))  # type: ignore[attr-defined]
        single = len(devices) == 1 and t.role == "worker"  # type: ignore[attr-defined]
        if found and single and found[-1][0] == t.node and found[-1][2] and devices not in found[-1][1]:  # type: ignore[attr-defined]
            found[-1] = (t.node, found[-1][1] + devices, 1)  # type: ignore[attr-defined]
        else:
            found.append((t.node, devices, int(single)))  # type: ignore[attr-defined]
    return " ".join(f"{node}/{devices}" for node, devices, _ in found)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_scenario(case: Case) -> None:
    ledger = build(case)
    check(ledger)
    wanted = request("j", case.job)
    snapshot = Snapshot(version=ledger.version, ledger=ledger, pending=Queue.of((wanted,)))
    decided = plan(snapshot, case.policy, 0)
    started = [places(tasks) for _, tasks in decided.admissions(snapshot)]
    assert started == ([case.starts] if case.starts else [])
    for _, reason in decided.waiting(snapshot):
        assert case.waits in f"{reason.code}: {reason.text()}"
    never = feasible(ledger, wanted, DeviceRule.RAYLET, case.policy)
    assert (never is not None) == any(reason.code is R.NO_DEVICE for _, reason in decided.waiting(snapshot))


def test_the_same_rack_needs_are_planned_alike_whatever_was_planned_before() -> None:
    """A kept working copy answers as a fresh one does, also when new keys and classes come."""
    from moorage.scheduling.workspace import Workspace

    ledger, workspace = build(CASES[1]), Workspace()
    for constraints in (NONE, RACK, spread(1), spread(2, "rack"), NEAR, replace(RACK, spread=2)):
        pending = Queue.of((request("j", Job(workers=4, constraints=constraints)),))
        snapshot = Snapshot(version=ledger.version, ledger=ledger, pending=pending)
        kept, fresh = plan(snapshot, Policy(), 0, workspace), plan(snapshot, Policy(), 0)
        assert kept.task_node.tolist() == fresh.task_node.tolist()
        assert kept.task_devices.tolist() == fresh.task_devices.tolist()


def pushing(case: Case, policy: Policy, **running: Job) -> tuple[list[str], tuple[str, ...]]:
    """Plan for `case.job` at priority 10 over the held jobs, all preemptible: (placements, who must leave)."""
    ledger = build(case)
    jobs = {
        lease.lease: request(lease.lease, Job(workers=len(lease.tasks), preemptible=True), "other")
        for lease in ledger.leases.values()
    }
    wanted = replace(request("j", case.job), priority=10)
    snapshot = Snapshot(
        version=ledger.version,
        ledger=ledger,
        pending=Queue.of((wanted,)),
        running=RunningJobs.of(ledger, jobs),
    )
    decided = plan(snapshot, policy, 0)
    return [places(tasks) for _, tasks in decided.admissions(snapshot)], decided.preempted


def test_preemption_for_a_rack_asks_only_who_is_in_it() -> None:
    case = Case(
        name="",
        pool=TWO,
        held={"h0": "a/0", "h1": "a/1 b/0", "h2": "c/0123", "h3": "d/0123"},
        job=Job(workers=7, constraints=RACK),
    )
    started, preempted = pushing(case, Policy())
    assert started and {p[0] for p in started[0].split()} == {"a", "b"}
    assert set(preempted) == {"h0", "h1"} or set(preempted) == {"h1"}
    assert "h2" not in preempted and "h3" not in preempted


def test_preemption_gives_power_back() -> None:
    """Who leaves is on other devices than the asker gets: places to return to are free, watts are not."""
    case = Case(name="", pool="r0: a4", held={"h0": "a/2", "h1": "a/3"}, job=Job(workers=2))
    started, preempted = pushing(case, power(("*", 300)))
    assert len(started) == 1 and len(preempted) == 1, "one more may run beside the other two"
    started, preempted = pushing(case, power(("*", 200)))
    assert len(started) == 1 and set(preempted) == {"h0", "h1"}, "nobody is put back above the cap"


@pytest.mark.parametrize("workers", [0, 3])
def test_a_job_without_any_need_starts_under_a_cap(workers: int) -> None:
    """It has no class, so there is no rule to read for it."""
    ledger, wanted = (
        build(Case(name="", pool="r0: a4", job=Job(workers=1))),
        request("j", Job(workers=workers, milli=0)),
    )
    snapshot = Snapshot(version=ledger.version, ledger=ledger, pending=Queue.of((wanted,)))
    assert plan(snapshot, power(("*", 100)), 0).admitted.tolist() == [0]
