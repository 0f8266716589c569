"""The learned discipline over the simulator's columns, without the simulator."""

from __future__ import annotations

import numpy as np

from moorage.scheduling.queueing import index
from moorage.scheduling.simulator.disciplines import (
    BOUND_NS,
    HOUR,
    LEAST_RUN_NS,
    MINUTE,
    TICK_NS,
    Jobs,
    Learned,
)
from moorage.scheduling.simulator.model import Kind, Workload


def jobs(teams: list[int], gpus: list[int], hours: list[float]) -> Jobs:
    count = len(teams)
    none = np.zeros(count, np.int64)
    return Jobs.of(
        Workload(
            submit_ns=none,
            duration_ns=np.array([int(h * HOUR) for h in hours], np.int64),
            team=np.array(teams, np.int64),
            workers=np.ones(count, np.int64),
            min_workers=np.ones(count, np.int64),
            milli_gpu=np.array(gpus, np.int64) * 1000,
            gpu_mib=none,
            milli_cpu=none,
            mib=none,
            models=none,
            deadline_ns=none,
            priority=none,
            names=None,
            teams=("a", "b"),
            model_sets=((),),
            kind=Kind.JOBS,
        ),
        64000,
        np.zeros(len(set(teams)), np.int64),
    )


def rows(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def end(known: Jobs, row: int, hours: float) -> None:
    known.attained_ns[row] = int(hours * HOUR)
    known.started_ns[row] = -1
    known.stopped = [*known.stopped, (row, True)]


def test_a_team_whose_jobs_end_soon_goes_first_and_only_after_they_did() -> None:
    known = jobs([0, 1, 0, 1], [1] * 4, [0.01, 30, 0.01, 30])
    rank = Learned(known, None)
    before = rank(known, rows(2, 3), rows()).waiting
    assert before is not None and before[0] == before[1]
    end(known, 0, 0.01)
    end(known, 1, 30)
    known.now_ns = 31 * HOUR
    after = rank(known, rows(2, 3), rows()).waiting
    assert after is not None and after[0] + index.DOUBLING < after[1]


def test_durations_of_jobs_that_have_not_ended_are_not_read() -> None:
    keys = []
    for hours in (0.5, 500.0):
        known = jobs([0, 0, 1], [1, 4, 2], [hours] * 3)
        known.started_ns[0], known.now_ns = 0, 2 * TICK_NS
        found = Learned(known, BOUND_NS)(known, rows(1, 2), rows(0))
        assert found.waiting is not None
        keys.append((*found.waiting.tolist(), *found.running.tolist()))
    assert keys[0] == keys[1]


def test_who_runs_without_an_end_puts_the_likes_of_it_behind() -> None:
    known = jobs([0, 0, 1], [1, 1, 1], [90, 90, 90])
    rank = Learned(known, None)
    known.started_ns[0] = 0
    for at in range(1, 300):
        known.now_ns = at * TICK_NS
        found = rank(known, rows(1, 2), rows(0)).waiting
    assert found is not None and found[0] > found[1]


def test_a_new_run_stays_where_it_is_for_a_while() -> None:
    known = jobs([0], [1], [9])
    rank = Learned(known, None)
    known.started_ns[0], known.now_ns = MINUTE, MINUTE + LEAST_RUN_NS - 1
    found = rank(known, rows(), rows(0))
    assert found.least_run_ns == LEAST_RUN_NS, "nobody pushes it out: the planner sees to that"
    assert found.movable.tolist() == [0]
    known.now_ns += 1
    assert rank(known, rows(), rows(0)).movable.tolist() == [1]


def test_who_was_queued_too_long_goes_first_and_stays() -> None:
    known = jobs([0, 0], [8, 1], [900, 1])
    rank = Learned(known, BOUND_NS)
    known.now_ns = BOUND_NS - 1
    known.queued_ns[1] = BOUND_NS
    found = rank(known, rows(0), rows()).waiting
    assert found is not None and found[0] > 0
    known.now_ns = BOUND_NS
    found = rank(known, rows(0, 1), rows()).waiting
    assert found is not None and found[0] < -(2**60) < found[1]
    known.started_ns[0], known.waited_ns[0] = BOUND_NS, BOUND_NS
    known.now_ns = BOUND_NS + HOUR
    assert rank(known, rows(1), rows(0)).fixed.tolist() == [1]
