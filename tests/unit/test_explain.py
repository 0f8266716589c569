"""S2, S3: why a job waits and what would start it now: scenarios whose answers were worked out by hand.

A held lease is (job, team, milli-GPU per task, places), a place is node/devices; its lease has the name of the job.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from moorage.scheduling.changes import (
    Change,
    Ends,
    FewerWorkers,
    OtherModel,
    RaiseLimit,
    RaiseQuota,
    Together,
    changed,
)
from moorage.scheduling.constraints import Constraints, Taint, Term, Traits
from moorage.scheduling.explain import explain, span
from moorage.scheduling.ledger import LeaseGranted, Ledger, NodeUp, TeamSet, step
from moorage.scheduling.model import (
    JobRequest,
    Lease,
    NodeSpec,
    Policy,
    ReasonCode,
    Role,
    Shape,
    Snapshot,
    TaskPlacement,
    TeamSpec,
)
from moorage.scheduling.planner import plan
from moorage.scheduling.queue import Queue, TaskClass
from moorage.scheduling.relaxing import EVERYTHING, Relax
from moorage.scheduling.running import RunningJobs

MINUTE = 60 * 10**9
R = ReasonCode
Held = tuple[str, str, int, str]


def team(name: str, parent: str = "", **figures: int | dict[str, int]) -> TeamSpec:
    """GPUs, not milli-GPU; by model where it is a mapping."""
    said = {k: {"*": v} if isinstance(v, int) else v for k, v in figures.items()}
    rows = {k: tuple((model, n * 1000) for model, n in v.items()) for k, v in said.items()}
    return TeamSpec(name=name, parent=parent, **rows)


def job(owner: str, workers: int, milli: int = 1000, name: str = "job", **more: object) -> JobRequest:
    shape = {k: int(more.pop(k, 0)) for k in ("gpu_mib", "milli_cpu", "mib")}  # type: ignore[call-overload]
    return JobRequest(
        job=name,
        team=owner,
        submitted_ns=int(more.pop("at", 0)),  # type: ignore[call-overload]
        worker=Shape(milli_gpu=milli, **shape),
        workers=workers,
        min_workers=int(more.pop("least", workers)),  # type: ignore[call-overload]
        **more,  # type: ignore[arg-type]
    )


SSD, ON_SSD = Traits.of({"disk": "ssd"}), Term(key="disk", values=("ssd",))
FREE_TEAM = (team("ops"),)
L4S = (("n0", "L4", 4), ("n1", "L4", 4))
MIXED = (("n0", "L4", 4), ("n1", "A100", 4))
FULL = (("a", "ops", 1000, "n0/0123"), ("b", "ops", 1000, "n1/0123"))


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    jobs: tuple[JobRequest, ...]
    """The last is explained."""
    why: ReasonCode
    changes: tuple[Change, ...] = ()
    nodes: tuple[tuple[str, str, int], ...] = L4S
    teams: tuple[TeamSpec, ...] = FREE_TEAM
    held: tuple[Held, ...] = ()
    ends: dict[str, int] = field(default_factory=dict)
    """Minutes."""
    earliest: int | None = None
    """Minutes."""
    now: int = 0
    """Minutes."""
    traits: dict[str, Traits] = field(default_factory=dict)
    """Of nodes, by name."""


def ends(*jobs: str) -> Ends:
    return Ends(jobs, jobs)


CASES = [
    Case(
        name="one of eight is held",
        held=(("h", "ops", 1000, "n0/0"),),
        jobs=(job("ops", 8),),
        why=R.POOL_FULL,
        changes=(FewerWorkers(7), ends("h")),
    ),
    Case(
        name="two devices a worker: three free on each node hold one each",
        held=(("a", "ops", 1000, "n0/0"), ("b", "ops", 1000, "n1/0")),
        jobs=(job("ops", 4, 2000),),
        why=R.POOL_FULL,
        changes=(FewerWorkers(2), ends("a", "b")),
    ),
    Case(
        name="a whole node: the node with one lease, not the one with two",
        held=(("b", "ops", 1000, "n1/0"), ("c", "ops", 1000, "n1/1"), ("a", "ops", 1000, "n0/0")),
        jobs=(job("ops", 1, 4000),),
        why=R.FRAGMENTED,
        changes=(ends("a"),),
    ),
    Case(
        name="a whole node: two leases on one node, not the two oldest",
        held=(
            ("a", "ops", 1000, "n0/0"),
            ("b", "ops", 1000, "n1/0"),
            ("c", "ops", 1000, "n0/1"),
            ("d", "ops", 1000, "n1/1"),
            ("e", "ops", 1000, "n0/2"),
        ),
        jobs=(job("ops", 1, 4000),),
        why=R.POOL_FULL,
        changes=(ends("b", "d"),),
    ),
    Case(
        name="a whole node: two small leases on one node, not the largest and two more",
        held=(
            ("x", "ops", 1000, "n0/01"),
            ("y", "ops", 1000, "n0/2"),
            ("z", "ops", 1000, "n0/3"),
            ("p", "ops", 1000, "n1/0"),
            ("q", "ops", 1000, "n1/1"),
        ),
        jobs=(job("ops", 1, 4000),),
        why=R.POOL_FULL,
        changes=(ends("p", "q"),),
    ),
    Case(
        name="larger than the pool",
        jobs=(job("ops", 9),),
        why=R.NO_DEVICE,
        changes=(FewerWorkers(8),),
    ),
    Case(
        name="the head takes one: of three free two are left for workers",
        held=(("a", "ops", 1000, "n0/0123"), ("b", "ops", 1000, "n1/0")),
        jobs=(replace(job("ops", 3), head=Shape(milli_gpu=1000)),),
        why=R.POOL_FULL,
        changes=(FewerWorkers(2), ends("b")),
    ),
    Case(
        name="a job of a head alone has no workers to do without",
        held=FULL,
        jobs=(replace(job("ops", 0), head=Shape(milli_gpu=2000)),),
        why=R.POOL_FULL,
        changes=(ends("a"),),
    ),
    Case(
        name="an elastic job below its least",
        held=(("a", "ops", 1000, "n0/0123"), ("b", "ops", 1000, "n1/01")),
        jobs=(job("ops", 8, least=3),),
        why=R.POOL_FULL,
        changes=(FewerWorkers(2), ends("b")),
    ),
    Case(
        name="the smallest lease that is enough",
        held=(
            ("large", "ops", 1000, "n0/0123"),
            ("small", "ops", 1000, "n1/01"),
            ("tiny", "ops", 1000, "n1/2 n1/3"),
        ),
        jobs=(job("ops", 1),),
        why=R.POOL_FULL,
        changes=(ends("small"),),
    ),
    Case(
        name="one lease of four, not three of one and two",
        held=(
            ("a", "ops", 1000, "n0/01"),
            ("b", "ops", 1000, "n0/2"),
            ("c", "ops", 1000, "n0/3"),
            ("d", "ops", 1000, "n1/0123"),
        ),
        jobs=(job("ops", 4),),
        why=R.POOL_FULL,
        changes=(ends("d"),),
    ),
    Case(
        name="of equals the oldest two",
        held=tuple(
            (n, "ops", 1000, p) for n, p in zip("abcd", ("n1/01", "n0/01", "n0/23", "n1/23"), strict=True)
        ),
        jobs=(job("ops", 4),),
        why=R.POOL_FULL,
        changes=(ends("a", "b"),),
    ),
    Case(
        name="a fraction on a shared device",
        nodes=(("n0", "L4", 2),),
        held=(("a", "ops", 600, "n0/0"), ("b", "ops", 600, "n0/1")),
        jobs=(job("ops", 1, 700),),
        why=R.FRAGMENTED,
        changes=(ends("a"),),
    ),
    Case(
        name="CPU binds",
        held=(("a", "ops", 0, "n0/"), ("b", "ops", 0, "n1/")),
        jobs=(job("ops", 2, 0, milli_cpu=4000),),
        why=R.FRAGMENTED,
        changes=(ends("a"),),
    ),
    Case(
        name="limit reached",
        teams=(team("ops", quota=2, limit=2),),
        held=(("h", "ops", 1000, "n0/01"),),
        jobs=(job("ops", 2),),
        why=R.TEAM_LIMIT,
        changes=(RaiseLimit("ops", "*", 2000), ends("h")),
    ),
    Case(
        name="limit nearly reached",
        teams=(team("ops", limit=3),),
        held=(("a", "ops", 1000, "n0/0"), ("b", "ops", 1000, "n0/1")),
        jobs=(job("ops", 2),),
        why=R.TEAM_LIMIT,
        changes=(FewerWorkers(1), RaiseLimit("ops", "*", 1000), ends("a")),
    ),
    Case(
        name="who is not under the limit need not end",
        teams=(team("ops", limit=2), team("other")),
        held=(("a", "other", 1000, "n0/0123"), ("b", "ops", 1000, "n1/0")),
        jobs=(job("ops", 2),),
        why=R.TEAM_LIMIT,
        changes=(FewerWorkers(1), RaiseLimit("ops", "*", 1000), ends("b")),
    ),
    Case(
        name="the parent's limit",
        teams=(team("org", limit=3), team("ops", "org")),
        held=(("h", "ops", 1000, "n0/0"),),
        jobs=(job("ops", 3),),
        why=R.TEAM_LIMIT,
        changes=(FewerWorkers(2), RaiseLimit("org", "*", 1000), ends("h")),
    ),
    Case(
        name="two limits at once",
        teams=(team("org", limit=4), team("ops", "org", limit=2), team("dev", "org")),
        held=(("d", "dev", 1000, "n0/01"), ("h", "ops", 1000, "n0/23")),
        jobs=(job("ops", 2),),
        why=R.TEAM_LIMIT,
        changes=(Together((RaiseLimit("org", "*", 2000), RaiseLimit("ops", "*", 2000))), ends("h")),
    ),
    Case(
        name="limit of one model: more of it, or the other model",
        nodes=MIXED,
        teams=(team("ops", limit={"L4": 1}),),
        held=(("h", "ops", 1000, "n0/0"),),
        jobs=(job("ops", 1, gpu_models=("L4",)),),
        why=R.TEAM_LIMIT,
        changes=(OtherModel("A100"), RaiseLimit("ops", "L4", 1000), ends("h")),
    ),
    Case(
        name="limits of both models: one of them is enough",
        nodes=MIXED,
        teams=(team("ops", limit={"L4": 1, "A100": 1}),),
        jobs=(job("ops", 3),),
        why=R.TEAM_LIMIT,
        changes=(FewerWorkers(2), RaiseLimit("ops", "A100", 1000)),
    ),
    Case(
        name="a raised limit is no use in a full pool",
        teams=(team("ops", limit=4), team("other")),
        held=(("a", "other", 1000, "n0/0123"), ("b", "ops", 1000, "n1/0123")),
        jobs=(job("ops", 4),),
        why=R.TEAM_LIMIT,
        changes=(ends("b"),),
    ),
    Case(
        name="jobs ahead take the first of what is raised",
        teams=(team("ops", limit=1),),
        held=(("h", "ops", 1000, "n0/0"),),
        jobs=(job("ops", 2, name="ahead"), job("ops", 1, at=1)),
        why=R.TEAM_LIMIT,
        changes=(RaiseLimit("ops", "*", 1000), ends("h")),
    ),
    Case(
        name="quota, and nothing is lent",
        teams=(team("ops", quota=6, lend=0), team("dev", quota=2)),
        jobs=(job("dev", 3),),
        why=R.TEAM_QUOTA,
        changes=(FewerWorkers(2), RaiseQuota("dev", "*", 1000)),
    ),
    Case(
        name="quota and a bound on borrowing",
        teams=(team("ops", quota=6), team("dev", quota=2, borrow=1)),
        jobs=(job("dev", 4),),
        why=R.TEAM_QUOTA,
        changes=(FewerWorkers(3), RaiseQuota("dev", "*", 1000)),
    ),
    Case(
        name="what others borrow comes back when they end",
        teams=(team("ops", quota=4, lend=2), team("a", quota=2), team("b", quota=2)),
        held=(("h", "a", 1000, "n0/0123"),),
        jobs=(job("b", 3),),
        why=R.TEAM_QUOTA,
        changes=(FewerWorkers(2), RaiseQuota("b", "*", 1000), ends("h")),
    ),
    Case(
        name="quota up to the limit: both",
        teams=(team("ops", quota=6, lend=0), team("dev", quota=2, limit=2)),
        jobs=(job("dev", 3),),
        why=R.TEAM_LIMIT,
        changes=(FewerWorkers(2), Together((RaiseQuota("dev", "*", 1000), RaiseLimit("dev", "*", 1000)))),
    ),
    Case(
        name="a quota of a team within a team",
        teams=(team("org", quota=4), team("dev", "org", quota=4), team("ops", quota=4, lend=0)),
        jobs=(job("dev", 5),),
        why=R.TEAM_QUOTA,
        changes=(FewerWorkers(4), RaiseQuota("dev", "*", 1000)),
    ),
    Case(
        name="the other model is free",
        nodes=MIXED,
        held=(("h", "ops", 1000, "n0/0123"),),
        jobs=(job("ops", 2, gpu_models=("L4",)),),
        why=R.POOL_FULL,
        changes=(OtherModel("A100"), ends("h")),
    ),
    Case(
        name="a model that nobody has",
        jobs=(job("ops", 1, gpu_models=("H100",)),),
        why=R.NO_DEVICE,
        changes=(OtherModel("L4"),),
    ),
    Case(
        name="either of two models",
        nodes=MIXED,
        jobs=(job("ops", 4, gpu_models=("T4",)),),
        why=R.NO_DEVICE,
        changes=(OtherModel("L4"), OtherModel("A100")),
    ),
    Case(
        name="no one model has enough, all have",
        nodes=MIXED,
        jobs=(job("ops", 6, gpu_models=("T4",)),),
        why=R.NO_DEVICE,
        changes=(OtherModel("*"),),
    ),
    Case(
        name="a label that one node lacks",
        held=(("h", "ops", 1000, "n0/0123"),),
        traits={"n0": SSD},
        jobs=(job("ops", 1, constraints=Constraints(select=(ON_SSD,))),),
        why=R.POOL_FULL,
        changes=(Relax("label", "disk=ssd"), ends("h")),
    ),
    Case(
        name="another region, not the one that is full too",
        nodes=(*L4S, ("n2", "L4", 1)),
        held=(("a", "ops", 1000, "n0/0123"), ("b", "ops", 1000, "n1/0123")),
        traits={"n0": Traits(region="eu"), "n1": Traits(region="us"), "n2": Traits(region="in")},
        jobs=(job("ops", 1, constraints=Constraints(regions=("eu",))),),
        why=R.POOL_FULL,
        changes=(Relax("region", "in"), ends("a")),
    ),
    Case(
        name="spot is free, and so is a tainted node",
        nodes=(*L4S, ("n2", "L4", 1)),
        held=(("h", "ops", 1000, "n0/0123"),),
        traits={"n1": Traits(spot=True), "n2": Traits(taints=(Taint(key="ml"),))},
        jobs=(job("ops", 1),),
        why=R.POOL_FULL,
        changes=(Relax("spot"), Relax("taint", "ml:NoSchedule"), ends("h")),
    ),
    Case(
        name="no one constraint is enough",
        held=(("h", "ops", 1000, "n0/0123"),),
        traits={"n0": SSD, "n1": Traits(spot=True)},
        jobs=(job("ops", 1, constraints=Constraints(select=(ON_SSD,))),),
        why=R.POOL_FULL,
        changes=(Relax(EVERYTHING), ends("h")),
    ),
    Case(
        name="constraints that rule no node out are not what it waits for",
        held=FULL,
        traits={"n0": SSD, "n1": SSD},
        jobs=(job("ops", 1, constraints=Constraints(select=(ON_SSD,))),),
        why=R.POOL_FULL,
        changes=(ends("a"),),
    ),
    Case(name="no such team", jobs=(job("who", 1),), why=R.TEAM_UNKNOWN, held=FULL, ends={"a": 5}),
    Case(
        name="behind a gang: both start when one ends",
        held=(("h", "ops", 1000, "n0/01"),),
        jobs=(job("ops", 7, name="gang"), job("ops", 1, at=1)),
        now=11,
        why=R.BEHIND,
        changes=(ends("h"),),
        ends={"h": 30},
        earliest=30,
    ),
    Case(
        name="behind a gang that takes all: nothing helps",
        held=(("h", "ops", 1000, "n0/0"),),
        jobs=(job("ops", 8, name="gang"), job("ops", 1, at=1)),
        now=11,
        why=R.BEHIND,
        ends={"h": 30},
    ),
    Case(
        name="a growing job need not end to grow",
        held=(("train", "ops", 1000, "n0/0123"), ("b", "ops", 1000, "n1/0123")),
        jobs=(job("ops", 1, parent="train"),),
        why=R.POOL_FULL,
        changes=(ends("b"),),
        ends={"train": 1, "b": 7},
        earliest=7,
    ),
    Case(
        name="when both have ended",
        held=FULL,
        jobs=(job("ops", 5),),
        why=R.POOL_FULL,
        changes=(ends("a", "b"),),
        ends={"a": 20, "b": 10},
        earliest=20,
    ),
    Case(
        name="an end that is not known is not counted on",
        held=FULL,
        jobs=(job("ops", 5),),
        why=R.POOL_FULL,
        changes=(ends("a", "b"),),
        ends={"a": 20, "gone": 1},
    ),
    Case(
        name="one that is late ends now",
        held=FULL,
        jobs=(job("ops", 4),),
        why=R.POOL_FULL,
        changes=(ends("a"),),
        ends={"b": 3},
        now=5,
        earliest=5,
    ),
    Case(
        name="by the time of the end a gang has waited so long that it holds the room",
        held=FULL,
        jobs=(job("ops", 8, name="gang"), job("ops", 1, at=1)),
        why=R.POOL_FULL,
        changes=(ends("a"),),
        ends={"a": 30},
    ),
    Case(
        name="the job ahead takes the first end",
        held=FULL,
        jobs=(job("ops", 4, name="ahead"), job("ops", 4, at=1)),
        why=R.POOL_FULL,
        changes=(ends("a", "b"),),
        ends={"a": 10, "b": 20},
        earliest=20,
    ),
]


def build(case: Case) -> Snapshot:
    ledger = Ledger()
    for name, model, devices in case.nodes:
        spec = NodeSpec(
            name=name,
            gpu_model=model,
            devices=devices,
            device_mib=24000,
            milli_cpu=8000,
            mib=64000,
            traits=case.traits.get(name, Traits()),
        )
        step(ledger, NodeUp(spec))
    for spec_ in case.teams:
        step(ledger, TeamSet(spec_))
    for name, owner, milli, places in case.held:
        step(ledger, LeaseGranted(lease(ledger, name, owner, milli, places)))
    return Snapshot(version=ledger.version, ledger=ledger, pending=Queue.of(case.jobs))


def lease(ledger: Ledger, name: str, owner: str, milli: int, places: str) -> Lease:
    """Tasks without a GPU hold 6 of a node's 8 CPUs."""
    tasks = []
    for i, place in enumerate(places.split()):
        node, devices = place.split("/")
        tasks.append(
            TaskPlacement(
                role=Role.WORKER,
                index=i,
                node=node,
                devices=tuple(map(int, devices)),
                milli_gpu=milli * len(devices),
                gpu_mib=24 * milli,
                milli_cpu=0 if milli else 6000,
                mib=0,
            )
        )
    return Lease(lease=name, job=name, team=owner, epoch=ledger.last_epoch + 1, tasks=tuple(tasks))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_scenario(case: Case) -> None:
    row, known = len(case.jobs) - 1, {k: v * MINUTE for k, v in case.ends.items()}
    found = explain(build(case), Policy(), case.now * MINUTE, row, known)
    assert found.reason.code == case.why
    assert found.suggestions == case.changes
    assert found.earliest_ns == (None if case.earliest is None else case.earliest * MINUTE)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_suggestion_starts_the_job_and_the_reason_is_the_planners(case: Case) -> None:
    snapshot, row = build(case), len(case.jobs) - 1
    found = explain(snapshot, Policy(), case.now * MINUTE, row)
    made = plan(snapshot, Policy(), case.now * MINUTE)
    said = dict(zip(made.deferred.tolist(), made.reasons, strict=True))
    assert found.reason == said[row]
    for change in found.suggestions:
        after = changed(snapshot, row, (change,))
        assert row in plan(after, Policy(), case.now * MINUTE).admitted


