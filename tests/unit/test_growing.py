"""S3: what is left over goes to running gangs that want more, and never what somebody waits for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from running_pool import RunningPool, job, team

from moorage.scheduling.accounts import Account, Accounts, Budget, Unit
from moorage.scheduling.model import JobRequest, Policy, ReasonCode, Shape, TeamSpec
from moorage.scheduling.planner import plan

S = 10**9
QUICK = Policy(settle_ns=0)


def elastic(name: str, owner: str, least: int, workers: int, **more: object) -> JobRequest:
    return job(name, owner, workers, min_workers=least, **more)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    devices: tuple[int, ...] = (8,)
    teams: tuple[TeamSpec, ...] = (team("ops"),)
    runs: tuple[tuple[JobRequest, int], ...] = ()
    """Each with the workers it has."""
    waits: tuple[JobRequest, ...] = ()
    policy: Policy = QUICK
    starts: tuple[str, ...] = ()
    grows: dict[str, int] = field(default_factory=dict)
    """Gang -> the workers it has then."""


CASES = [
    Case(
        name="into an idle pool, as far as it wants", runs=((elastic("e", "ops", 1, 6), 2),), grows={"e": 6}
    ),
    Case(name="as far as there is room", runs=((elastic("e", "ops", 1, 20), 2),), grows={"e": 8}),
    Case(name="who has all it wants does not grow", runs=((elastic("e", "ops", 1, 4), 4),)),
    Case(name="who is not elastic does not grow", runs=((job("j", "ops", 4), 4),)),
    Case(
        name="the policy says no",
        runs=((elastic("e", "ops", 1, 6), 2),),
        policy=Policy(settle_ns=0, grow=False),
    ),
    Case(
        name="what waits starts first, and the rest is grown into",
        runs=((elastic("e", "ops", 1, 8), 2),),
        waits=(job("j", "ops", 4),),
        starts=("j",),
        grows={"e": 4},
    ),
    Case(
        name="not while somebody waits for room there",
        runs=((elastic("e", "ops", 1, 8), 2),),
        waits=(job("j", "ops", 7),),
    ),
    Case(
        name="a job that no idle pool could start waits for no room",
        runs=((elastic("e", "ops", 1, 8), 2),),
        waits=(job("j", "ops", 9),),
        grows={"e": 8},
    ),
    Case(
        name="somebody of no known team waits for no room",
        runs=((elastic("e", "ops", 1, 8), 2),),
        waits=(job("j", "nobody", 1),),
        grows={"e": 8},
    ),
    Case(
        name="who waits under a limit does not hold up other teams, but his own",
        teams=(team("ops", limit=3), team("research")),
        runs=((elastic("mine", "ops", 1, 8), 2), (elastic("yours", "research", 1, 8), 2)),
        waits=(job("j", "ops", 2),),
        grows={"yours": 6},
    ),
    Case(
        name="a limit further up holds up all teams below it",
        teams=(
            team("org", limit=5),
            replace(team("ops"), parent="org"),
            replace(team("research"), parent="org"),
            team("out"),
        ),
        runs=(
            (elastic("a", "ops", 1, 8), 2),
            (elastic("b", "research", 1, 8), 2),
            (elastic("c", "out", 1, 8), 1),
        ),
        waits=(job("j", "ops", 2),),
        grows={"c": 4},
    ),
    Case(
        name="within its quota and what is lent",
        teams=(team("ops", 2), team("research", 6, lend=(("*", 3000),))),
        runs=((elastic("e", "ops", 1, 8), 2),),
        grows={"e": 5},
    ),
    Case(
        name="who is not preemptible takes nothing that is lent, and others do",
        teams=(team("ops", 2), team("research", 2), team("third", 4)),
        runs=(
            (elastic("stays", "ops", 1, 8, preemptible=False), 1),
            (elastic("gives", "research", 1, 5), 1),
        ),
        grows={"stays": 2, "gives": 5},
    ),
    Case(
        name="within its limit",
        teams=(team("ops", limit=3),),
        runs=((elastic("e", "ops", 1, 8), 2),),
        grows={"e": 3},
    ),
    Case(
        name="nobody borrows more while somebody waits for quota",
        teams=(team("ops", 2), team("research", 4, lend=(("*", 0),)), team("third", 2)),
        runs=((elastic("e", "ops", 1, 8), 1), (elastic("f", "third", 1, 8), 2)),
        waits=(job("j", "ops", 4),),
        grows={"e": 2},
    ),
    Case(
        name="teams in turn, by what they hold for their weight",
        teams=(team("ops"), replace(team("research"), weight=3)),
        runs=((elastic("a", "ops", 1, 8), 1), (elastic("b", "research", 1, 8), 1)),
        grows={"a": 2, "b": 6},
    ),
    Case(
        name="within a team the one that is furthest from what it wants",
        runs=((elastic("a", "ops", 1, 4), 2), (elastic("b", "ops", 1, 8), 2)),
        grows={"a": 3, "b": 5},
    ),
    Case(
        name="a worker of several devices only where they are on one node",
        devices=(3, 3),
        runs=((elastic("e", "ops", 1, 4, milli=2000), 1),),
        grows={"e": 2},
    ),
    Case(
        name="shares of a device",
        devices=(1,),
        runs=((elastic("e", "ops", 1, 9, milli=250), 1),),
        grows={"e": 4},
    ),
    Case(
        name="where the wanted node is another, it grows here",
        devices=(4, 2),
        runs=((job("wide", "ops", 1, 3000), 1), (elastic("e", "ops", 1, 8, milli=500), 1)),
        waits=(job("big", "ops", 1, 4000),),
        grows={"e": 5},
    ),
]


def build(case: Case) -> RunningPool:
    pool = RunningPool.of(case.devices, case.teams, policy=replace(case.policy, grow=False))
    for request, workers in case.runs:
        pool.submit(replace(request, workers=workers, min_workers=workers))
        assert pool.go().admitted.tolist() == [0]
        pool.runs[request.job] = request
    pool.submit(*case.waits)
    pool.policy = case.policy
    return pool


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_scenario(case: Case) -> None:
    pool = build(case)
    before = pool.workers()
    decided = pool.go()
    after = pool.workers()
    assert tuple(r.job for r, _ in decided.admissions(pool.snapshot)) == case.starts  # type: ignore[arg-type]
    assert {name: after[name] for name in before if after[name] != before[name]} == case.grows
    assert set(decided.grown) == set(case.grows)


def test_workers_are_numbered_on_and_stand_after_those_there_are() -> None:
    pool = RunningPool.of([8], [team("ops")], policy=QUICK)
    head = replace(elastic("e", "ops", 1, 5), head=Shape(milli_gpu=2000))
    pool.submit(replace(head, workers=2))
    pool.go()
    pool.runs["e"] = head
    decided = pool.go()
    assert [(t.role.value, t.index) for t in pool.ledger.leases["e"].tasks] == [
        ("head", 0),
        *(("worker", i) for i in range(5)),
    ]
    assert decided.grown == ("e",) and decided.grown_of.tolist() == [0, 0, 0]


def test_a_gang_that_has_its_head_alone_grows_too() -> None:
    pool = RunningPool.of([4], [team("ops")], policy=QUICK)
    gang = replace(elastic("e", "ops", 0, 3), head=Shape(milli_cpu=0, mib=0, milli_gpu=1000))
    pool.submit(replace(gang, workers=0))
    pool.go()
    pool.runs["e"] = gang
    pool.go()
    assert pool.workers() == {"e": 3}


def test_a_plan_that_takes_from_anybody_grows_nobody() -> None:
    pool = RunningPool.of([4, 2], [team("ops")], policy=QUICK)
    pool.submit(job("low", "ops", 1, 4000))
    pool.go()
    pool.submit(replace(elastic("e", "ops", 1, 8), priority=9, workers=1))
    pool.go()
    pool.runs["e"] = replace(pool.runs["e"], workers=8)
    pool.submit(job("high", "ops", 2, priority=5))
    decided = pool.go()
    assert decided.preempted == ("low",) and decided.grown == (), (
        "two devices are left, for the one that left"
    )


def test_no_growth_while_room_is_held_for_whoever_waited_longest() -> None:
    pool = RunningPool.of([4, 4], [team("ops")], policy=replace(QUICK, hold_after_ns=5 * S))
    pool.submit(replace(elastic("e", "ops", 1, 8), workers=1))
    pool.go()
    pool.runs["e"] = replace(pool.runs["e"], workers=8)
    pool.submit(job("big", "ops", 8))
    assert pool.go(10 * S).grown == ()


def test_between_two_steps_a_gang_is_left_alone() -> None:
    """Started, grown, shrunk: each time the policy's time must pass before it takes more."""
    pool = RunningPool.of([4], [team("ops", 4)], policy=Policy(settle_ns=10 * S))
    pool.submit(replace(elastic("e", "ops", 1, 4), workers=2))
    pool.go()
    pool.runs["e"] = replace(pool.runs["e"], workers=4)
    assert pool.go(10 * S - 1).grown == ()
    assert pool.go(1).grown == ("e",)
    pool.submit(job("high", "ops", 2, priority=5))
    assert pool.go(9 * S).shrunk == (), "just grown"
    assert pool.go(S).shrunk == ("e",)
    pool.end("high")
    assert pool.go(9 * S).grown == (), "just shrunk"
    assert pool.go(S).grown == ("e",)
    assert pool.workers() == {"e": 4}


def test_the_same_snapshot_grows_the_same() -> None:
    pool = build(CASES[-4])
    one, two = pool.decide(), pool.decide()
    assert one.grown == two.grown and one.grown_node.tolist() == two.grown_node.tolist()


def test_who_is_out_of_budget_does_not_grow_and_waits_for_no_room() -> None:
    pool = RunningPool.of([8], [team("ops"), team("research")], policy=QUICK)
    for owner in ("ops", "research"):
        pool.submit(replace(elastic(f"e-{owner}", owner, 1, 8), workers=1))
    pool.go()
    for name in pool.runs:
        pool.runs[name] = replace(pool.runs[name], workers=8)
    pool.submit(job("more", "ops", 4))
    pool.decide()
    spent = Account(budget=Budget(team="ops", unit=Unit.GPU_HOURS, amount=1000), spent=1000, until_ns=0)
    assert pool.snapshot is not None
    decided = plan(replace(pool.snapshot, accounts=Accounts(budgets=(spent,))), pool.policy, pool.now)
    assert decided.grown == ("e-research",) and [r.code for r in decided.reasons] == [ReasonCode.BUDGET]
    assert len(decided.grown_of) == 6
