"""Gangs that grow and shrink while they run: how fast each goes, and when it may be resized again.

A trace tells how long a job ran at all its workers, and nothing of how long it would have at fewer. Here speed goes
with the number of workers: a gang at half of them takes twice as long. That is an assumption (linear scaling), and
`efficiency_percent` another one: the workers above the minimum are worth less than the first ones; at 50, each adds
half of what one of the minimum does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from moorage.scheduling.model import WHOLE, IntArray
from moorage.scheduling.simulator.model import Workload

SECOND = 10**9
LONG_AGO = -(2**61)


@dataclass(frozen=True, slots=True, kw_only=True)
class Elastic:
    """What is supposed of gangs with fewer workers as their minimum than as their wish."""

    efficiency_percent: int = 100
    """What a worker above the minimum adds, of what one of the minimum does; 1 to 100. 100 = linear."""
    resize_ns: int = 60 * SECOND
    """Run time at full size that each resize costs: workers stop and start from a checkpoint."""
    settle_ns: int = 600 * SECOND
    """`Policy.settle_ns`"""
    start_small: bool = False
    """`Policy.start_small`"""

    def __post_init__(self) -> None:
        if not 1 <= self.efficiency_percent <= 100:
            raise ValueError(f"efficiency is 1 to 100 percent, not {self.efficiency_percent}")
        if self.resize_ns < 0 or self.settle_ns < 0:
            raise ValueError("times cannot be negative")


def made_elastic(workload: Workload, least_percent: int) -> Workload:
    """The same jobs, of which those of several GPUs may run with `least_percent` of their workers, rounded up.

    One task of several whole GPUs becomes a gang of workers of one GPU, which need not be on one node any more: what
    they did not say of themselves is supposed of them. Gangs keep their tasks. Raises ValueError.
    """
    if not 1 <= least_percent <= 100:
        raise ValueError(f"the least size is 1 to 100 percent, not {least_percent}")
    split = (workload.workers == 1) & (workload.milli_gpu > WHOLE)
    each = np.where(split, workload.milli_gpu // WHOLE, 1)
    workers = workload.workers * each
    return replace(
        workload,
        workers=workers,
        min_workers=np.minimum(
            np.where(split, workers, workload.min_workers), -(-workers * least_percent // 100)
        ),
        milli_gpu=workload.milli_gpu // each,
        milli_cpu=-(-workload.milli_cpu // each),
        mib=-(-workload.mib // each),
    )


class Gangs:
    """The running jobs' sizes. Arrays are int64[n] by the workload's rows; times are the simulation's."""

    __slots__ = ("_done", "_least", "_since", "_workload", "grown", "how", "resizes", "shrunk", "workers")

    def __init__(self, workload: Workload, how: Elastic) -> None:
        count = len(workload)
        self._workload, self.how = workload, how
        self._least = np.maximum(workload.min_workers, 1)
        self.workers, self._since, self._done, self.resizes = np.zeros((4, count), np.int64)
        self.grown, self.shrunk = np.full((2, count), LONG_AGO)

    def begin(self, row: int, workers: int, now: int) -> None:
        """An attempt starts."""
        self.workers[row], self._since[row], self._done[row] = workers, now, 0
        self.grown[row] = self.shrunk[row] = LONG_AGO

    def resized(self, row: int, workers: int, now: int) -> None:
        self._done[row], self._since[row] = self.useful_ns(row, now) - self.how.resize_ns, now
        (self.grown if workers > self.workers[row] else self.shrunk)[row] = now
        self.workers[row] = workers
        self.resizes[row] += 1

    def useful_ns(self, row: int, now: int) -> int:
        """What this attempt has done, as run time at full size; less than nothing when resizes cost more."""
        pace, full = self._paces(row)
        return int(self._done[row]) + (now - int(self._since[row])) * pace // full

    def takes_ns(self, row: int, left_ns: int) -> int:
        """How long from the last start or resize to the end, of an attempt with so much to do at full size."""
        pace, full = self._paces(row)
        return -(-max(0, left_ns - int(self._done[row])) * full // pace)

    def _paces(self, row: int) -> tuple[int, int]:
        """(speed now, speed at full size), in hundredths of a worker."""
        least, worth = int(self._least[row]), self.how.efficiency_percent

        def pace(workers: int) -> int:
            return 100 * min(workers, least) + worth * max(0, workers - least)

        return pace(int(self.workers[row])), pace(max(int(self._workload.workers[row]), 1))

    def columns(self, rows: IntArray, now: int) -> dict[str, IntArray]:
        """Of `RunningJobs`."""
        return {
            "least_tasks": self._least[rows],
            "most_tasks": self._workload.workers[rows],
            "grown_ns": now - self.grown[rows],
            "shrunk_ns": now - self.shrunk[rows],
        }

    def short(self, rows: IntArray) -> IntArray:
        """Those of the running `rows` that want more workers."""
        return rows[self.workers[rows] < self._workload.workers[rows]]

    def next_ns(self, rows: IntArray, started_ns: IntArray, now: int) -> int | None:
        """When the first of the running `rows` that is not at full size may take more, if that is later than now."""
        rows = self.short(rows)
        last = np.maximum(started_ns[rows], np.maximum(self.grown[rows], self.shrunk[rows]))
        due = last + self.how.settle_ns
        later = due[due > now]
        return int(later.min()) if len(later) else None
