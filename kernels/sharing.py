"""Whose turn it is: the team that has least for its weight, compared from the root of the tree down (numba).

Progressive filling by dominant shares (DRF: Ghodsi et al., NSDI 2011) over a tree (Bhattacharya et al., "Hierarchical
Scheduling for Diverse Datacenter Workloads", SoCC 2013, without its rescaling: what a team that is blocked holds counts
in full). A team's level is the largest part it holds of any one resource of the pool, less the part that is its quota,
and more by what it used beyond that in the past, where the policy says so.
Among the children of each team, whose own jobs compete beside them, the one with the least level for its weight goes.

Levels are integers, exact in milli-GPU, and weights divide by cross-multiplication: equal teams tie, and then the
earliest submission goes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moorage.kernels.jit import inner
from moorage.kernels.teams import Shares, Teams

I64 = npt.NDArray[np.int64]

MOST_WEIGHT = 2**20
OWN, ALL = 0, 1
"""What a team's own jobs have; what it and all teams below it have."""


@inner
def _level(shares: Shares, k: int, t: int, milli: np.int64) -> np.int64:
    """The dominant share beyond quota, of a team (OWN) or its subtree (ALL) that holds `milli`."""
    whole, scale = shares.whole, shares.scale
    due = min(shares.due[k, t] * scale, 2 * whole)
    most = min(milli * scale, 2 * whole) - due
    for r in range(len(shares.rest)):
        there = shares.rest[r]
        if there > 0:
            part = min(shares.held[k, t, r] >> shares.shift[r], 2 * there)
            most = max(most, part * whole // there - due)
    return most


@inner
def refresh(teams: Teams) -> None:
    """Bring the levels of all stale rows up to date."""
    shares = teams.shares
    for t in range(len(shares.weight)):
        if shares.stale[t]:
            shares.stale[t] = False
            shares.level[OWN, t] = _level(shares, OWN, t, teams.used[t, 0])
            shares.level[ALL, t] = _level(shares, ALL, t, teams.total[t, 0])


@inner
def at_its_share(teams: Teams, t: int) -> bool:
    """Whether a team's own jobs hold their quota's part of some resource, or more: the rest they borrow."""
    shares = teams.shares
    return len(shares.weight) > 0 and _level(shares, OWN, t, teams.used[t, 0]) >= 0


@inner
def _before(
    level: np.int64,
    weight: np.int64,
    row: int,
    team: int,
    other_level: np.int64,
    other_weight: np.int64,
    other_row: int,
    other_team: int,
    priority: I64,
    key: I64,
    submitted_ns: I64,
) -> bool:
    """Highest priority first, then least level for its weight, lowest index, earliest submission, lowest team row."""
    if priority[row] != priority[other_row]:
        return bool(priority[row] > priority[other_row])
    here, there = level * other_weight, other_level * weight
    if here != there:
        return bool(here < there)
    if key[row] != key[other_row]:
        return bool(key[row] < key[other_row])
    if submitted_ns[row] != submitted_ns[other_row]:
        return bool(submitted_ns[row] < submitted_ns[other_row])
    return team < other_team


@inner
def next_team(teams: Teams, first: I64, priority: I64, key: I64, submitted_ns: I64) -> int:
    """The team whose first job is tried next, -1 when none waits. `first[T]`: that job's row, -1 = none; the other
    columns are by row. One pass from the leaves up: each subtree sends its best, the root's best has the turn."""
    shares, count = teams.shares, len(teams.shares.weight)
    if count == 0:
        return -1
    refresh(teams)
    best, at, heavy = shares.best, shares.at, shares.heavy
    for t in range(count):
        best[t] = t if first[t] >= 0 else -1
        at[t], heavy[t] = shares.level[OWN, t], shares.weight[t]
    best[count] = -1
    for t in range(count - 1, -1, -1):
        team = best[t]
        if team < 0:
            continue
        up = teams.parent[t] if teams.parent[t] >= 0 else count
        level, weight, other = shares.level[ALL, t], shares.weight[t], best[up]
        if other < 0 or _before(
            level,
            weight,
            first[team],
            team,
            at[up],
            heavy[up],
            first[other],
            other,
            priority,
            key,
            submitted_ns,
        ):
            best[up], at[up], heavy[up] = team, level, weight
    return int(best[count])
