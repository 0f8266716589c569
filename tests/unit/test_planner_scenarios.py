"""S2, S3, S4, S8: scenarios as tables: pool, teams, held, waiting -> what starts where, what waits and why.

Notation: a pool is a list of (node, devices); a job is (name, team, workers x milli-GPU); placements are
node/devices per worker. Every scenario also passes the validator after its plan is applied.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from moorage.scheduling.ledger import LeaseGranted, Ledger, NodeUp, TeamSet, step
from moorage.scheduling.model import (
    PLANNED,
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
from moorage.scheduling.validate import check

MINUTE = 60 * 10**9


def team(name: str, quota: int | None = None, limit: int | None = None, **more: object) -> TeamSpec:
    """GPUs, not milli-GPU."""
    figures = {"quota": quota, "limit": limit, **{k: v for k, v in more.items() if k in ("lend", "borrow")}}
    rows = {k: (("*", int(v) * 1000),) for k, v in figures.items() if v is not None}  # type: ignore[call-overload]
    return TeamSpec(name=name, parent=str(more.get("parent", "")), **rows)


def job(name: str, owner: str, workers: int, milli: int, **more: object) -> JobRequest:
    return JobRequest(
        job=name,
        team=owner,
        submitted_ns=int(more.pop("at", 0)),  # type: ignore[call-overload]
        worker=Shape(milli_gpu=milli, gpu_mib=int(more.pop("mib", 0)), milli_cpu=int(more.pop("cpu", 0))),  # type: ignore[call-overload]
        workers=workers,
        min_workers=int(more.pop("least", workers)),  # type: ignore[call-overload]
        **more,  # type: ignore[arg-type]
    )


ONE_TEAM = (team("ops", 100),)
TWO = (team("ops", 4), team("research", 2))


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    nodes: tuple[tuple[str, int], ...] = (("n0", 4), ("n1", 4))
    model: str = "L4"
    teams: tuple[TeamSpec, ...] = ONE_TEAM
    held: tuple[JobRequest, ...] = ()
    jobs: tuple[JobRequest, ...] = ()
    starts: dict[str, str] = field(default_factory=dict)
    """job -> 'node/devices node/devices ...' by worker"""
    waits: dict[str, ReasonCode] = field(default_factory=dict)
    rule: DeviceRule = DeviceRule.RAYLET
    now: int = 0


R = ReasonCode
CASES = [
    Case(name="nothing to do"),
    Case(name="one whole", jobs=(job("a", "ops", 1, 1000),), starts={"a": "n0/0"}),
    Case(name="gang on one node", jobs=(job("a", "ops", 4, 1000),), starts={"a": "n0/0 n0/1 n0/2 n0/3"}),
    Case(
        name="gang over two nodes", jobs=(job("a", "ops", 5, 1000),), starts={"a": "n0/0 n0/1 n0/2 n0/3 n1/0"}
    ),
    Case(name="two devices per worker", jobs=(job("a", "ops", 3, 2000),), starts={"a": "n0/01 n0/23 n1/01"}),
    Case(name="gang or nothing", jobs=(job("a", "ops", 9, 1000),), waits={"a": R.NO_DEVICE}),
    Case(
        name="room held by others is not no device",
        held=(job("h", "ops", 1, 1000),),
        jobs=(job("a", "ops", 8, 1000),),
        waits={"a": R.POOL_FULL},
    ),
    Case(
        name="elastic takes what there is",
        held=(job("h", "ops", 5, 1000),),
        jobs=(job("a", "ops", 8, 1000, least=2),),
        starts={"a": "n1/1 n1/2 n1/3"},
    ),
    Case(name="fractions share a device", jobs=(job("a", "ops", 2, 500),), starts={"a": "n0/0 n0/0"}),
    Case(
        name="best fit: the fuller device first",
        held=(job("h", "ops", 1, 600),),
        jobs=(job("a", "ops", 1, 300),),
        starts={"a": "n0/0"},
    ),
    Case(
        name="a fraction leaves whole nodes whole",
        held=(job("h", "ops", 1, 1000),),
        jobs=(job("a", "ops", 1, 300),),
        starts={"a": "n0/1"},
    ),
    Case(
        name="six of 0.6 all start",
        jobs=(job("a", "ops", 6, 600),),
        starts={"a": "n0/0 n0/1 n0/2 n0/3 n1/0 n1/1"},
    ),
    Case(
        name="eight of 0.6 all start",
        jobs=(job("a", "ops", 8, 600),),
        starts={"a": "n0/0 n0/1 n0/2 n0/3 n1/0 n1/1 n1/2 n1/3"},
    ),
    Case(name="nine of 0.6 do not", jobs=(job("a", "ops", 9, 600),), waits={"a": R.NO_DEVICE}),
    Case(
        name="fragmented: free in sum, not on one device",
        nodes=(("n0", 2),),
        held=(job("h", "ops", 2, 600),),
        jobs=(job("a", "ops", 1, 700),),
        waits={"a": R.FRAGMENTED},
    ),
    Case(
        name="memory is not over-committed (S4)",
        nodes=(("n0", 1),),
        held=(job("h", "ops", 1, 300, mib=20000),),
        jobs=(job("a", "ops", 1, 300, mib=5000),),
        waits={"a": R.FRAGMENTED},
    ),
    Case(
        name="raylet's device lacks memory: node unusable",
        nodes=(("n0", 2),),
        held=(job("h", "ops", 1, 300, mib=20000),),
        jobs=(job("a", "ops", 1, 300, mib=5000),),
        waits={"a": R.FRAGMENTED},
    ),
    Case(
        name="free rule takes the other device",
        nodes=(("n0", 2),),
        held=(job("h", "ops", 1, 300, mib=20000),),
        jobs=(job("a", "ops", 1, 300, mib=5000),),
        rule=DeviceRule.FREE,
        starts={"a": "n0/1"},
    ),
    Case(
        name="more memory than any device",
        jobs=(job("a", "ops", 1, 500, mib=99999),),
        waits={"a": R.NO_DEVICE},
    ),
    Case(name="cpu binds", jobs=(job("a", "ops", 3, 0, cpu=6000),), waits={"a": R.NO_DEVICE}),
    Case(name="cpu task without gpu", jobs=(job("a", "ops", 2, 0, cpu=6000),), starts={"a": "n0/ n1/"}),
    Case(
        name="other model asked",
        jobs=(job("a", "ops", 1, 1000, gpu_models=("H100",)),),
        waits={"a": R.NO_DEVICE},
    ),
    Case(name="own model asked", jobs=(job("a", "ops", 1, 1000, gpu_models=("L4",)),), starts={"a": "n0/0"}),
    Case(name="unknown team", jobs=(job("a", "who", 1, 1000),), waits={"a": R.TEAM_UNKNOWN}),
    Case(
        name="limit binds",
        teams=(team("ops", 2, limit=2),),
        held=(job("h", "ops", 2, 500),),
        jobs=(job("a", "ops", 2, 1000),),
        waits={"a": R.TEAM_LIMIT},
    ),
    Case(
        name="elastic within the limit",
        teams=(team("ops", 2, limit=2),),
        jobs=(job("a", "ops", 4, 1000, least=1),),
        starts={"a": "n0/0 n0/1"},
    ),
    Case(
        name="parent's limit binds the child",
        teams=(team("org", 4, limit=3), team("ops", 4, parent="org")),
        jobs=(job("a", "ops", 4, 1000),),
        waits={"a": R.TEAM_LIMIT},
    ),
    Case(
        name="borrow idle quota and unclaimed capacity",
        teams=TWO,
        jobs=(job("a", "research", 8, 1000),),
        starts={"a": "n0/0 n0/1 n0/2 n0/3 n1/0 n1/1 n1/2 n1/3"},
    ),
    Case(
        name="lend nothing",
        teams=(team("ops", 6, lend=0), team("research", 2)),
        jobs=(job("a", "research", 3, 1000),),
        waits={"a": R.TEAM_QUOTA},
    ),
    Case(
        name="lend one",
        teams=(team("ops", 6, lend=1), team("research", 2)),
        jobs=(job("a", "research", 3, 1000),),
        starts={"a": "n0/0 n0/1 n0/2"},
    ),
    Case(
        name="what one team borrows is not lent again",
        teams=(team("ops", 4, lend=2), team("a", 2), team("b", 2)),
        held=(job("h", "a", 4, 1000),),
        jobs=(job("x", "b", 3, 1000),),
        waits={"x": R.TEAM_QUOTA},
    ),
    Case(
        name="borrow bound",
        teams=(team("ops", 6), team("research", 2, borrow=1)),
        jobs=(job("a", "research", 4, 1000),),
        waits={"a": R.TEAM_QUOTA},
    ),
    Case(
        name="own quota goes before borrowing, whatever the priority",
        teams=(team("ops", 6), team("research", 2)),
        held=(job("h", "ops", 2, 1000),),
        jobs=(job("borrow", "research", 6, 1000, priority=900), job("own", "ops", 4, 1000, at=5)),
        starts={"own": "n0/2 n0/3 n1/0 n1/1"},
        waits={"borrow": R.TEAM_QUOTA},
    ),
    Case(
        name="priority within a team",
        nodes=(("n0", 1),),
        jobs=(job("low", "ops", 1, 1000), job("high", "ops", 1, 1000, priority=10, at=9)),
        starts={"high": "n0/0"},
        waits={"low": R.POOL_FULL},
    ),
    Case(
        name="first come at equal priority",
        nodes=(("n0", 1),),
        jobs=(job("late", "ops", 1, 1000, at=2), job("early", "ops", 1, 1000, at=1)),
        starts={"early": "n0/0"},
        waits={"late": R.POOL_FULL},
    ),
    Case(
        name="backfill past a gang that waits a little",
        held=(job("h", "ops", 1, 1000),),
        jobs=(job("gang", "ops", 8, 1000), job("small", "ops", 1, 1000, at=1)),
        now=MINUTE,
        starts={"small": "n0/1"},
        waits={"gang": R.POOL_FULL},
    ),
    Case(
        name="no backfill past one that waited long (S3: no starvation)",
        held=(job("h", "ops", 1, 1000),),
        jobs=(job("gang", "ops", 8, 1000), job("small", "ops", 1, 1000, at=1)),
        now=11 * MINUTE,
        waits={"gang": R.POOL_FULL, "small": R.BEHIND},
    ),
    Case(
        name="CPU work passes a held gang",
        held=(job("h", "ops", 1, 1000),),
        jobs=(job("gang", "ops", 8, 1000), job("cpu", "ops", 1, 0, cpu=1000, at=1)),
        now=11 * MINUTE,
        starts={"cpu": "n0/"},
        waits={"gang": R.POOL_FULL},
    ),
]


def build(case: Case) -> Ledger:
    ledger = Ledger()
    for name, devices in case.nodes:
        spec = NodeSpec(
            name=name, gpu_model=case.model, devices=devices, device_mib=24000, milli_cpu=8000, mib=64000
        )
        step(ledger, NodeUp(spec))
    for spec_ in case.teams:
        step(ledger, TeamSet(spec_))
    apply(ledger, case.held, case)
    return ledger


def apply(
    ledger: Ledger, pending: tuple[JobRequest, ...], case: Case
) -> tuple[dict[str, str], dict[str, ReasonCode]]:
    snapshot = Snapshot(
        version=ledger.version, ledger=ledger, pending=Queue.of(pending), device_rule=case.rule
    )
    decided = plan(snapshot, Policy(), case.now)
    again = plan(snapshot, Policy(), case.now)
    assert all(
        (a == b).all() if hasattr(a, "all") else a == b
        for a, b in ((getattr(decided, f), getattr(again, f)) for f in PLANNED)
    ), "the same input must give the same plan"
    starts = {}
    for request, tasks in list(decided.admissions(snapshot)):
        starts[request.job] = " ".join(f"{t.node}/{''.join(map(str, t.devices))}" for t in tasks)
        lease = Lease(
            lease=request.job, job=request.job, team=request.team, epoch=ledger.last_epoch + 1, tasks=tasks
        )
        step(ledger, LeaseGranted(lease))
        check(ledger)
    return starts, {request.job: reason.code for request, reason in decided.waiting(snapshot)}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_scenario(case: Case) -> None:
    ledger = build(case)
    starts, waits = apply(ledger, case.jobs, case)
    assert starts == case.starts
    assert waits == case.waits


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (job("a", "ops", 9, 1000), R.NO_DEVICE),
        (job("a", "ops", 7, 1000), None),
        (job("a", "research", 3, 1000), R.TEAM_LIMIT),
        (job("a", "ops", 1, 5000), R.NO_DEVICE),
        (job("a", "who", 1, 1000), R.TEAM_UNKNOWN),
    ],
)
def test_what_can_never_start_is_known_at_once(request_: JobRequest, code: ReasonCode | None) -> None:
    """A gang larger than the pool, or than its team may ever hold, is refused when it is submitted (S8)."""
    ledger = build(
        Case(name="", teams=(team("ops", 4), team("research", 2, limit=2)), held=(job("h", "ops", 4, 1000),))
    )
    reason = feasible(ledger, request_, DeviceRule.RAYLET)
    assert (reason.code if reason else None) == code


def test_a_reason_names_figures_and_what_frees_the_job() -> None:
    case = Case(name="", teams=(team("research", 2, limit=2),), held=(job("sweep-1", "research", 4, 500),))
    ledger = build(case)
    snapshot = Snapshot(
        version=ledger.version, ledger=ledger, pending=Queue.of((job("sweep-2", "research", 4, 500),))
    )
    (_, reason), *rest = plan(snapshot, Policy(), 0).waiting(snapshot)
    assert not rest
    assert reason.text() == (
        "team research holds 2 of its limit of 2 GPUs and this job asks for 2; "
        "starts when sweep-1 of the team ends, or when the limit is raised"
    )
    both = replace(reason, holders=("sweep-1", "sweep-0"))
    assert both.text().endswith("starts when sweep-1, sweep-0 of the team end, or when the limit is raised")
    never = feasible(ledger, job("a", "research", 3, 1000), DeviceRule.RAYLET)
    assert never is not None and never.text() == (
        "asks for 3 GPUs, and the limit of team research is 2; starts when the limit is raised"
    )


def test_planning_leaves_the_snapshot_as_it_was() -> None:
    ledger = build(Case(name="", held=(job("h", "ops", 3, 700),)))
    before = ledger.copy()
    snapshot = Snapshot(
        version=ledger.version,
        ledger=ledger,
        pending=Queue.of((job("a", "ops", 9, 300), job("b", "ops", 4, 1000))),
    )
    plan(snapshot, Policy(), 0)
    for name in Ledger.__slots__:
        a, b = getattr(ledger, name), getattr(before, name)
        assert (a == b).all() if hasattr(a, "all") else a == b, name
