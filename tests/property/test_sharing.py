"""S2: how teams without quota share a pool, on random trees and queues: turn by turn as the plain reference has it, and
the promises of fair sharing on what comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from sharing_reference import Pool, start_order

from moorage.scheduling.accounts import Account, Accounts, Budget, Unit
from moorage.scheduling.ledger import LeaseGranted, Ledger, NodeUp, TeamSet, step
from moorage.scheduling.model import (
    UNLIMITED,
    JobRequest,
    Lease,
    NodeSpec,
    Plan,
    Policy,
    Shape,
    Snapshot,
    TeamSpec,
)
from moorage.scheduling.planner import plan
from moorage.scheduling.queue import Queue
from moorage.scheduling.validate import check

POLICY = Policy(hold_after_ns=UNLIMITED)
PAST = replace(POLICY, half_life_ns=1)
"""What was used before counts."""
DEVICES, DEVICE_MIB = 24, 1000


def pool(teams: list[TeamSpec], devices: int = DEVICES, cpu: int = 10**6, mib: int = 10**6) -> Ledger:
    ledger = Ledger()
    spec = NodeSpec(
        name="n",
        gpu_model="A" if devices else "",
        devices=devices,
        device_mib=DEVICE_MIB,
        milli_cpu=cpu,
        mib=mib,
    )
    step(ledger, NodeUp(spec))
    for team in teams:
        step(ledger, TeamSet(team))
    return ledger


def decide(
    ledger: Ledger, requests: list[JobRequest], policy: Policy = POLICY, accounts: Accounts | None = None
) -> tuple[Snapshot, Plan]:
    snapshot = Snapshot(version=ledger.version, ledger=ledger, pending=Queue.of(requests), accounts=accounts)
    return snapshot, plan(snapshot, policy, 0)


def started(snapshot: Snapshot, decided: Plan) -> list[str]:
    return [request.job for request, _ in decided.admissions(snapshot)]


def start(
    ledger: Ledger, requests: list[JobRequest], policy: Policy = POLICY, accounts: Accounts | None = None
) -> list[str]:
    """Plan and grant; the jobs that started, in order."""
    snapshot, decided = decide(ledger, requests, policy, accounts)
    admissions = list(decided.admissions(snapshot))
    for request, tasks in admissions:
        epoch = ledger.last_epoch + 1
        step(
            ledger,
            LeaseGranted(
                Lease(lease=f"l{epoch}", job=request.job, team=request.team, epoch=epoch, tasks=tasks)
            ),
        )
    check(ledger)
    return [request.job for request, _ in admissions]


@st.composite
def trees(draw: st.DrawFn, limits: bool = True) -> list[TeamSpec]:
    """Up to seven teams, parents before children, without quota."""
    teams: list[TeamSpec] = []
    for i in range(draw(st.integers(2, 7))):
        parent = draw(st.sampled_from(["", *(team.name for team in teams)]))
        limit = draw(st.none() | st.integers(0, DEVICES)) if limits else None
        teams.append(
            TeamSpec(
                name=f"t{i}",
                parent=parent,
                weight=draw(st.sampled_from((1, 1, 2, 3, 10, 1_000_000))),
                limit=() if limit is None else (("*", 1000 * limit),),
            )
        )
    return teams


def job(name: str, team: str, **more: int) -> JobRequest:
    return JobRequest(
        job=name,
        team=team,
        submitted_ns=more.get("at", 0),
        priority=more.get("priority", 0),
        worker=Shape(
            milli_gpu=1000 * more.get("gpus", 1), milli_cpu=more.get("cpu", 0), mib=more.get("mib", 0)
        ),
        workers=more.get("workers", 1),
        min_workers=more.get("workers", 1),
    )


@st.composite
def queues(
    draw: st.DrawFn, teams: list[TeamSpec], prefix: str, most: int = 30, devices: int = DEVICES
) -> list[JobRequest]:
    count = draw(st.integers(0, most))
    names = [team.name for team in teams]
    return [
        job(
            f"{prefix}{i:02d}",
            draw(st.sampled_from(names)),
            at=draw(st.integers(0, 5)),
            priority=draw(st.sampled_from((0, 0, 0, 1))),
            gpus=draw(st.integers(1, 3)) if devices else 0,
            workers=draw(st.integers(1, 3)),
        )
        for i in range(count)
    ]


@st.composite
def mixed(
    draw: st.DrawFn, teams: list[TeamSpec], prefix: str, most: int, devices: int = DEVICES
) -> list[JobRequest]:
    """Jobs that want most of one thing or another, GPUs or none."""
    return [
        job(
            f"{prefix}{i:02d}",
            draw(st.sampled_from(teams)).name,
            at=draw(st.integers(0, 5)),
            gpus=draw(st.sampled_from((0, 0, 1, 2))) if devices else 0,
            workers=draw(st.integers(1, 2)),
            cpu=draw(st.sampled_from((500, 1000, 4000) if devices else (2**10, 2**11, 2**13))),
            mib=draw(st.sampled_from((0, 1000, 3000) if devices else (0, 2**11, 2**12))),
        )
        for i in range(draw(st.integers(0, most)))
    ]


@pytest.mark.parametrize("jobs", [queues, mixed], ids=["GPUs alone", "dominant shares"])
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_the_turns_are_those_of_the_plain_reference(
    jobs: Callable[..., st.SearchStrategy[list[JobRequest]]], data: st.DataObject
) -> None:
    teams = data.draw(trees())
    devices = data.draw(st.sampled_from((DEVICES, 0))) if jobs is mixed else DEVICES
    cpu = mib = 24_000 if devices else 2**16  # levels are exact: equal fractions tie
    ledger = pool(teams, devices, cpu, mib)
    reference = Pool(teams, (devices * 1000, cpu, mib, devices * DEVICE_MIB), DEVICE_MIB)
    for prefix in ("a", "b"):  # the second queue meets what the first one's jobs hold
        requests = data.draw(jobs(teams, prefix, 8 if prefix == "a" else 30, devices))
        several = len({request.team for request in requests}) > 1
        if not several and prefix == "b":
            other = next(t.name for t in teams if all(t.name != r.team for r in requests))
            requests.append(job("c", other, gpus=min(1, devices), cpu=2**10))
        past = {team.name: data.draw(st.integers(0, devices)) * 500 for team in teams}
        expected = start_order(reference, requests, past)
        assert start(ledger, requests, PAST, Accounts(past=past)) == expected
        event(f"{prefix}: {'all start' if len(expected) == len(requests) else 'some wait'}")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_nobody_is_given_more_while_another_has_less_for_its_weight_and_waits(data: st.DataObject) -> None:
    """Flat trees: at each start, no team whose jobs wait to the end holds less for its weight than the one that starts
    (max-min fairness up to one job)."""
    teams = [replace(team, parent="", limit=()) for team in data.draw(trees(limits=False))]
    requests = [
        job(f"j{i:03d}", data.draw(st.sampled_from(teams)).name, gpus=data.draw(st.integers(1, 2)))
        for i in range(data.draw(st.integers(20, 60)))
    ]
    ledger = pool(teams)
    by_name = {request.job: request for request in requests}
    weight = {team.name: team.weight for team in teams}
    names = start(ledger, requests)
    starved = {
        request.team for request in requests if request.job not in names and request.worker.milli_gpu == 1000
    }
    held = dict.fromkeys(weight, 0)
    for name in names:
        team = by_name[name].team
        for other in starved - {team}:
            assert held[team] * weight[other] <= held[other] * weight[team], (name, other, held)
        held[team] += by_name[name].worker.milli_gpu
    event(f"{len(starved)} teams with small jobs waiting")


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 8), st.lists(st.integers(1, 3), min_size=8, max_size=8), st.integers(0, 7))
def test_each_team_has_at_least_what_a_partition_by_weight_would_give_it(
    count: int, weights: list[int], idle: int
) -> None:
    """Sharing incentive: saturated teams of one-GPU jobs get their part of the pool, but for the last job of each other
    team; with equal weights, their part rounded down."""
    teams = [TeamSpec(name=f"t{i}", weight=weights[i]) for i in range(count)]
    ledger = pool(teams)
    busy = [team for i, team in enumerate(teams) if i != idle]
    requests = [job(f"{team.name}-{i:02d}", team.name, at=i) for team in busy for i in range(DEVICES)]
    start(ledger, requests)
    for team in busy:
        held, all_ = int(ledger.used[ledger.team_row[team.name], 0]) // 1000, sum(t.weight for t in busy)
        assert held * all_ >= (DEVICES - len(busy) + 1) * team.weight
        if len({t.weight for t in busy}) == 1:
            assert held >= DEVICES // len(busy)
    assert ledger.used[:, 0].sum() == 1000 * DEVICES * bool(busy)  # what is idle is used by who can


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_job_that_fits_is_never_left_waiting(data: st.DataObject) -> None:
    """Work conservation: whatever waits at the end finds no room, or a limit in its way."""
    teams = data.draw(trees())
    ledger, requests = pool(teams), data.draw(queues(teams, "a", 30))
    names = start(ledger, requests)
    for request in requests:
        if request.job not in names:
            assert start(ledger.copy(), [request]) == []


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_start_spends_more_of_a_budget_that_is_used_up_and_nobody_else_is_touched(
    data: st.DataObject,
) -> None:
    teams = data.draw(trees())
    requests = data.draw(mixed(teams, "a", 20))
    accounts = Accounts(
        budgets=tuple(
            Account(
                budget=Budget(team=team.name, unit=data.draw(st.sampled_from(Unit)), amount=1000),
                spent=data.draw(st.sampled_from((0, 999, 1000, 5000))),
                until_ns=0,
            )
            for team in data.draw(st.lists(st.sampled_from(teams), max_size=4))
        )
    )
    spent = {account.budget.team for account in accounts.budgets if account.spent >= 1000}
    parents = {team.name: team.parent for team in teams}

    def free(name: str) -> bool:
        return not name or (name not in spent and free(parents[name]))

    allowed = [r for r in requests if free(r.team) or not r.worker.milli_gpu]
    snapshot, decided = decide(pool(teams, cpu=24_000), requests, POLICY, accounts)
    assert started(snapshot, decided) == started(*decide(pool(teams, cpu=24_000), allowed, POLICY))
    held_back = {request.job for request, reason in decided.waiting(snapshot) if reason.code == "budget"}
    assert held_back == {r.job for r in requests} - {r.job for r in allowed}
    event(f"{min(len(held_back), 5)} held back")


def test_jobs_without_gpus_go_by_quota_too_and_then_in_turns() -> None:
    """A team's quota of GPUs is its part of the CPU as well: half of 16 CPUs, and half of what is left."""
    teams = [TeamSpec(name="a", quota=(("*", 4000),)), TeamSpec(name="b")]
    ledger = pool(teams, devices=8, cpu=16_000)
    requests = [job(f"b{i:02d}", "b", gpus=0, cpu=1000, at=i) for i in range(16)]
    requests += [job(f"a{i:02d}", "a", gpus=0, cpu=1000, at=100 + i) for i in range(16)]
    names = start(ledger, requests)
    assert names[:8] == [f"a{i:02d}" for i in range(8)]
    assert names[8:] == ["b00", "a08", "b01", "a09", "b02", "a10", "b03", "a11"]


