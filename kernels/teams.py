"""What teams hold and may take, kept current while a decision is made (numba). `scheduling.quota` says the rule.

Figures are milli-GPU by team and GPU model column; column 0 counts all models together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moorage.kernels.jit import inner, outer

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

UNLIMITED = 2**62


class Shares(NamedTuple):
    """What the order among teams needs beside `Teams`; `kernels.sharing` says the rule. T is 0 where nobody asks for
    that order: all jobs go by submission."""

    whole: int
    """The level of the whole pool, at most 2^31."""
    scale: int
    """Level per milli-GPU; 0 where there are no GPUs."""
    rest: I64
    """[3] the pool's CPU, memory and GPU memory, less than 2^30 after the shift; 0 = does not count."""
    shift: I64
    """[3] bits by which amounts of them are shifted to the right."""
    weight: I64
    """[T] 1..2^20"""
    due: I64
    """[2, T] milli-GPU that come off what is held: the quota of the team's own jobs, and of its subtree, less what they
    used beyond it in the past."""
    held: I64
    """[2, T, 3] milli-CPU, MiB and GPU MiB of the team's own jobs, and of its subtree. GPUs are in `Teams`."""
    level: I64
    """[2, T] of rows that are not `stale`."""
    stale: Bool
    """[T] what the team, or one below it, holds has changed since its level was taken."""
    best: I64
    """[T + 1] scratch: of each subtree the team that is next, -1 = nobody waits; the last entry is the whole tree's."""
    at: I64
    """[T + 1] scratch: the level it competes with there."""
    heavy: I64
    """[T + 1] scratch: the weight."""


class Teams(NamedTuple):
    """T teams, M GPU model columns (0 counts all). `used`, `total`, `idle`, `over` are kept current by `charge`."""

    parent: I64
    """[T] -1 at the root; parents come before children."""
    free: Bool
    """[T] no quota, limit or bound applies: nothing to look up."""
    weight: I64
    own: I64
    """[T, M] quota not handed on to children."""
    lend: I64
    borrow: I64
    limit: I64
    used: I64
    """[T, M] held by the team's own jobs."""
    total: I64
    """[T, M] held by the team and all below it."""
    idle: I64
    """[M] own quota not in use that may be lent, of all teams."""
    over: I64
    """[M] held beyond own quota, of all teams."""
    spare: I64
    """[M] capacity that no quota claims."""
    counted: I64
    """[M] 1 where any team has a quota."""
    shares: Shares


@outer
def add_up(parent: I64, total: I64) -> None:
    """Make of `total[T, M]`, by team, the sums over each team and all below it."""
    for row in range(len(parent) - 1, -1, -1):
        if parent[row] >= 0:
            for m in range(total.shape[1]):
                total[parent[row], m] += total[row, m]


@inner
def _lendable(teams: Teams, team: int, m: int) -> np.int64:
    spare = teams.own[team, m] - teams.used[team, m]
    return min(max(spare, np.int64(0)), teams.lend[team, m])


@inner
def charge(teams: Teams, team: int, m: int, milli: np.int64) -> None:
    """Book `milli` more (or less) of column `m` on a team and all above it."""
    teams.idle[m] -= _lendable(teams, team, m)
    teams.over[m] -= max(teams.used[team, m] - teams.own[team, m], np.int64(0))
    teams.used[team, m] += milli
    teams.idle[m] += _lendable(teams, team, m)
    teams.over[m] += max(teams.used[team, m] - teams.own[team, m], np.int64(0))
    row, shared = team, m == 0 and len(teams.shares.stale) > 0
    while row >= 0:
        teams.total[row, m] += milli
        if shared:
            teams.shares.stale[row] = True
        row = teams.parent[row]


@inner
def hold(teams: Teams, team: int, cpu: np.int64, mib: np.int64, gpu_mib: np.int64) -> None:
    """Book more (or less) of what a team holds beside GPUs, where the order among teams asks for it."""
    shares = teams.shares
    if len(shares.weight) == 0:
        return
    for k in range(2):
        row = team
        while row >= 0:
            shares.held[k, row, 0] += cpu
            shares.held[k, row, 1] += mib
            shares.held[k, row, 2] += gpu_mib
            shares.stale[row] = True
            row = teams.parent[row] if k else -1


@inner
def in_quota(teams: Teams, team: int, out: I64) -> None:
    """[M] what is left of the team's own quota; UNLIMITED where nothing is guaranteed to anybody."""
    for m in range(len(out)):
        if teams.counted[m] == 0:
            out[m] = UNLIMITED
        else:
            out[m] = max(teams.own[team, m] - teams.used[team, m], np.int64(0))


@inner
def limits(teams: Teams, team: int, out: I64) -> None:
    """[M] what the limits of the team and of every team above it leave."""
    out[:] = UNLIMITED
    row = team
    while row >= 0:
        for m in range(len(out)):
            out[m] = min(out[m], teams.limit[row, m] - teams.total[row, m])
        row = teams.parent[row]
    for m in range(len(out)):
        out[m] = max(out[m], np.int64(0))


@outer
def room(teams: Teams, team: int, out: I64) -> None:
    """[M] milli-GPU the team may still take: own quota and what is lent, within its bounds and limits."""
    limits(teams, team, out)
    for m in range(len(out)):
        if teams.counted[m] == 0:
            continue
        balance = teams.own[team, m] - teams.used[team, m]
        lent = teams.idle[m] - _lendable(teams, team, m) + teams.spare[m]
        lent -= teams.over[m] - max(-balance, np.int64(0))
        capped = balance + min(lent, teams.borrow[team, m])
        out[m] = min(out[m], max(max(balance, capped), np.int64(0)))


@inner
def narrower(a: I64, b: I64) -> bool:
    found = False
    for m in range(len(a)):
        found |= a[m] < b[m]
    return found
