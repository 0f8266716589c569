"""X2, S3: the discrete-event engine over the real planner and ledger, on workloads small enough to work out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_jobs import HOUR, Job, hours, workload

from moorage.scheduling.model import DeviceRule, NodeSpec, TeamSpec
from moorage.scheduling.simulator import engine
from moorage.scheduling.simulator.model import JobsResult, NotSimulated

NODE = NodeSpec(name="n0", gpu_model="A", devices=4)

LATE_SMALL = (Job(0, 10, 3), Job(1, 5, 4), Job(2, 1, 1))
"""Three GPUs busy till 10; a job for all four waits; a small one comes that fits beside the first."""


def run(policy: str, *jobs: Job, nodes: tuple[NodeSpec, ...] = (NODE,), **more: object) -> JobsResult:
    return engine.simulate(nodes, workload(*jobs), policy=policy, **more)  # type: ignore[arg-type]


def test_strict_fifo_lets_nobody_pass() -> None:
    found = run("fifo", *LATE_SMALL)
    assert hours(found.start_ns) == [0, 10, 15]
    assert hours(found.finish_ns) == [10, 15, 16]
    assert hours(found.longest_stint_ns) == [0, 9, 13]
    assert not found.preemptions.any()


def test_backfill_uses_what_the_first_in_line_cannot() -> None:
    assert hours(run("backfill", *LATE_SMALL).finish_ns) == [10, 15, 3]


def test_with_a_period_jobs_start_at_its_multiples_and_end_when_they_end() -> None:
    jobs = (Job(1, 2, 4), Job(2, 3, 4), Job(4, 1, 4))
    found = run("backfill", *jobs, period_ns=5 * HOUR)
    assert hours(found.start_ns) == [5, 10, 15]
    assert hours(found.finish_ns) == [7, 13, 16]
    assert hours(found.longest_stint_ns) == [4, 8, 11]
    assert found.decisions == 3
    assert hours(run("backfill", *jobs, period_ns=0).finish_ns) == [3, 6, 7]


def test_a_live_pool_is_overtaken_for_ten_minutes_and_no_longer() -> None:
    """And it goes by priority before submission."""
    load = workload(*LATE_SMALL)
    for minutes, ends in ((9, [10, 15, 2.15]), (11, [10, 15, 16])):
        submit = load.submit_ns.copy()
        submit[2] = submit[1] + minutes * HOUR // 60
        found = engine.simulate((NODE,), replace(load, submit_ns=submit), policy="live")
        assert hours(found.finish_ns) == ends
    load = workload(Job(0, 1, 4), Job(0, 1, 4), Job(0, 1, 4))
    found = engine.simulate((NODE,), replace(load, priority=np.array([0, 1, 2])), policy="live")
    assert hours(found.finish_ns) == [3, 2, 1]


def test_the_raylet_may_pick_a_device_that_has_no_memory_left() -> None:
    """It goes by the share alone: then the task waits, which a free choice would put on the other device."""
    load = replace(
        workload(Job(0, 2, 1), Job(0, 2, 1)), milli_gpu=np.array([500, 500]), gpu_mib=np.array([90, 50])
    )
    node = NodeSpec(name="n0", gpu_model="A", devices=2, device_mib=100)
    for rule, ends in ((DeviceRule.FREE, [2, 2]), (DeviceRule.RAYLET, [2, 4])):
        assert hours(engine.simulate((node,), load, policy="live", rule=rule).finish_ns) == ends


def test_jobs_are_packed_by_the_rule_that_is_asked_for() -> None:
    """A small job fills the node that is nearly full, or takes the first node that it fits and breaks a pair there."""
    jobs = (Job(0, 10, 2), Job(1, 10, 3), Job(2, 20, 1), Job(3, 1, 2))
    nodes = (NODE, replace(NODE, name="n1"))
    for packing, start in (("best-fit", 3), ("first", 10)):
        assert hours(run("live", *jobs, nodes=nodes, packing=packing).start_ns)[3] == start


def test_teams_take_turns_and_who_used_much_before_comes_after() -> None:
    jobs = (Job(0, 20, 4, "a"), Job(1, 1, 4, "a"), Job(2, 1, 4, "b"), Job(3, 1, 4, "a"), Job(4, 1, 4, "b"))
    assert hours(run("live", *jobs).start_ns) == [0, 20, 21, 22, 23]
    assert hours(run("turns", *jobs).start_ns) == [0, 22, 20, 23, 21]


def test_the_oracle_pushes_out_the_longer_job_and_pays_for_it() -> None:
    found = run("srtf-oracle", Job(0, 10, 4), Job(1, 1, 4))
    minute = round(1 / 60, 3)
    assert hours(found.finish_ns) == [11 + minute, 2]
    assert found.preemptions.tolist() == [1, 0]
    assert hours(found.lost_ns) == [minute, 0]
    assert hours(found.longest_stint_ns) == [1, 0]


def test_least_attained_service_lets_the_newcomer_in() -> None:
    """A job that had hours of GPU-time leaves for one that had none, and comes back."""
    found = run("las", Job(0, 10, 4), Job(4, 1, 4))
    assert found.preemptions[0] >= 1
    assert found.finish_ns[1] < found.finish_ns[0]
    assert found.start_ns[1] == 4 * HOUR


def test_a_job_gets_all_its_run_time_and_what_preemption_cost() -> None:
    rng = np.random.default_rng(3)
    jobs = tuple(
        Job(int(at), int(rng.integers(1, 9)), int(rng.integers(1, 5)))
        for at in np.sort(rng.integers(0, 40, 60))
    )
    for policy in engine.POLICIES:
        found = run(policy, *jobs, nodes=(NODE, NodeSpec(name="n1", gpu_model="A", devices=4)))
        load = workload(*jobs)
        assert (found.finish_ns - found.start_ns >= load.duration_ns + found.lost_ns).all()
        assert (found.start_ns >= load.submit_ns).all()
        alone = found.preemptions == 0
        assert (found.finish_ns - found.start_ns == load.duration_ns)[alone].all()
        again = run(policy, *jobs, nodes=(NODE, NodeSpec(name="n1", gpu_model="A", devices=4)))
        assert (again.finish_ns == found.finish_ns).all(), "a run repeats to the nanosecond"


def test_quotas_bind_in_the_simulator_as_in_production() -> None:
    """Team b may never hold more than one GPU, whatever is free."""
    teams = (TeamSpec(name="a"), TeamSpec(name="b", limit=(("*", 1000),)))
    jobs = (Job(0, 2, 1, "b"), Job(0, 2, 1, "b"), Job(0, 2, 1, "a"))
    assert hours(run("backfill", *jobs, quotas=teams).finish_ns) == [2, 4, 2]


def test_what_fits_nowhere_ends_the_run_and_says_so() -> None:
    with pytest.raises(NotSimulated, match="1 jobs wait and nothing runs"):
        run("backfill", Job(0, 1, 4), Job(0, 1, 5))


def test_an_unknown_policy_names_those_there_are() -> None:
    with pytest.raises(NotSimulated, match="there are learned, learned-unbounded, las"):
        run("lottery", Job(0, 1, 1))


def test_easy_lets_pass_who_does_not_delay_the_first() -> None:
    """The small job ends before the big one can start, or it does not."""
    assert hours(run("easy-oracle", *LATE_SMALL).start_ns) == [0, 10, 2]
    long = (*LATE_SMALL[:2], Job(2, 9, 1))
    assert hours(run("easy-oracle", *long).start_ns) == [0, 10, 15]
    assert hours(run("backfill", *long).start_ns) == [0, 11, 2], (
        "without a reservation the big one waits for it"
    )


def test_conservative_backfill_delays_nobody_in_line() -> None:
    """The second in line could start at 15. Under EASY a long small job is in its way, as only the first is minded."""
    jobs = (Job(0, 10, 3), Job(1, 5, 2), Job(2, 5, 4), Job(3, 20, 1))
    assert hours(run("easy-oracle", *jobs).start_ns) == [0, 10, 23, 3]
    assert hours(run("conservative-oracle", *jobs).start_ns) == [0, 10, 15, 20]
