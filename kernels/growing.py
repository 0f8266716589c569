"""Growing running gangs into what is left (numba): one worker at a time, to the team whose turn it is.

The order among teams is that of `kernels.sharing` (least for its weight, from the root of the tree down); within a team
the gang that has the smallest part of the workers it wants goes first, then the one that is listed first. Room only
shrinks while gangs grow, so a gang that found no place is done.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moorage.kernels.gang import Pool, models_with
from moorage.kernels.jit import inner, outer
from moorage.kernels.placing import find, find_among, take
from moorage.kernels.sharing import next_team
from moorage.kernels.teams import Teams, charge, hold, in_quota, room

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

WHOLE = 1000
PARTS = 2**20
"""The whole of what a gang wants."""


class Growing(NamedTuple):
    """E gangs that may take more workers, of T teams; M GPU model columns, N nodes."""

    team: I64
    klass: I64
    """Of one more worker."""
    tasks: I64
    """That each has; kept current."""
    most: I64
    keeps: Bool
    """Never gives anything back: it stays within its team's own quota."""
    done: Bool
    """Takes no more; kept current."""
    here: Bool
    """[N] may be grown onto."""
    anywhere: bool
    """All of them."""
    first: I64
    """[T] scratch"""
    key: I64
    """[E] scratch"""
    nothing: I64
    """[E] zeros"""
    within: I64
    """[M] scratch"""
    own: I64
    """[M] scratch"""


@inner
def _first_of_teams(growing: Growing) -> None:
    """Of each team the gang that is furthest from what it wants."""
    growing.first[:] = -1
    for e in range(len(growing.team)):
        if growing.done[e]:
            continue
        growing.key[e] = growing.tasks[e] * PARTS // growing.most[e]
        other = growing.first[growing.team[e]]
        if other < 0 or growing.key[e] < growing.key[other]:
            growing.first[growing.team[e]] = e


@outer
def grow(
    growing: Growing, pool: Pool, teams: Teams, borrow: bool, gang: I64, node: I64, mask: I64, mem: I64
) -> int:
    """Give workers away until nobody can take one, or the columns are full; how many. Worker i goes to row `gang[i]` of
    `growing`, on `node[i]`, `mask[i]`, `mem[i]`. Without `borrow` teams stay within their own quota."""
    classes, nodes, within = pool.classes, pool.nodes, growing.within
    count = 0
    while count < len(gang):
        _first_of_teams(growing)
        team = next_team(teams, growing.first, growing.nothing, growing.nothing, growing.nothing)
        if team < 0:
            break
        e = growing.first[team]
        c = growing.klass[e]
        milli = classes.milli[c]
        room(teams, team, within)
        if not borrow or growing.keeps[e]:
            in_quota(teams, team, growing.own)
            for m in range(len(within)):
                within[m] = min(within[m], growing.own[m])
        n = -1
        if within[0] >= milli:
            models = models_with(within, milli)
            if growing.anywhere:
                n, devices = find(nodes, classes, pool.scores, pool.scoring, c, models, pool.raylet)
            else:
                n, devices = find_among(
                    nodes, classes, pool.scores, pool.scoring, c, models, pool.raylet, growing.here
                )
        if n < 0:
            growing.done[e] = True
            continue
        mem[count] = take(nodes, classes, pool.scores, c, n, devices, -1)
        gpu_mib = mem[count] * max(milli // WHOLE, np.int64(1))
        hold(teams, team, classes.cpu[c], classes.mib[c], gpu_mib)
        charge(teams, team, 0, milli)
        if nodes.model[n] > 0:
            charge(teams, team, nodes.model[n], milli)
        gang[count], node[count], mask[count] = e, n, devices
        count += 1
        growing.tasks[e] += 1
        growing.done[e] = growing.tasks[e] >= growing.most[e]
    return count
