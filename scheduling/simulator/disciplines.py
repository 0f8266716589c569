"""Queueing disciplines: in which order jobs are tried, and which running jobs may be pushed out for them.

A discipline ranks the waiting and the running jobs by one index, lower first, from what may be known at the time:
never a duration before its job has ended, but for the oracle, which is there to be compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from moorage.scheduling.model import UNLIMITED, IntArray, Policy
from moorage.scheduling.queueing import fairshare, history, index, oldest
from moorage.scheduling.simulator.model import Workload

SECOND = 10**9
MINUTE, HOUR = 60 * SECOND, 3600 * SECOND


@dataclass(slots=True)
class Jobs:
    """What is known of the jobs at `now_ns`. Arrays are int64[n] by the workload's rows."""

    workload: Workload
    milli: IntArray
    """Milli-GPU of the whole job."""
    attained_ns: IntArray
    """Run time of earlier attempts, what was lost included."""
    lost_ns: IntArray
    """Run time lost to preemption."""
    started_ns: IntArray
    """Of the present attempt; -1 = does not run."""
    queued_ns: IntArray
    """Since when it waits."""
    waited_ns: IntArray
    """Time queued in earlier stints."""
    ended_ns: IntArray
    """-1 = has not ended."""
    capacity_milli: int
    guarantee: IntArray
    """[T] milli-GPU that each team is owed, for the disciplines that know shares."""
    now_ns: int = 0
    stopped: list[tuple[int, bool]] = field(default_factory=list)
    """(row, whether it ended) of the attempts that stopped since the last decision, in order."""

    @classmethod
    def of(cls, workload: Workload, capacity_milli: int, guarantee: IntArray) -> Jobs:
        count = len(workload)
        return cls(
            workload=workload,
            milli=workload.gpus(),
            attained_ns=np.zeros(count, np.int64),
            lost_ns=np.zeros(count, np.int64),
            started_ns=np.full(count, -1, np.int64),
            queued_ns=np.zeros(count, np.int64),
            waited_ns=np.zeros(count, np.int64),
            ended_ns=np.full(count, -1, np.int64),
            capacity_milli=capacity_milli,
            guarantee=guarantee,
        )

    def ran_ns(self, rows: IntArray) -> IntArray:
        """Run time of the present attempt."""
        started = self.started_ns[rows]
        return np.asarray(np.where(started >= 0, self.now_ns - started, 0))

    def service_ns(self, rows: IntArray) -> IntArray:
        """Run time so far that was of use, the present attempt included."""
        return np.asarray(np.maximum(self.attained_ns[rows] + self.ran_ns(rows) - self.lost_ns[rows], 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """The indexes of one decision."""

    waiting: IntArray | None = None
    """None = in order of submission."""
    running: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    fixed: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    """1 = may not be asked to leave."""
    least_run_ns: int = 0
    """Nobody is asked to leave sooner after a start."""
    movable: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    """1 = may be moved aside at the price of a preemption."""
    preempts: bool = False
    margin: int = 0
    moves: int = 0
    """How many may be moved in one decision."""


Rank = Callable[[Jobs, IntArray, IntArray], Ranks]
"""(jobs, waiting rows, running rows) -> ranks."""

MARGIN = index.DOUBLING
"""A waiting job pushes out one that is behind it by a factor of two: less would be paid for in restarts."""
MOVES = 8
"""In one decision."""
LEAST_RUN_NS = 5 * MINUTE
"""Nobody leaves sooner after a start."""
TICK_NS = 10 * MINUTE
BOUND_NS = 25 * 24 * HOUR
"""Queued for so long in all, a job is overdue."""
SLICE_PERCENT = 80
"""Of the pool, at most, for those who are overdue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Discipline:
    text: str
    begin: Callable[[Jobs], Rank]
    """A fresh rank function for one run: it may remember."""
    hold_after_ns: int = UNLIMITED
    sharing: bool = False
    """Teams share the pool by weight; else jobs go by the index alone, whosever they are."""
    reservations: int = 0
    """The true run times serve as limits, and as many waiting jobs get a reservation (`Policy.reservations`)."""
    shares: bool = False
    """It goes by what each team is guaranteed."""
    half_life_ns: int = 0
    """With `sharing`: what teams used before counts, and is forgotten so fast; 0 = it does not count."""
    tick_ns: int = 0
    """How often to decide again while jobs wait, though nothing arrived or ended; 0 = not."""


def by_submission(jobs: Jobs) -> Rank:
    return lambda jobs, waiting, running: Ranks()


def by_submission_to_the_end(jobs: Jobs) -> Rank:
    """Nobody is pushed out, and who runs is shown to the planner with its end."""

    def rank(jobs: Jobs, waiting: IntArray, running: IntArray) -> Ranks:
        none = np.zeros(len(running), np.int64)
        return Ranks(running=none, fixed=none + 1, movable=none, preempts=True)

    return rank


def shortest_remaining(jobs: Jobs) -> Rank:
    """Least GPU-time still to run, as an oracle knows it."""

    def rank(jobs: Jobs, waiting: IntArray, running: IntArray) -> Ranks:
        def key(rows: IntArray) -> IntArray:
            left = np.maximum(jobs.workload.duration_ns[rows] - jobs.service_ns(rows), 1)
            return index.attained_keys(jobs.milli[rows], left)

        return _pushing(jobs, running, key(waiting), key(running))

    return rank


def least_attained(jobs: Jobs) -> Rank:
    """Least GPU-time had (Tiresias' 2D-LAS, NSDI 2019); a factor of two ahead pushes out."""

    def rank(jobs: Jobs, waiting: IntArray, running: IntArray) -> Ranks:
        def key(rows: IntArray) -> IntArray:
            return index.attained_keys(jobs.milli[rows], jobs.service_ns(rows))

        return _pushing(jobs, running, key(waiting), key(running))

    return rank


class Learned:
    """Gittins' index of what the past taught about a team's gangs of a size; optionally, a slice for the overdue."""

    def __init__(self, jobs: Jobs, bound_ns: int | None) -> None:
        count = len(jobs.workload)
        self._bound_ns = bound_ns
        self._history = history.empty(len(jobs.workload.teams))
        self._keys = index.table(self._history)
        self._told = np.zeros(count, np.int64)
        """Run time of each job that the history knows."""
        self._inside = np.zeros(count, np.bool_)
        self._next_ns = 0

    def __call__(self, jobs: Jobs, waiting: IntArray, running: IntArray) -> Ranks:
        # one that was moved may have ended since: its end tells all of it
        stopped, ended = np.array(list(dict(jobs.stopped).items()), np.int64).reshape(-1, 2).T
        self._tell(jobs, stopped, ended)
        self._inside[stopped[ended == 1]] = False
        if jobs.now_ns >= self._next_ns:
            self._next_ns = jobs.now_ns + TICK_NS
            self._tell(jobs, running, np.zeros(len(running), np.int64))
            self._keys = index.table(self._history)
        ranks = _pushing(jobs, running, self._key(jobs, waiting), self._key(jobs, running))
        return ranks if self._bound_ns is None else self._with_overdue(jobs, waiting, running, ranks)

    def _tell(self, jobs: Jobs, rows: IntArray, ended: IntArray) -> None:
        had, team = jobs.service_ns(rows), jobs.workload.team[rows]
        history.all_ran(self._history, team, jobs.milli[rows], self._told[rows], had, ended)
        self._told[rows] = np.maximum(self._told[rows], had)

    def _key(self, jobs: Jobs, rows: IntArray) -> IntArray:
        found: IntArray = index.learned_keys(
            self._keys, jobs.workload.team[rows], jobs.milli[rows], jobs.service_ns(rows)
        )
        return found

    def _with_overdue(self, jobs: Jobs, waiting: IntArray, running: IntArray, ranks: Ranks) -> Ranks:
        rows = np.concatenate((waiting, running))
        runs = np.arange(len(rows)) >= len(waiting)
        queued = jobs.waited_ns[rows] + np.where(runs, 0, jobs.now_ns - jobs.queued_ns[rows])
        inside = oldest.overdue(
            queued,
            jobs.milli[rows],
            self._inside[rows],
            runs,
            rows,
            self._bound_ns or 0,
            jobs.capacity_milli * SLICE_PERCENT // 100,
        )
        self._inside[rows] = inside
        if not inside.any() or ranks.waiting is None:
            return ranks
        key = oldest.keys(np.concatenate((ranks.waiting, ranks.running)), inside, queued)
        return replace(
            ranks,
            waiting=key[: len(waiting)],
            running=key[len(waiting) :],
            fixed=ranks.fixed | inside[len(waiting) :],
        )


class Fair:
    """Least attained service under guarantees: each team is held against a partition of its own, see `fairshare`.

    Entitled rows come before all others, running or waiting. Nobody is kept from leaving for having started a moment
    ago: a small team would else wait for that moment each time it comes back.
    """

    def __init__(self, jobs: Jobs) -> None:
        self._shadow = fairshare.shadow(len(jobs.workload.teams))
        self._seen_ns = -1
        """The shadow partitions have worked until then."""

    def __call__(self, jobs: Jobs, waiting: IntArray, running: IntArray) -> Ranks:
        self._work(jobs, waiting, running)
        rows = np.concatenate((waiting, running))
        key = index.attained_keys(jobs.milli[rows], jobs.service_ns(rows))
        # who runs keeps its claim against who is ahead by less than what would push it out
        ahead = key - np.where(np.arange(len(rows)) < len(waiting), 0, MARGIN)
        team, milli = jobs.workload.team[rows], jobs.milli[rows]
        claim = fairshare.claims(self._shadow, jobs.guarantee)
        entitled = fairshare.entitled(np.lexsort((rows, ahead)), team, milli, claim)
        key = fairshare.keys(key, entitled)
        ranks = _pushing(jobs, running, key[: len(waiting)], key[len(waiting) :])
        return replace(ranks, least_run_ns=0)

    def _work(self, jobs: Jobs, waiting: IntArray, running: IntArray) -> None:
        """What was held and asked for since the last decision, piece by piece between submissions and ends."""
        team, milli, submit = jobs.workload.team, jobs.milli, jobs.workload.submit_ns
        # who left or moved at the last decision had left when this time began
        gone = np.array([row for row, over in jobs.stopped if over], np.int64)
        fresh = submit[waiting] > self._seen_ns
        held, asked = np.zeros((2, len(jobs.guarantee)), np.int64)
        for rows in (running, gone):
            np.add.at(held, team[rows], milli[rows])
        for rows in (running, gone, waiting[~fresh]):
            np.add.at(asked, team[rows], milli[rows])
        changes = [(int(jobs.ended_ns[row]), int(row), -1) for row in gone]
        changes += [(int(submit[row]), int(row), 1) for row in waiting[fresh]]
        for at, row, sign in (*sorted(changes), (jobs.now_ns, -1, 0)):
            seconds = at // SECOND - max(self._seen_ns, 0) // SECOND
            fairshare.advance(self._shadow, seconds, held, asked, jobs.guarantee)
            self._seen_ns = at
            if sign:
                asked[team[row]] += sign * milli[row]
                held[team[row]] += min(sign, 0) * milli[row]


def _pushing(jobs: Jobs, running: IntArray, waiting_key: IntArray, running_key: IntArray) -> Ranks:
    return Ranks(
        waiting=waiting_key,
        running=running_key,
        fixed=np.zeros(len(running), np.int64),
        least_run_ns=LEAST_RUN_NS,
        movable=(jobs.ran_ns(running) >= LEAST_RUN_NS).astype(np.int64),
        preempts=True,
        margin=MARGIN,
        moves=MOVES,
    )


LIVE = "live"
"""The discipline that the control plane's loop runs: what a replay of a pool's own history must use."""

DISCIPLINES: dict[str, Discipline] = {
    "learned": Discipline(
        text="least expected GPU-time to an end, learned from the past (Gittins); 25 days queued are the most",
        begin=lambda jobs: Learned(jobs, BOUND_NS),
        tick_ns=TICK_NS,
    ),
    "learned-unbounded": Discipline(
        text="the same without a bound on waiting",
        begin=lambda jobs: Learned(jobs, None),
        tick_ns=TICK_NS,
    ),
    "las": Discipline(
        text="least attained service: jobs that had little GPU-time go first (Tiresias, NSDI'19)",
        begin=least_attained,
        tick_ns=TICK_NS,
    ),
    "fair": Discipline(
        text="las, each team with its share of the GPU-time guaranteed, as if it had a partition of its own",
        begin=Fair,
        shares=True,
        tick_ns=TICK_NS,
    ),
    "fifo": Discipline(
        text="strictly in order of submission: nobody overtakes", begin=by_submission, hold_after_ns=0
    ),
    "backfill": Discipline(text="in order of submission, whatever fits may overtake", begin=by_submission),
    "easy-oracle": Discipline(
        text="backfill that does not delay the first in line (EASY), told the true run times by an oracle",
        begin=by_submission_to_the_end,
        reservations=1,
    ),
    "conservative-oracle": Discipline(
        text="backfill that delays nobody in line, of the first 100, told the true run times by an oracle",
        begin=by_submission_to_the_end,
        reservations=100,
    ),
    "srtf-oracle": Discipline(
        text="shortest remaining GPU-time, told by an oracle: a bound to compare with, nothing to run",
        begin=shortest_remaining,
        tick_ns=TICK_NS,
    ),
    "turns": Discipline(
        text="teams in turns by share for weight; what a team used before counts too, half after a week",
        begin=by_submission,
        hold_after_ns=Policy().hold_after_ns,
        sharing=True,
        half_life_ns=7 * 24 * HOUR,
    ),
    LIVE: Discipline(
        text="what a live pool does: by priority, shares of teams, submission; ten minutes' wait is not overtaken",
        begin=by_submission,
        hold_after_ns=Policy().hold_after_ns,
        sharing=Policy().sharing,
    ),
}
