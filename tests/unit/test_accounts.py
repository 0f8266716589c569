"""S2, L5: what teams have used: calendar periods, decayed averages, spending; and a budget that holds jobs back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from moorage.scheduling.accounts import HOUR_NS, Account, Accounts, Budget, Meter, Period, Unit
from moorage.scheduling.changes import RaiseBudget, Together
from moorage.scheduling.explain import explain
from moorage.scheduling.ledger import Ledger, NodeUp, TeamSet, step
from moorage.scheduling.model import JobRequest, NodeSpec, Policy, ReasonCode, Shape, Snapshot, TeamSpec
from moorage.scheduling.planner import plan
from moorage.scheduling.queue import Queue

PARENTS = {"org": "", "research": "org", "search": "org", "ops": ""}


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 10**9


@pytest.mark.parametrize(
    ("period", "now", "begin", "end"),
    [
        (Period.DAY, "2026-02-28T23:59:59", "2026-02-28", "2026-03-01"),
        (Period.DAY, "2026-03-01T00:00:00", "2026-03-01", "2026-03-02"),
        (Period.WEEK, "2026-11-22T12:00:00", "2026-11-16", "2026-11-23"),  # a Sunday
        (Period.WEEK, "2026-11-23T00:00:00", "2026-11-23", "2026-11-30"),
        (Period.MONTH, "2024-02-29T08:00:00", "2024-02-01", "2024-03-01"),
        (Period.MONTH, "2026-12-31T23:59:59", "2026-12-01", "2027-01-01"),
        (Period.QUARTER, "2026-01-01T00:00:00", "2026-01-01", "2026-04-01"),
        (Period.QUARTER, "2026-12-31T00:00:00", "2026-10-01", "2027-01-01"),
        (Period.YEAR, "2026-07-01T00:00:00", "2026-01-01", "2027-01-01"),
    ],
)
def test_periods_are_those_of_the_calendar(period: Period, now: str, begin: str, end: str) -> None:
    assert period.around(at(now)) == (at(begin), at(end))


@pytest.mark.parametrize("period", Period)
def test_periods_follow_each_other_without_a_gap(period: Period) -> None:
    now = at("2023-12-30T12:00:00")
    for _ in range(20):
        begin, end = period.around(now)
        assert begin <= now < end and period.around(end)[0] == end and period.around(end - 1) == (begin, end)
        now = end


def test_an_average_follows_what_is_held_and_forgets_by_half() -> None:
    meter = Meter(half_life_ns=HOUR_NS)
    meter.began("l", "ops", 8000, 0)
    assert meter.accounts(PARENTS, HOUR_NS).past == {"ops": 4000}
    assert meter.accounts(PARENTS, 2 * HOUR_NS).past == {"ops": 6000}
    meter.ended("l", 2 * HOUR_NS)
    assert meter.accounts(PARENTS, 4 * HOUR_NS).past == {"ops": 1500}
    assert meter.accounts(PARENTS, 40 * HOUR_NS).past == {}


def test_what_a_lease_held_before_and_after_it_was_resized_counts() -> None:
    day = at("2026-11-22")
    meter = Meter(budgets=(budget("ops", 5), replace(budget("ops", 5), unit=Unit.DOLLARS)))
    meter.began("l", "ops", 1000, day, rate=10**9)
    meter.resized("l", 4000, day + HOUR_NS, rate=4 * 10**9)
    meter.resized("gone", 4000, day + HOUR_NS)
    meter.ended("l", day + 3 * HOUR_NS)
    found = meter.accounts(PARENTS, day + 9 * HOUR_NS)
    assert [account.spent for account in found.budgets] == [9000, 9000]


def test_without_a_half_life_there_is_no_average() -> None:
    meter = Meter()
    meter.began("l", "ops", 8000, 0)
    assert meter.accounts(PARENTS, HOUR_NS) == Accounts()


def budget(team: str, gpu_hours: float, period: Period = Period.DAY, unit: Unit = Unit.GPU_HOURS) -> Budget:
    return Budget(team=team, unit=unit, amount=round(gpu_hours * 1000), period=period)


def test_spending_is_counted_for_the_team_and_all_above_it_in_hours_and_money() -> None:
    day = at("2026-11-22")
    money = replace(budget("research", 7), unit=Unit.DOLLARS)
    meter = Meter(budgets=(budget("org", 5), budget("research", 4), money, budget("ops", 1)))
    meter.began("a", "research", 2000, day, rate=2000 * 1_500_000)  # 2 GPUs at 1.50 dollars an hour
    meter.began("b", "search", 500, day)
    meter.ended("nobody's", day)
    meter.ended("b", day + HOUR_NS)
    meter.ended("b", day + 2 * HOUR_NS)
    found = meter.accounts(PARENTS, day + 2 * HOUR_NS)
    assert [account.spent for account in found.budgets] == [4500, 4000, 6000, 0]
    assert [account.out for account in found.budgets] == [False, True, False, False]
    assert {account.until_ns for account in found.budgets} == {at("2026-11-23")}


def test_a_new_period_begins_at_nothing_even_for_what_runs_on() -> None:
    day, next_ = at("2026-11-22"), at("2026-11-23")
    meter = Meter(budgets=(budget("ops", 5), budget("ops", 5, Period.MONTH)))
    meter.began("a", "ops", 1000, day)
    spent = [account.spent for account in meter.accounts(PARENTS, next_ + 3 * HOUR_NS).budgets]
    assert spent == [3000, 27_000]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["ops", "research"]), st.integers(0, 80), st.integers(0, 60)), max_size=12
    ),
    st.lists(st.integers(0, 100), max_size=4),
)
def test_spending_is_what_adding_up_every_lease_gives(
    leases: list[tuple[str, int, int]], asked: list[int]
) -> None:
    """`leases`: (team, begin, length) in hours from a noon; whoever asks in between changes nothing."""
    noon = at("2026-11-20T12:00:00")
    events = [(begin, 0, i) for i, (_, begin, _) in enumerate(leases)]
    events += [(begin + length, 1, i) for i, (_, begin, length) in enumerate(leases)]
    events += [(hour, 2, 0) for hour in asked]
    meter = Meter(HOUR_NS, (budget("ops", 1), budget("org", 1, Period.WEEK)))
    last = max([hour for hour, *_ in events], default=0) + 1
    for hour, kind, i in sorted(events):
        now = noon + hour * HOUR_NS
        if kind == 0:
            meter.began(str(i), leases[i][0], 1000, now)
        elif kind == 1:
            meter.ended(str(i), now)
        else:
            meter.accounts(PARENTS, now)
    now = noon + last * HOUR_NS
    found = meter.accounts(PARENTS, now)
    for account, team in zip(found.budgets, ("ops", "research"), strict=True):
        since = account.budget.period.around(now)[0]
        spans = (
            (max(noon + b * HOUR_NS, since), noon + (b + n) * HOUR_NS) for t, b, n in leases if t == team
        )
        assert account.spent == sum(1000 * max(0, end - begin) // HOUR_NS for begin, end in spans)
    event(f"{last // 24} days")


def pool(**quota: int) -> Ledger:
    ledger = Ledger()
    step(ledger, NodeUp(NodeSpec(name="n", gpu_model="A", devices=8, milli_cpu=8000)))
    for name, parent in PARENTS.items():
        figures = (("*", quota[name]),) if name in quota else ()
        step(ledger, TeamSet(TeamSpec(name=name, parent=parent, quota=figures)))
    return ledger


def job(name: str, team: str, gpus: int = 1, at_ns: int = 0, head: int = 0) -> JobRequest:
    return JobRequest(
        job=name,
        team=team,
        submitted_ns=at_ns,
        head=Shape(milli_gpu=head),
        worker=Shape(milli_gpu=1000 * gpus, milli_cpu=100),
        workers=1,
        min_workers=1,
    )


def spent(of: Mapping[str, tuple[float, float]]) -> Accounts:
    """Of team -> (spent, budget) GPU-hours."""
    return Accounts(
        budgets=tuple(
            Account(
                budget=budget(team, whole, Period.MONTH), spent=round(had * 1000), until_ns=at("2026-12-01")
            )
            for team, (had, whole) in of.items()
        )
    )


def decide(
    ledger: Ledger, requests: list[JobRequest], accounts: Accounts, **policy: int
) -> tuple[list[str], dict[str, ReasonCode]]:
    snapshot = Snapshot(version=ledger.version, ledger=ledger, pending=Queue.of(requests), accounts=accounts)
    decided = plan(snapshot, Policy(**policy), 0)  # type: ignore[arg-type]
    return (
        [request.job for request, _ in decided.admissions(snapshot)],
        {request.job: reason.code for request, reason in decided.waiting(snapshot)},
    )


@pytest.mark.parametrize("quota", [{}, {"org": 2000, "research": 1000}], ids=["no quota", "quotas"])
@pytest.mark.parametrize(
    ("accounts", "waits"),
    [
        ({}, set()),
        ({"research": (99.9, 100)}, set()),
        ({"research": (100, 100)}, {"research"}),
        ({"org": (100.2, 100)}, {"research", "search", "org"}),
        ({"org": (1, 100), "research": (3, 2), "ops": (0, 0)}, {"research", "ops"}),
        ({"gone": (9, 1)}, set()),
    ],
)
def test_a_team_out_of_budget_starts_nothing_and_nobody_below_it(
    quota: dict[str, int], accounts: dict[str, tuple[float, float]], waits: set[str]
) -> None:
    requests = [job(f"of-{team}", team, at_ns=i) for i, team in enumerate(PARENTS)]
    starts, reasons = decide(pool(**quota), requests, spent(accounts))
    assert set(starts) == {f"of-{team}" for team in PARENTS if team not in waits}
    assert reasons == {f"of-{team}": ReasonCode.BUDGET for team in waits}


def test_what_asks_for_no_gpu_spends_nothing_and_starts() -> None:
    requests = [job("cpu", "ops", gpus=0), job("gpu", "ops"), job("head", "ops", gpus=0, head=1000)]
    starts, reasons = decide(pool(), requests, spent({"ops": (5, 5)}))
    assert starts == ["cpu"]
    assert reasons == {"gpu": ReasonCode.BUDGET, "head": ReasonCode.BUDGET}


def test_the_reason_names_the_budget_what_was_spent_and_when_it_ends() -> None:
    ledger = pool()
    snapshot = Snapshot(
        version=ledger.version,
        ledger=ledger,
        pending=Queue.of((job("a", "research"),)),
        accounts=spent({"org": (100.2, 100)}),
    )
    (reason,) = plan(snapshot, Policy(), 0).reasons
    assert reason.text() == (
        "team org has spent 100.2 of its 100 GPU-hours this month; "
        "starts when the period ends at 2026-12-01 00:00 UTC or the budget is raised"
    )
    now = at("2026-11-22")
    found = explain(snapshot, Policy(), now, 0)
    assert found.suggestions == (RaiseBudget("org", Unit.GPU_HOURS, Period.MONTH, 201),)
    assert found.suggestions[0].text() == "raise the budget of team org by 0.201 GPU-hours a month"
    assert found.earliest_ns == at("2026-12-01")
    assert "it starts when the period ends, in 9 d" in found.text()
    both = replace(snapshot, accounts=spent({"org": (100.2, 100), "research": (7, 6)}))
    assert isinstance(explain(both, Policy(), now, 0).suggestions[0], Together)


def test_who_used_much_in_the_past_goes_after_who_used_little() -> None:
    """History counts as if it were still held, where the policy says so; a quota's part of it does not."""
    requests = [job("of-ops", "ops", 5, 0), job("of-org", "org", 5, 1)]
    past = Accounts(past={"ops": 2000, "research": 500})
    assert decide(pool(), requests, past)[0] == ["of-ops"]
    assert decide(pool(), requests, past, half_life_ns=HOUR_NS)[0] == ["of-org"]
    assert decide(pool(), requests, Accounts(past={"ops": 2000, "research": 2000}), half_life_ns=1)[0] == [
        "of-ops"
    ]  # org's history is that of its teams
    assert decide(pool(ops=2000), requests, past, half_life_ns=HOUR_NS)[0] == ["of-ops"]