def test_who_holds_much_of_one_thing_waits_for_who_holds_little_of_all() -> None:
    """Dominant shares: a holds 1 of 8 GPUs and half of the CPU, b holds 2 GPUs and little CPU: b is next."""
    teams = [TeamSpec(name="a"), TeamSpec(name="b")]
    ledger = pool(teams, devices=8, cpu=16_000)
    assert start(ledger, [job("x", "a", cpu=8000), job("y", "b", gpus=2, cpu=1000)]) == ["x", "y"]
    next_ = [job("a", "a", gpus=5, at=0), job("b", "b", gpus=5, at=1)]
    assert start(ledger, next_) == ["b"]


def test_without_sharing_jobs_go_by_submission() -> None:
    teams = [TeamSpec(name="a"), TeamSpec(name="b")]
    requests = [job(f"a{i:02d}", "a", at=i) for i in range(DEVICES)] + [job("b", "b", at=DEVICES)]
    shared = started(*decide(pool(teams), requests))
    assert shared[:3] == ["a00", "b", "a01"]
    by_submission = started(*decide(pool(teams), requests, replace(POLICY, sharing=False)))
    assert by_submission == [f"a{i:02d}" for i in range(DEVICES)]


def test_the_order_of_one_team_alone_is_that_of_submission() -> None:
    requests = [job(f"a{i:02d}", "a", at=i, gpus=1 + i % 3) for i in range(10)]
    names = started(*decide(pool([TeamSpec(name="a"), TeamSpec(name="b")]), requests))
    assert names == sorted(names)


def test_a_job_of_no_known_team_waits_beside_the_turns() -> None:
    requests = [job("x", "nobody"), job("a", "a"), job("b", "b")]
    snapshot, decided = decide(pool([TeamSpec(name="a"), TeamSpec(name="b")]), requests)
    assert started(snapshot, decided) == ["a", "b"]
    assert [(request.job, reason.code) for request, reason in decided.waiting(snapshot)] == [
        ("x", "team-unknown")
    ]


def test_weights_of_any_size_stay_within_the_integers() -> None:
    teams = [TeamSpec(name="a", weight=2**40), TeamSpec(name="b", weight=1), TeamSpec(name="c", weight=2**39)]
    ledger = pool(teams)
    names = started(*decide(ledger, [job(f"{t}{i}", t, at=i) for t in "abc" for i in range(3)]))
    assert names[:3] == ["a0", "b0", "c0"]
    assert names[3:] == ["a1", "c1", "a2", "c2", "b1", "b2"]
