"""S3, S8: reservations as tables: who runs until when, who waits -> who starts, and who is promised what."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from moorage.scheduling.ledger import LeaseGranted, Ledger, NodeUp, TeamSet, step
from moorage.scheduling.model import (
    UNLIMITED,
    DeviceRule,
    JobRequest,
    Lease,
    NodeSpec,
    Plan,
    Policy,
    ReasonCode,
    Role,
    Shape,
    Snapshot,
    TaskPlacement,
    TeamSpec,
)
from moorage.scheduling.planner import plan
from moorage.scheduling.queue import Queue
from moorage.scheduling.running import RunningJobs

HOUR = 3600 * 10**9
NOW = 100 * HOUR
DAY = 24 * HOUR


def job(name: str, workers: int, gpus: int, limit: float = 0, owner: str = "a", **more: int) -> JobRequest:
    """`limit` in hours, 0 = none; submitted in the order of the names."""
    return JobRequest(
        job=name,
        team=owner,
        submitted_ns=NOW - 1000 + ord(name[0]) if "at" not in more else more.pop("at"),
        worker=Shape(milli_gpu=gpus * 1000),
        workers=workers,
        min_workers=more.pop("least", workers),
        max_runtime_ns=round(limit * HOUR),
        **more,  # type: ignore[arg-type]
    )


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    nodes: tuple[int, ...] = (4, 4)
    """Devices of n0, n1, ..."""
    held: tuple[tuple[int, int, int, float], ...] = ()
    """(node, first device, devices, hours left; 0 = not known)."""
    jobs: tuple[JobRequest, ...] = ()
    teams: tuple[TeamSpec, ...] = (TeamSpec(name="a"),)
    starts: tuple[str, ...] = ()
    promised: dict[str, tuple[float, tuple[int, ...]]] = field(default_factory=dict)
    """job -> (hours from now, node of each task)."""
    waits: dict[str, ReasonCode] = field(default_factory=dict)
    reservations: int = 1
    window: int = UNLIMITED
    hold: int = UNLIMITED


R = ReasonCode
FULL_NODE = ((0, 0, 4, 2),)
"""n0 is held for two hours more."""
CASES = [
    Case(name="nobody waits for room: nothing is reserved", jobs=(job("a", 1, 4, 1),), starts=("a",)),
    Case(
        name="a gang of both nodes starts when the other half ends",
        held=FULL_NODE,
        jobs=(job("a", 2, 4, 1),),
        promised={"a": (2, (0, 1))},
        waits={"a": R.RESERVED},
    ),
    Case(
        name="who ends before that may pass",
        held=FULL_NODE,
        jobs=(job("a", 2, 4, 1), job("b", 1, 4, 2)),
        starts=("b",),
        promised={"a": (2, (0, 1))},
        waits={"a": R.RESERVED},
    ),
    Case(
        name="who ends after it may not",
        held=FULL_NODE,
        jobs=(job("a", 2, 4, 1), job("b", 1, 4, 2.1)),
        promised={"a": (2, (0, 1))},
        waits={"a": R.RESERVED, "b": R.DELAYS},
    ),
    Case(
        name="nor who has no limit",
        held=FULL_NODE,
        jobs=(job("a", 2, 4, 1), job("b", 1, 1)),
        promised={"a": (2, (0, 1))},
        waits={"a": R.RESERVED, "b": R.DELAYS},
    ),
    Case(
        name="a long job passes on a node that is not reserved",
        nodes=(4, 4, 4),
        held=((0, 0, 4, 2), (1, 0, 4, 2), (2, 0, 1, 9)),
        jobs=(job("a", 2, 4, 1), job("b", 1, 3)),
        starts=("b",),
        promised={"a": (2, (0, 1))},
        waits={"a": R.RESERVED},
    ),
    Case(
        name="a long job passes where the reserved one finds other devices by then",
        nodes=(4,),
        held=((0, 2, 2, 2),),
        jobs=(job("a", 1, 3, 1), job("b", 1, 1)),
        starts=("b",),
        promised={"a": (2, (0,))},
        waits={"a": R.RESERVED},
    ),
    Case(
        name="but not two of them",
        nodes=(4,),
        held=((0, 2, 2, 2),),
        jobs=(job("a", 1, 3, 1), job("b", 1, 1), job("c", 1, 1)),
        starts=("b",),
        promised={"a": (2, (0,))},
        waits={"a": R.RESERVED, "c": R.DELAYS},
    ),
    Case(
        name="the reserved one takes other nodes at its time when a long job took one of them",
        nodes=(4, 4, 4),
        held=((0, 0, 4, 2), (1, 0, 4, 2)),
        jobs=(job("a", 2, 4, 1), job("b", 1, 4)),
        starts=("b",),
        promised={"a": (2, (0, 1))},
        waits={"a": R.RESERVED},
    ),
    Case(
        name="EASY promises the first in line alone",
        held=FULL_NODE,
        jobs=(job("a", 2, 4, 1), job("b", 2, 4, 1)),
        promised={"a": (2, (0, 1))},
        waits={"a": R.RESERVED, "b": R.POOL_FULL},
    ),
    Case(
        name="conservative promises each",
        held=FULL_NODE,
        jobs=(job("a", 2, 4, 1), job("b", 2, 4, 1), job("c", 1, 4, 2)),
        starts=("c",),
        promised={"a": (2, (0, 1)), "b": (3, (0, 1))},
        waits={"a": R.RESERVED, "b": R.RESERVED},
        reservations=99,
    ),
    Case(
        name="conservative fills the hole before a promise",
        nodes=(4,),
        held=((0, 0, 2, 3),),
        jobs=(job("a", 1, 4, 2), job("b", 1, 2, 5), job("c", 1, 2, 3)),
        starts=("c",),
        promised={"a": (3, (0,)), "b": (5, (0,))},
        waits={"a": R.RESERVED, "b": R.RESERVED},
        reservations=99,
    ),
    Case(
        name="nothing is known of the end: no promise, and no room held at first",
        held=((0, 0, 4, 0),),
        jobs=(job("a", 2, 4, 1), job("b", 1, 1)),
        starts=("b",),
        waits={"a": R.POOL_FULL},
    ),
    Case(
        name="nothing is known, and it waited too long: nobody passes any more",
        held=((0, 0, 4, 0),),
        jobs=(job("a", 2, 4, 1), job("b", 1, 1)),
        waits={"a": R.POOL_FULL, "b": R.BEHIND},
        hold=0,
    ),
    Case(
        name="with a promise the short one passes, however long the first has waited",
        held=FULL_NODE,
        jobs=(job("a", 2, 4, 1), job("b", 1, 1, 1)),
        starts=("b",),
        promised={"a": (2, (0, 1))},
        waits={"a": R.RESERVED},
        hold=0,
    ),
    Case(
        name="beyond the window nothing is promised",
        held=((0, 0, 4, 25),),
        jobs=(job("a", 2, 4, 1), job("b", 1, 1)),
        starts=("b",),
        waits={"a": R.POOL_FULL},
        window=DAY,
    ),
    Case(
        name="who is late counts as ending now",
        held=((0, 0, 4, -1),),
        jobs=(job("a", 2, 4, 1), job("b", 1, 4, 1)),
        promised={"a": (0, (0, 1))},
        waits={"a": R.RESERVED, "b": R.DELAYS},
    ),
    Case(
        name="what never fits is not promised, and holds nobody up",
        held=FULL_NODE,
        jobs=(job("a", 3, 4, 1), job("b", 2, 4, 1), job("c", 1, 4, 9)),
        promised={"b": (2, (0, 1))},
        waits={"a": R.NO_DEVICE, "b": R.RESERVED, "c": R.DELAYS},
        hold=0,
    ),
    Case(
        name="the promise counts on jobs that this plan starts",
        nodes=(4,),
        jobs=(job("a", 1, 3, 1), job("b", 1, 4, 1), job("c", 1, 1, 1)),
        starts=("a", "c"),
        promised={"b": (1, (0,))},
        waits={"b": R.RESERVED},
    ),
    Case(
        name="an elastic gang passes with as many workers as delay nobody",
        nodes=(4, 4, 4),
        held=((0, 0, 4, 2), (2, 0, 3, 9)),
        jobs=(job("a", 2, 4, 1), job("b", 5, 1, 9, least=1)),
        starts=("b",),
        promised={"a": (2, (0, 1))},
        waits={"a": R.RESERVED},
    ),
]


def pool(case: Case) -> tuple[Ledger, dict[str, int]]:
    ledger, ends = Ledger(), {}
    for spec in (*case.teams, TeamSpec(name="held")):
        step(ledger, TeamSet(spec))
    for n, devices in enumerate(case.nodes):
        step(ledger, NodeUp(NodeSpec(name=f"n{n}", gpu_model="A", devices=devices)))
    for i, (node, first, count, left) in enumerate(case.held):
        task = TaskPlacement(
            role=Role.WORKER,
            index=0,
            node=f"n{node}",
            devices=tuple(range(first, first + count)),
            milli_gpu=1000 * count,
            gpu_mib=0,
            milli_cpu=0,
            mib=0,
        )
        step(ledger, LeaseGranted(Lease(lease=f"h{i}", job=f"h{i}", team="held", epoch=i + 1, tasks=(task,))))
        if left:
            ends[f"h{i}"] = NOW + round(left * HOUR)
    return ledger, ends


def decide(case: Case, rule: DeviceRule = DeviceRule.FREE) -> tuple[Plan, Snapshot]:
    ledger, ends = pool(case)
    snapshot = Snapshot(
        version=ledger.version,
        ledger=ledger,
        pending=Queue.of(case.jobs),
        device_rule=rule,
        running=RunningJobs.holding(ledger, ends),
    )
    policy = Policy(hold_after_ns=case.hold, reservations=case.reservations, window_ns=case.window)
    return plan(snapshot, policy, NOW), snapshot


@pytest.mark.parametrize("rule", list(DeviceRule))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_scenario(case: Case, rule: DeviceRule) -> None:
    made, snapshot = decide(case, rule)
    names = snapshot.pending.names
    assert sorted(names[row] for row in made.admitted) == sorted(case.starts)
    promised = {
        names[one.row]: ((one.start_ns - NOW) / HOUR, tuple(sorted(one.nodes))) for one in made.reserved
    }
    assert promised == case.promised
    waits = {names[row]: reason.code for row, reason in zip(made.deferred, made.reasons, strict=True)}
    assert waits == case.waits


def test_the_elastic_gang_takes_one_worker_only() -> None:
    made, _ = decide(next(case for case in CASES if "elastic" in case.name))
    assert made.workers.tolist() == [1]


def test_what_its_team_may_hold_is_kept_for_a_promise() -> None:
    """a may hold four GPUs, all of them reserved in two hours. Whoever of a starts before, however short it runs, would
    have the first in line wait for the limit, not for room, and lose its turn. Another team is free to start."""
    limited = TeamSpec(name="a", limit=(("*", 4000),))
    jobs = (job("a", 1, 4, 1), job("b", 1, 1, 1), job("c", 1, 1, 9), job("d", 1, 1, 1, owner="o"))
    teams = (limited, TeamSpec(name="o", limit=(("*", 4000),)))
    made, snapshot = decide(Case(name="", nodes=(4, 2), held=FULL_NODE, jobs=jobs, teams=teams))
    assert [snapshot.pending.names[row] for row in made.admitted] == ["d"]
    assert [reason.code for reason in made.reasons] == [R.RESERVED, R.DELAYS, R.DELAYS]


def test_who_starts_sooner_than_promised_may_delay_a_promise_behind_it() -> None:
    """Two nodes are busy for 2 and 3 hours: a is promised both at 3, b the first one at 2. Two hours later both are
    free, one of them early: a starts, and b waits until it ends."""
    jobs = (job("a", 2, 4, 2), job("b", 1, 4, 1))
    busy = Case(name="", held=(*FULL_NODE, (1, 0, 4, 3)), jobs=jobs, reservations=99)
    assert [(r.start_ns - NOW) / HOUR for r in decide(busy)[0].reserved] == [3, 2]
    then, snapshot = decide(Case(name="", jobs=jobs, reservations=99))
    assert [snapshot.pending.names[row] for row in then.admitted] == ["a"]
    assert [(snapshot.pending.names[r.row], (r.start_ns - NOW) / HOUR) for r in then.reserved] == [("b", 2)]


def test_without_known_ends_the_plan_is_the_old_one() -> None:
    case = next(case for case in CASES if "who ends after it may not" in case.name)
    ledger, _ = pool(case)
    snapshot = Snapshot(version=ledger.version, ledger=ledger, pending=Queue.of(case.jobs))
    made = plan(snapshot, Policy(hold_after_ns=UNLIMITED), NOW)
    assert len(made.admitted) == 1 and made.reserved == ()


def test_words_say_when_and_where() -> None:
    made, _ = decide(next(case for case in CASES if "who ends after it may not" in case.name))
    first, second = made.reasons
    assert first.text() == (
        "asks for 8 GPUs, 4 are free; starts in 2 h at the latest, by reservation on n0, n1"
    )
    assert second.text() == (
        "there is room, but to start now would delay a, which has a reservation; "
        "starts after that, or sooner with a shorter max_runtime"
    )
