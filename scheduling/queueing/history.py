"""How long jobs last, learned while the pool runs: ends and exposure by age, per group, coarse groups behind fine ones.

Ages are cut into bins, each twice as long as the one before. A group counts, per bin, the jobs that ended in it and
the time that all its jobs spent in it. Their quotient is the rate of ending at that age: the occurrence/exposure
estimate of a piecewise exponential lifetime (Holford, Biometrics 1976). Jobs that still run add exposure and no end,
so censoring needs no special case, and nothing but the past is ever counted.

Four levels: all jobs; a gang size; a team's gangs of that size; the same with a short memory. A level's rate is drawn
towards the one behind it with the weight of PRIOR ends, so a group without a past is its parent.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moorage.scheduling.queueing.jit import compiled

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

BINS = 18
FIRST_NS = 60 * 10**9
"""End of the first bin; bin k > 0 is [FIRST_NS * 2^(k-1), FIRST_NS * 2^k), the last one open (45 days and more)."""
SIZES = 6
"""Gangs by milli-GPU in all: below one GPU, 1, 2, up to 4, up to 8, more."""
ONE = 2**20
"""One end. Fixed point, so that the short memory can fade by integers."""
MEMORY = 72
"""An end leaves 1 - 1/72 of the short memory: half of it after 50 ends."""
PRIOR = 1
"""Ends by which a bin of a group leans on the same bin of its parent."""
LEVELS = 4
_MS = 10**6


class History(NamedTuple):
    """State of the estimate, part of what a snapshot remembers. G = 1 + SIZES + 2 * teams * SIZES groups.

    Mutated in place by `ran`; `copy` before a what-if. Equal states give equal keys.
    """

    ended: I64
    """[G, BINS] ends in units of 1/ONE."""
    exposed: I64
    """[G, BINS] milliseconds."""


def empty(teams: int) -> History:
    """Nothing seen yet."""
    groups = 1 + SIZES + 2 * teams * SIZES
    return History(np.zeros((groups, BINS), np.int64), np.zeros((groups, BINS), np.int64))


def copy(history: History) -> History:
    return History(history.ended.copy(), history.exposed.copy())


def widened(history: History, teams: int) -> History:
    """The same with room for more teams, rows of known teams unchanged. Raises ValueError for fewer."""
    known = (len(history.ended) - 1 - SIZES) // (2 * SIZES)
    if teams < known:
        raise ValueError(f"history of {known} teams cannot shrink to {teams}")
    # The short memories follow all long ones per team, so new teams are rows at the end.
    wide = empty(teams)
    wide.ended[: len(history.ended)] = history.ended
    wide.exposed[: len(history.exposed)] = history.exposed
    return wide


@compiled
def size_of(milli: int) -> int:
    """Gang size class of a job by its milli-GPU in all."""
    if milli < 1000:
        return 0
    if milli <= 1000:
        return 1
    if milli <= 2000:
        return 2
    if milli <= 4000:
        return 3
    return 4 if milli <= 8000 else 5


@compiled
def group_of(team: int, milli: int, level: int) -> int:
    """Row of the group at a level: 0 all, 1 gang size, 2 (team, size), 3 the same with a short memory."""
    size = size_of(milli)
    if level == 0:
        return 0
    if level == 1:
        return 1 + size
    return 1 + SIZES + (2 * team + level - 2) * SIZES + size


@compiled
def bin_of(age_ns: int) -> int:
    """Bin of an age; below 0 counts as 0."""
    k = 0
    edge = FIRST_NS
    while k < BINS - 1 and age_ns >= edge:
        edge *= 2
        k += 1
    return k


@compiled
def ran(history: History, team: int, milli: int, from_ns: int, to_ns: int, ended: bool) -> None:
    """Fold one event: a job's run time grew from `from_ns` to `to_ns` in all, and it `ended` there or goes on.

    Call it when a job stops, and for running jobs now and then. Only completed work ends a job: a stop by its owner
    or a preemption is exposure alone. Time never counted twice is the caller's care (it keeps the last `to_ns`).
    """
    if ended:
        fading = group_of(team, milli, 3)
        for b in range(BINS):
            history.ended[fading, b] -= history.ended[fading, b] // MEMORY
            history.exposed[fading, b] -= history.exposed[fading, b] // MEMORY
    k = bin_of(from_ns)
    at = max(from_ns, 0)
    while True:
        edge = FIRST_NS << k
        upto = to_ns if k == BINS - 1 else min(to_ns, edge)
        if upto > at:
            for level in range(LEVELS):
                history.exposed[group_of(team, milli, level), k] += upto // _MS - at // _MS
            at = upto
        if k == BINS - 1 or to_ns <= edge:
            break
        k += 1
    if ended:
        # An end exactly at an edge belongs to the bin it has just lived through.
        last = bin_of(max(to_ns - 1, 0))
        for level in range(LEVELS):
            history.ended[group_of(team, milli, level), last] += ONE


@compiled
def all_ran(history: History, team: I64, milli: I64, from_ns: I64, to_ns: I64, ended: I64) -> None:
    """`ran` for [R] rows, in order."""
    for row in range(len(team)):
        ran(history, team[row], milli[row], from_ns[row], to_ns[row], ended[row] != 0)


@compiled
def rates(history: History, team: int, milli: int) -> F64:
    """[BINS] ends per second of run time at each age, for the finest group, each level leaning on the one behind.

    Before anything is seen, a job that has run for a time t is expected to run about t more: the heavy tail that
    training jobs show everywhere.
    """
    rate = np.empty(BINS, np.float64)
    for k in range(BINS):
        rate[k] = 1e9 / (FIRST_NS * 2.0**k)
    for level in range(LEVELS):
        group = group_of(team, milli, level)
        for k in range(BINS):
            ends = history.ended[group, k] / ONE
            seconds = history.exposed[group, k] / 1000.0
            rate[k] = (ends + PRIOR) / (seconds + PRIOR / rate[k])
    return rate