def running(snapshot: Snapshot) -> RunningJobs:
    """All that is held, of tasks of one whole device or several on one node, may be asked to leave."""
    held = list(snapshot.ledger.leases.values())
    tasks = [t for one in held for t in one.tasks]
    teams = tuple(dict.fromkeys(one.team for one in held))
    shapes = tuple(dict.fromkeys(Shape(milli_gpu=t.milli_gpu) for t in tasks))
    zeros = np.zeros(len(held), np.int64)
    return RunningJobs(
        leases=tuple(one.lease for one in held),
        teams=teams,
        team=np.array([teams.index(one.team) for one in held], np.int64),
        priority=zeros,
        key=zeros,
        fixed=zeros,
        lost=zeros,
        classes=tuple(TaskClass(shape=shape) for shape in shapes),
        first=np.cumsum([0] + [len(one.tasks) for one in held]),
        task_node=np.array([snapshot.ledger.node_row[t.node] for t in tasks], np.int64),
        task_mask=np.array([sum(1 << d for d in t.devices) for t in tasks], np.int64),
        task_class=np.array([shapes.index(Shape(milli_gpu=t.milli_gpu)) for t in tasks], np.int64),
    )


def test_a_raised_quota_takes_back_what_was_lent() -> None:
    """ops holds its 2 of 4 and asks for 4; dev holds 6 where 2 are its own. Within its quota ops pushes dev out: 2
    workers are, and so are 4 once the quota is 6, or once the lease of its own has ended."""
    case = Case(
        name="",
        why=R.TEAM_QUOTA,
        teams=(team("ops", quota=4), team("dev", quota=2)),
        held=(("o", "ops", 1000, "n0/01"), ("d", "dev", 1000, "n0/23"), ("e", "dev", 1000, "n1/0123")),
        jobs=(job("ops", 4),),
    )
    snapshot = build(case)
    snapshot = replace(snapshot, running=running(snapshot))
    found = explain(snapshot, Policy(), 0, 0)
    assert found.reason.code is R.TEAM_QUOTA
    assert found.suggestions == (FewerWorkers(2), RaiseQuota("ops", "*", 2000), ends("o"))
    after = changed(snapshot, 0, (RaiseQuota("ops", "*", 2000),))
    assert plan(after, Policy(), 0).preempted


