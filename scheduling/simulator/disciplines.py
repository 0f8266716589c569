"""Queueing disciplines: in which order jobs are tried, and which running jobs may be pushed out for them.

A discipline ranks the waiting and the running jobs by one index, lower first, from what may be known at the time:
never a duration before its job has ended, but for the oracle, which is there to be compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from moorage.scheduling.model import UNLIMITED, WHOLE, IntArray
from moorage.scheduling.simulator.model import Workload

SECOND = 10**9
MINUTE, HOUR = 60 * SECOND, 3600 * SECOND


@dataclass(slots=True)
class Jobs:
    """What is known of the jobs at `now_ns`. Arrays are int64[n] by the workload's rows."""

    workload: Workload
    gpus: IntArray
    """Devices of the whole job, at least 1."""
    attained_ns: IntArray
    """Run time of earlier attempts."""
    started_ns: IntArray
    """Of the present attempt; -1 = does not run."""
    queued_ns: IntArray
    """Since when it waits."""
    now_ns: int = 0
    ended: list[int] = field(default_factory=list)
    """Rows of the jobs that ended, in order."""

    @classmethod
    def of(cls, workload: Workload) -> Jobs:
        count = len(workload)
        return cls(
            workload=workload,
            gpus=np.maximum(-(-workload.gpus() // WHOLE), 1),
            attained_ns=np.zeros(count, np.int64),
            started_ns=np.full(count, -1, np.int64),
            queued_ns=np.zeros(count, np.int64),
        )

    def end(self, row: int) -> None:
        self.ended.append(row)

    def service_ns(self, rows: IntArray) -> IntArray:
        """Run time so far, the present attempt included."""
        started = self.started_ns[rows]
        return np.asarray(self.attained_ns[rows] + np.where(started >= 0, self.now_ns - started, 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """The indexes of one decision."""

    waiting: IntArray | None = None
    """None = in order of submission."""
    running: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    fixed: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    """1 = may not be asked to leave."""
    preempts: bool = False
    margin: int = 0


Rank = Callable[[Jobs, IntArray, IntArray], Ranks]
"""(jobs, waiting rows, running rows) -> ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Discipline:
    text: str
    rank: Rank
    hold_after_ns: int = UNLIMITED
    tick_ns: int = 0
    """How often to decide again while jobs wait, though nothing arrived or ended; 0 = not."""


def by_submission(jobs: Jobs, waiting: IntArray, running: IntArray) -> Ranks:
    return Ranks()


def shortest_remaining(jobs: Jobs, waiting: IntArray, running: IntArray) -> Ranks:
    """Least GPU-time still to run, as an oracle knows it."""

    def left(rows: IntArray) -> IntArray:
        return np.asarray(
            (jobs.workload.duration_ns[rows] - jobs.service_ns(rows)) // SECOND * jobs.gpus[rows]
        )

    return Ranks(
        waiting=left(waiting),
        running=left(running),
        fixed=np.zeros(len(running), np.int64),
        preempts=True,
        margin=60,
    )


def least_attained(jobs: Jobs, waiting: IntArray, running: IntArray) -> Ranks:
    """Least GPU-time had, in levels that double, so that jobs of one level run to its end (Tiresias, NSDI 2019)."""

    def level(rows: IntArray) -> IntArray:
        had = jobs.service_ns(rows) / HOUR * jobs.gpus[rows]
        return np.asarray(np.floor(np.log2(np.maximum(had, 0.125)) + 3), np.int64)

    return Ranks(
        waiting=level(waiting),
        running=level(running),
        fixed=np.zeros(len(running), np.int64),
        preempts=True,
    )


DISCIPLINES: dict[str, Discipline] = {
    "las": Discipline(
        text="least attained service, preemptive: jobs that had little GPU-time go first (Tiresias, NSDI'19)",
        rank=least_attained,
        tick_ns=10 * MINUTE,
    ),
    "fifo": Discipline(
        text="strictly in order of submission: nobody overtakes", rank=by_submission, hold_after_ns=0
    ),
    "backfill": Discipline(text="in order of submission, whatever fits may overtake", rank=by_submission),
    "srtf-oracle": Discipline(
        text="shortest remaining GPU-time, told by an oracle: a bound to compare with, nothing to run",
        rank=shortest_remaining,
        tick_ns=10 * MINUTE,
    ),
}
