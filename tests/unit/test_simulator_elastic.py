"""X2, S3: gangs that grow and shrink in the simulator: speed by workers, small enough to work out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_jobs import HOUR, Job, hours, workload

from moorage.scheduling.model import NodeSpec, TeamSpec
from moorage.scheduling.simulator import engine
from moorage.scheduling.simulator.elastic import Elastic, made_elastic
from moorage.scheduling.simulator.model import JobsResult, NotSimulated, Workload

NODE = NodeSpec(name="n0", gpu_model="A", devices=4)
FREE = Elastic(resize_ns=0, settle_ns=0)
GANG = Job(0, 6, 1, workers=4, least=1)
"""Six hours at four workers of one GPU."""


def run(policy: str, load: Workload, how: Elastic | None, **more: object) -> JobsResult:
    return engine.simulate((NODE,), load, policy=policy, elastic=how, **more)  # type: ignore[arg-type]


def test_a_gang_that_starts_small_takes_the_room_that_comes_free() -> None:
    """Two hours at two of four workers are one at full size; then the other two GPUs come free."""
    load = workload(Job(0, 2, 2), GANG)
    found = run("backfill", load, FREE)
    assert hours(found.finish_ns) == [2, 7]
    assert found.resizes.tolist() == [0, 1]
    assert hours(run("backfill", load, None).finish_ns) == [2, 6], "as ever: what started small runs as fast"


def test_a_resize_costs_run_time_and_waits_until_the_gang_has_settled() -> None:
    load = workload(Job(0, 2, 2), GANG)
    found = run("backfill", load, Elastic(resize_ns=HOUR, settle_ns=3 * HOUR))
    # 3 h at half speed do 1.5 h of 6; the resize costs 1 h: 5.5 h at full speed
    assert hours(found.finish_ns) == [2, 8.5]
    assert found.resizes.tolist() == [0, 1]


def test_workers_above_the_minimum_may_be_worth_less() -> None:
    """At 50 percent four workers do as much as two and a half: alone at the minimum it takes 2.5 times as long."""
    load = workload(Job(0, 100, 3), GANG)
    found = run("backfill", load, Elastic(resize_ns=0, settle_ns=0, efficiency_percent=50))
    assert hours(found.finish_ns) == [100, 15]
    assert hours(run("backfill", load, FREE).finish_ns) == [100, 24]


def prioritised(load: Workload, *priority: int) -> Workload:
    return replace(load, priority=np.array(priority, np.int64))


def test_a_gang_gives_workers_to_a_higher_priority_and_takes_them_back() -> None:
    """From hour 1 to 3 it has two of its workers: an hour of progress in two. Nobody is pushed out."""
    load = prioritised(workload(GANG, Job(1, 2, 2)), 0, 1)
    found = run("las", load, FREE)
    assert hours(found.start_ns) == [0, 1]
    assert hours(found.finish_ns) == [7, 3]
    assert found.preemptions.tolist() == [0, 0]
    assert found.resizes.tolist() == [2, 0]
    rigid = run("las", load, None)
    assert rigid.preemptions.tolist() == [1, 0], "without, it leaves as a whole"


def test_least_attained_service_asks_for_workers_first() -> None:
    load = workload(GANG, Job(4, 1, 2))
    found = run("las", load, FREE)
    assert (found.preemptions.sum(), found.resizes.tolist()) == (0, [2, 0])
    assert hours(found.finish_ns) == [6.5, 5]


def test_what_is_lent_comes_back_by_giving_up_workers() -> None:
    quotas = (TeamSpec(name="a", quota=(("*", 1000),)), TeamSpec(name="b", quota=(("*", 3000),)))
    load = workload(Job(0, 6, 1, "a", workers=4, least=2), Job(2, 1, 2, "b"))
    found = run("las", load, FREE, quotas=quotas)
    assert found.preemptions.tolist() == [0, 0]
    assert hours(found.finish_ns) == [6.5, 3]


def test_rigid_jobs_run_as_they_do_without() -> None:
    rng = np.random.default_rng(7)
    jobs = [
        Job(int(at), int(rng.integers(1, 9)), 1, workers=int(rng.integers(1, 5)))
        for at in np.sort(rng.integers(0, 40, 40))
    ]
    for policy in ("las", "learned", "backfill", "fifo"):
        with_, without = (run(policy, workload(*jobs), how) for how in (Elastic(), None))
        assert (with_.finish_ns == without.finish_ns).all()
        assert not with_.resizes.any()


@pytest.mark.parametrize("policy", ["las", "learned", "backfill", "fifo", "srtf-oracle"])
def test_gpu_time_is_kept_whatever_happens(policy: str) -> None:
    """With linear scaling and free resizes the GPU-time that all jobs hold is what their durations ask for, but for
    what preemption lost; and the run repeats to the nanosecond."""
    rng = np.random.default_rng(11)
    jobs = []
    for at in np.sort(rng.integers(0, 30, 40)):
        workers = int(rng.integers(1, 5))
        jobs.append(
            Job(int(at), int(rng.integers(1, 9)), 1, workers=workers, least=int(rng.integers(1, workers + 1)))
        )
    load = workload(*jobs)
    found, again = run(policy, load, FREE), run(policy, load, FREE)
    assert (found.finish_ns == again.finish_ns).all() and (found.resizes == again.resizes).all()
    assert found.resizes.any() or policy == "backfill", "there somebody waits all the time"
    at_most = 4 * int(found.finish_ns.max())
    asked = int((load.workers * (load.duration_ns + found.lost_ns)).sum())
    assert asked <= at_most + 4 * len(jobs), "no GPU works twice"
    assert (found.finish_ns - found.start_ns >= load.duration_ns).all(), "never faster than at full size"


def test_while_more_is_asked_for_than_is_free_gangs_start_small() -> None:
    """Of two gangs of four on four GPUs each starts with two workers; Where
    workers above the least are worth half, all is done sooner for it."""
    load = workload(*(Job(0, 3, 1, workers=4, least=2),) * 2)
    half = Elastic(resize_ns=0, settle_ns=0, efficiency_percent=50, start_small=True)
    small, large = run("backfill", load, half), run("backfill", load, replace(half, start_small=False))
    assert hours(small.start_ns) == [0, 0] and hours(small.finish_ns) == [4.5, 4.5]
    assert hours(large.start_ns) == [0, 3] and hours(large.finish_ns) == [3, 6]
    alone = run("backfill", workload(Job(0, 3, 1, workers=4, least=2)), half)
    assert hours(alone.finish_ns) == [3], "with room for all of it it starts large"


def test_jobs_of_several_gpus_become_gangs_of_workers() -> None:
    """One task of 8 GPUs: workers of one. A gang of two nodes: of those. One GPU stays one."""
    load = workload(Job(0, 1, 8), Job(0, 1, 1), Job(0, 1, 4, workers=3))
    load = replace(load, milli_cpu=np.array([9000, 700, 100], np.int64))
    made = made_elastic(load, 30)
    assert made.workers.tolist() == [8, 1, 3] and made.min_workers.tolist() == [3, 1, 1]
    assert made.milli_gpu.tolist() == [1000, 1000, 4000] and made.milli_cpu.tolist() == [1125, 700, 100]
    assert (made.gpus() == load.gpus()).all()
    assert (made_elastic(load, 100).min_workers == made.workers).all()
    with pytest.raises(ValueError, match="1 to 100"):
        made_elastic(load, 0)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="efficiency"):
        Elastic(efficiency_percent=0)
    with pytest.raises(ValueError, match="negative"):
        Elastic(settle_ns=-1)
    with pytest.raises(NotSimulated, match="elastic"):
        run("static", workload(GANG), FREE)