def test_a_smaller_gang_is_of_that_size() -> None:
    snapshot = build(Case(name="", why=R.POOL_FULL, jobs=(job("ops", 6),)))
    after = changed(snapshot, 0, (FewerWorkers(2),))
    assert plan(after, Policy(), 0).workers.tolist() == [2]
    assert (after.pending.requests[0].workers, snapshot.pending.requests[0].workers) == (2, 6)


def test_what_has_ended_is_not_asked_to_leave() -> None:
    case = Case(name="", why=R.POOL_FULL, held=FULL, jobs=(job("ops", 5),))
    snapshot = build(case)
    after = changed(replace(snapshot, running=running(snapshot)), 0, (ends("a"),))
    assert after.running is not None
    assert (after.running.leases, after.running.first.tolist()) == (("b",), [0, 1])
    assert after.running.task_node.tolist() == [1]


def test_a_raised_quota_is_covered_by_the_teams_above() -> None:
    case = next(c for c in CASES if c.name == "a quota of a team within a team")
    after = changed(build(case), 0, (RaiseQuota("dev", "*", 1000),)).ledger
    assert [int(after.quota[after.team_row[name], 0]) for name in ("org", "dev", "ops")] == [5000, 5000, 4000]


@pytest.mark.parametrize(
    "change",
    [
        FewerWorkers(0),
        FewerWorkers(9),
        RaiseLimit("who", "*", 1),
        RaiseLimit("dev", "H100", 1),
        RaiseQuota("dev", "*", 1),
        ends("nobody"),
    ],
)
def test_what_cannot_be_changed_is_refused(change: Change) -> None:
    case = Case(name="", why=R.TEAM_LIMIT, teams=(team("dev", quota=2, limit=2),), jobs=(job("dev", 8),))
    with pytest.raises(ValueError, match=r"smaller gang|no team|above its limit|no lease"):
        changed(build(case), 0, (change,))


