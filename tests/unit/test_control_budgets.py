"""S2, L5: budgets and decayed use in a live control plane, from its own lease events."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from control_world import World, world

from moorage.configs.pool import PoolSettings
from moorage.configs.teams import parse_teams
from moorage.errors import InvalidRequest
from moorage.scheduling.accounts import Period
from moorage.scheduling.model import ReasonCode

HOUR = 3600
TEAMS = """
teams:
  org: {budget: {gpu_hours: 4, per: day}}
  research: {parent: org, budget: {dollars: 1.5, per: day}}
  search: {parent: org}
  ops: {}
"""


def waits(pool: World, job: str) -> str:
    """The code and words of why."""
    pool.run(0.5)
    reason = pool.job(job).reason
    assert reason is not None
    return f"{reason['code']}: {reason['text']}"


def test_a_team_out_of_budget_queues_with_its_figures_and_what_runs_goes_on(tmp_path: Path) -> None:
    with world(tmp_path, teams=TEAMS) as pool:
        first = pool.submit("research", gpus=1, seconds=str(20 * HOUR))
        pool.run(1)
        pool.clock.tick(1.25 * HOUR)
        second = pool.submit("research", gpus=1, seconds="5")
        pool.run(1)
        assert pool.states(second) != ["PENDING"], "1.25 of 1.5 dollars"
        pool.run(30)
        pool.clock.tick(0.5 * HOUR)
        third = pool.submit("research", gpus=1)
        text = waits(pool, third)
        assert re.match(r"budget: team research has spent 1\.7\d* ", text), text
        assert "of its 1.5 dollars today; starts when the period ends at 2001-09-10 00:00 UTC" in text
        reason = pool.job(third).reason
        assert reason is not None and (reason["unit"], reason["budget"]) == ("dollars", 1.5)
        assert pool.states(first) == ["RUNNING"], "running jobs are not stopped"
        free = pool.submit("research", gpus=0, cpus_per_worker="1", seconds="5")
        sister = pool.submit("search", gpus=2, seconds=str(20 * HOUR))
        pool.run(1)
        assert "PENDING" not in pool.states(free, sister), "no GPU spends nothing; the parent has hours left"
        pool.clock.tick(HOUR)
        for team in ("research", "search"):  # both hold GPUs: 1.75 + 1 + 2 hours of 4
            assert pool.submit(team, job=f"late-{team}", gpus=1)
        pool.run(1)
        assert pool.states("late-research", "late-search") == ["PENDING", "PENDING"]
        assert "team org has spent 4.7" in waits(pool, "late-search")
        other = pool.submit("ops", gpus=1, seconds="5")
        pool.run(1)
        assert pool.states(other) != ["PENDING"]
        rows = pool.service.status(pool.caller("admin"))["budgets"]
        assert [(row["team"], row["unit"], row["budget"]) for row in rows] == [
            ("org", "GPU-hours", 4.0),
            ("research", "dollars", 1.5),
        ]
        now = pool.clock.now().control_ns
        pool.clock.tick((Period.DAY.around(now)[1] - now) / 1e9 + 1)
        pool.run(1)
        assert "PENDING" not in pool.states(third, "late-research", "late-search"), "the next day"


def test_a_control_plane_that_starts_again_has_spent_the_same(tmp_path: Path) -> None:
    settings = PoolSettings(usage_half_life_h=1)
    with world(tmp_path, teams=TEAMS, settings=settings) as pool:
        before = pool.submit("research", gpus=1, seconds="100")
        pool.submit("search", gpus=2, seconds=str(20 * HOUR))
        pool.run(150, step=10)
        assert pool.states(before) == ["SUCCEEDED"]
        pool.clock.tick(0.5 * HOUR)
        accounts = pool.service.core.spending.accounts()
        pool.restart()
        again = pool.service.core.spending.accounts()
        assert accounts is not None and again == accounts
        assert [account.spent for account in again.budgets] > [1000, 0]
        assert set(again.past) == {"research", "search"}


def test_yesterdays_leases_do_not_count_today(tmp_path: Path) -> None:
    with world(tmp_path, teams=TEAMS) as pool:
        pool.submit("research", gpus=1, seconds=str(2 * HOUR))
        pool.run(1)
        pool.clock.tick(2 * HOUR)
        pool.run(2)
        pool.clock.tick(24 * HOUR)
        pool.restart()
        accounts = pool.service.core.spending.accounts()
        assert accounts is not None and [account.spent for account in accounts.budgets] == [0, 0]


@pytest.mark.parametrize("half_life", [0, 24])
def test_use_in_the_past_decides_whose_turn_it_is(tmp_path: Path, half_life: int) -> None:
    settings = PoolSettings(usage_half_life_h=half_life)
    with world(tmp_path, teams="teams: {a: {}, b: {}}", settings=settings) as pool:
        pool.submit("a", gpus=4, workers=2, seconds="7200")
        pool.run(1)
        pool.clock.tick(7210)
        pool.run(2)
        filler = pool.submit("a", gpus=1, workers=4, seconds="60", priority="5")
        pool.run(1)
        assert pool.states(filler) != ["PENDING"]
        used, new = (pool.submit(team, gpus=1, workers=8, seconds="1000") for team in "ab")
        pool.run(100, step=10)
        # neither holds anything: the earlier goes first, unless its team had much
        assert pool.states(used, new).index("PENDING") == (0 if half_life else 1)
        accounts = pool.service.core.spending.accounts()
        assert (accounts is None) == (half_life == 0)
        if accounts is not None:
            assert accounts.past["a"] > 300 and pool.service.loop.policy.half_life_ns == 24 * HOUR * 10**9


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{budget: {}}", "needs gpu_hours, dollars, or both"),
        ("{budget: {gpu_hours: -1}}", "must not be negative"),
        ("{budget: {dollars: 1.2345}}", "more than three decimals"),
        ("{budget: {gpu_hours: 1, per: fortnight}}", "per"),
        ("{budget: {hours: 1}}", "hours"),
        ("{budget: 5}", "must be a mapping"),
    ],
)
def test_a_budget_that_says_nothing_or_nonsense_is_refused(text: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        parse_teams(f"teams: {{ops: {text}}}")


def test_the_reason_is_one_of_the_stable_codes() -> None:
    assert ReasonCode("budget") is ReasonCode.BUDGET
