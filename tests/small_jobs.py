"""Small workloads for the simulator, by hours and GPUs, to be worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moorage.scheduling.simulator.model import Kind, Workload

HOUR = 3600 * 10**9


@dataclass(frozen=True)
class Job:
    at: int
    """Hours; as is `hours`."""
    hours: int
    gpus: int
    team: str = "a"
    workers: int = 1
    """Each of `gpus`; at least `least` of them."""
    least: int = 0


def workload(*jobs: Job) -> Workload:
    teams = tuple(sorted({job.team for job in jobs}))
    count = len(jobs)
    none = np.zeros(count, np.int64)

    def column(values: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.array(values, np.int64)

    return Workload(
        submit_ns=column([job.at * HOUR for job in jobs]),
        duration_ns=column([job.hours * HOUR for job in jobs]),
        team=column([teams.index(job.team) for job in jobs]),
        workers=column([job.workers for job in jobs]),
        min_workers=column([job.least or job.workers for job in jobs]),
        milli_gpu=column([job.gpus * 1000 for job in jobs]),
        gpu_mib=none,
        milli_cpu=none,
        mib=none,
        models=none,
        deadline_ns=none,
        priority=none,
        names=None,
        teams=teams,
        model_sets=((),),
        kind=Kind.JOBS,
    )


def hours(times: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[float]:
    return [round(float(t) / HOUR, 3) for t in times]