@pytest.mark.parametrize(("row", "why"), [(0, "starts now"), (1, "no row 1"), (-1, "no row -1")])
def test_what_does_not_wait_has_no_explanation(row: int, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        explain(build(Case(name="", why=R.POOL_FULL, jobs=(job("ops", 1),))), Policy(), 0, row)


def test_a_large_gang_over_many_leases_costs_a_bounded_number_of_plans() -> None:
    """64 leases of one device, a gang of 64: no list of ends short enough to be of use, found within the bound."""
    nodes = tuple((f"n{i:02}", "L4", 8) for i in range(8))
    held = tuple((f"h{i:02}", "ops", 1000, f"n{i // 8:02}/{i % 8}") for i in range(64))
    case = Case(name="", why=R.POOL_FULL, nodes=nodes, held=held, jobs=(job("ops", 64),))
    found = explain(build(case), Policy(), 0, 0, {name: int(name[1:]) for name, *_ in held})
    assert found.suggestions == ()
    assert found.earliest_ns == 63
    assert found.plans <= 3 * (16 * (9 + 2 * 6) + 32) + 64 + 9 + 2 * 6 + 8


def test_in_words_and_as_data() -> None:
    case = next(c for c in CASES if c.name == "two limits at once")
    found = explain(build(case), Policy(), 0, 0, {"h": 125 * MINUTE})
    assert found.text() == (
        "job waits: team ops holds 2 of its limit of 2 GPUs and this job asks for 2; "
        "starts when h of the team ends, or when the limit is raised.\n"
        "It would start now if you did one of these:\n"
        "- raise the limit of team org by 2 GPUs and raise the limit of team ops by 2 GPUs\n"
        "- end h, or wait for it\n"
        "By the known ends of running jobs it starts in 2 h 5 min."
    )
    said = json.loads(json.dumps(found.to_json()))
    assert said["reason"]["code"] == "team-limit"
    assert said["earliest_ns"] == 125 * MINUTE
    first, second = said["suggestions"]
    assert first["change"] == "together"
    assert first["raises"][0] == {"change": "raise-limit", "team": "org", "gpu_model": "*", "milli": 2000}
    assert second == {"change": "ends", "leases": ["h"], "jobs": ["h"], "text": "end h, or wait for it"}


def test_when_nothing_helps_the_words_say_so() -> None:
    case = next(c for c in CASES if c.name == "behind a gang that takes all: nothing helps")
    assert explain(build(case), Policy(), 11 * MINUTE, 1).text().splitlines()[1:] == [
        "No single change to the job, its team or the running jobs was found that starts it now.",
        "When it starts is not known: the known ends of running jobs do not make room for it.",
    ]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (FewerWorkers(1), "ask for 1 worker"),
        (FewerWorkers(3), "ask for 3 workers"),
        (OtherModel("L4"), "allow L4 GPUs as well"),
        (OtherModel("*"), "allow any GPU model"),
        (RaiseLimit("ops", "L4", 1000), "raise the limit of team ops by 1 L4 GPU"),
        (RaiseQuota("ops", "*", 500), "raise the quota of team ops by 0.5 GPUs"),
        (ends("a", "b"), "end a, b, or wait for all of them"),
        (Relax("label", "disk=ssd"), "do without the label disk=ssd"),
        (Relax("region", "us"), "allow region us as well"),
        (Relax("spot"), "allow spot nodes"),
        (Relax("taint", "ml:NoSchedule"), "tolerate the taint ml:NoSchedule"),
        (Relax(EVERYTHING), "allow every node, whatever its labels, region, taints and spot"),
    ],
)
def test_each_change_in_words(change: Change, text: str) -> None:
    assert change.text() == text
    assert json.dumps(change.to_json())


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0 s"),
        (-5, "0 s"),
        (1, "1 s"),
        (60 * 10**9, "1 min"),
        (90 * 10**9, "1 min 30 s"),
        (90000 * 10**9, "1 d 1 h"),
    ],
)
def test_spans(ns: int, text: str) -> None:
    assert span(ns) == text


def test_a_search_that_is_stopped_says_what_it_had_found() -> None:
    """Whatever the bound: a part of the whole answer, in its order, and marked as a part."""
    case = next(c for c in CASES if c.name == "limit nearly reached")
    pool, row = build(case), 0
    whole = explain(pool, Policy(), 0, row)
    assert whole.complete and len(whole.suggestions) == 3
    seen = set()
    for most in range(1, whole.plans + 1):
        part = explain(pool, Policy(), 0, row, go_on=lambda made, most=most: made < most)
        assert part.plans == most and part.reason == whole.reason
        assert part.suggestions == whole.suggestions[: len(part.suggestions)]
        assert part.complete == (most == whole.plans), most
        assert ("stopped after" in part.text()) == (not part.complete)
        seen.add(len(part.suggestions))
    assert seen == {0, 1, 2, 3}
