"""S3: nobody is pushed out before its least run time; lent quota comes back at once, unless the policy waits."""

from __future__ import annotations

import pytest
from running_pool import RunningPool, job, team

from moorage.scheduling.model import Policy

S = 10**9
TEN = Policy(least_run_ns=10 * S)


def priority(policy: Policy) -> RunningPool:
    """A job of low priority holds the pool since 0; one of high priority waits."""
    pool = RunningPool.of([4], [team("ops")], policy=policy)
    pool.submit(job("low", "ops", 4))
    pool.go()
    pool.submit(job("high", "ops", 4, priority=1))
    return pool


def lent(policy: Policy) -> RunningPool:
    """One team borrows the pool since 0; its owner waits."""
    pool = RunningPool.of([4], [team("own", 4), team("guest", 0)], policy=policy)
    pool.submit(job("borrowed", "guest", 4))
    pool.go()
    pool.submit(job("entitled", "own", 4))
    return pool


def test_priority_waits_until_the_other_ran_long_enough() -> None:
    pool = priority(TEN)
    assert pool.go(10 * S - 1).preempted == ()
    assert pool.go(1).preempted == ("low",)


def test_a_resumed_job_is_young_again() -> None:
    pool = priority(TEN)
    pool.go(10 * S)
    pool.end("high")
    pool.go()
    pool.submit(job("high2", "ops", 4, priority=1))
    assert pool.go(9 * S).preempted == ()
    assert pool.go(1 * S).preempted == ("low",)


def test_without_the_knob_a_job_leaves_at_once() -> None:
    assert priority(Policy()).go().preempted == ("low",)


def test_an_index_waits_too() -> None:
    pool = RunningPool.of([4], [team("ops")], policy=TEN, keys={"behind": 9})
    pool.submit(job("behind", "ops", 4))
    pool.go()
    pool.submit(job("ahead", "ops", 4))
    assert pool.go(9 * S).preempted == ()
    assert pool.go(S).preempted == ("behind",)


@pytest.mark.parametrize(("waits", "left"), [(False, ("borrowed",)), (True, ())])
def test_lent_quota_comes_back_at_once_unless_the_policy_waits(waits: bool, left: tuple[str, ...]) -> None:
    pool = lent(Policy(least_run_ns=10 * S, reclaim_waits=waits))
    assert pool.go(9 * S).preempted == left
    assert pool.go(S).preempted == (("borrowed",) if waits else ())
    assert list(pool.runs) == ["entitled"]


def test_a_reclaim_within_a_team_is_none() -> None:
    """Entitled, but the other is of the same team and equal priority: its youth is not even looked at."""
    pool = RunningPool.of([4], [team("own", 2), team("guest", 2)], policy=TEN)
    pool.submit(job("one", "own", 4, priority=0))
    pool.go()
    pool.submit(job("two", "own", 2, priority=0))
    assert pool.go(20 * S).preempted == ()
    pool.submit(job("three", "own", 2, priority=3))
    assert pool.go().preempted == ("one",)


def test_the_young_one_is_passed_over_for_one_that_ran() -> None:
    pool = RunningPool.of([4], [team("ops")], policy=TEN)
    pool.submit(job("old", "ops", 2, priority=1))
    pool.go()
    pool.submit(job("young", "ops", 2))
    pool.go(10 * S)
    pool.submit(job("high", "ops", 2, priority=5))
    assert pool.go(S).preempted == ("old",), "the lower priority would be asked first, had it run"
