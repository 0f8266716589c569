"""Who may be asked to leave for a waiting gang, and who of them need not (numba): what-if on the working copy.

Victims are tried in a given order, the least harm first (`kernels.asking`), and those found not to be needed are put
back. A victim is a piece of a job: a worker that an elastic gang can do without, or all the rest of it. A job may push
out another for one of three reasons, each strictly ordered, so that two jobs never push each other out in turn:

- reclaim: it fits its team's own quota, and the other holds what its team borrows (quota lent is taken back);
- priority: the other has a lower priority, in the same team or among those that borrow;
- index: equal priority, and a policy's index puts the other behind by more than a margin (time slicing).

Who started too short a time ago leaves for none of them, but for a reclaim where the policy says so.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moorage.kernels.domains import within_cap
from moorage.kernels.gang import place_within, undo
from moorage.kernels.jit import inner
from moorage.kernels.placing import take
from moorage.kernels.pool import Pool
from moorage.kernels.teams import Teams, charge, hold, room

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

WHOLE = 1000
TRIES, MANY = 64, 256
"""How many who were asked are tried back with the asker placed anew, and gangs from which on nobody is."""


class Running(NamedTuple):
    """V pieces of jobs that hold leases. Their tasks are rows `first[v]..first[v+1]` of the task columns. A job is one
    piece, or its minimum and then, each a piece, the workers above it: these leave from the last one on."""

    team: I64
    priority: I64
    key: I64
    """Lower goes first; see `Rows.key`."""
    fixed: Bool
    """May not be asked to leave: not preemptible."""
    young: Bool
    """Started too short a time ago: leaves for an asker that is `hasty`, and then for a reclaim alone."""
    extra: Bool
    """A worker above the minimum of the gang whose pieces come right before."""
    taken: Bool
    """Asked to leave by this plan (an output)."""
    order: I64
    """Rows in the order in which they are tried: least harm first."""
    asked: I64
    """Scratch, as the next two."""
    may: Bool
    """Might be asked when nobody had been."""
    given: I64
    """Of a gang, at its first piece: the most that was asked of it at once."""
    milli: I64
    first: I64
    node: I64
    mask: I64
    klass: I64


class Asker(NamedTuple):
    """The waiting gang that wants room."""

    team: int
    priority: int
    key: int
    """Its index; `key` of a victim must be beyond it."""
    margin: int
    entitled: bool
    """Fits its team's own quota."""
    hasty: bool
    """Takes lent quota back from the young too."""
    head: int
    worker: int
    least: int
    milli: int
    """Milli-GPU of the smallest gang."""


@inner
def move(running: Running, v: int, sign: int, pool: Pool, teams: Teams) -> None:
    """Give back (+1) or take again (-1) all that a running job holds."""
    nodes, classes = pool.nodes, pool.classes
    for t in range(running.first[v], running.first[v + 1]):
        c, n = running.klass[t], running.node[t]
        mem = take(nodes, classes, pool.scores, c, n, running.mask[t], sign)
        gpu_mib = mem * max(classes.milli[c] // WHOLE, np.int64(1))
        hold(teams, running.team[v], -sign * classes.cpu[c], -sign * classes.mib[c], -sign * gpu_mib)
        if classes.milli[c] > 0:
            charge(teams, running.team[v], 0, -sign * classes.milli[c])
            if nodes.model[n] > 0:
                charge(teams, running.team[v], nodes.model[n], -sign * classes.milli[c])
    running.taken[v] = sign > 0


@inner
def may_push(asker: Asker, running: Running, v: int, teams: Teams) -> bool:
    """Whether the asker may push this job out now; see the module for the three reasons."""
    if running.fixed[v] or running.taken[v] or running.milli[v] == 0:
        return False
    team = running.team[v]
    borrows = teams.counted[0] > 0 and teams.used[team, 0] > teams.own[team, 0]
    if asker.entitled and team != asker.team and borrows:
        return asker.hasty or not running.young[v]
    if running.young[v]:
        return False
    same_pot = team == asker.team or teams.counted[0] == 0 or (borrows and not asker.entitled)
    if not same_pot:
        return False
    if running.priority[v] != asker.priority:
        return running.priority[v] < asker.priority
    return running.key[v] - asker.margin > asker.key


@inner
def last(running: Running, v: int) -> bool:
    """Whether nothing of its gang that comes after it stays."""
    after = v + 1
    return after == len(running.team) or not running.extra[after] or running.taken[after]


@inner
def _fits_back(running: Running, v: int, pool: Pool) -> bool:
    """Whether all tasks of a job that was asked to leave still have their places. Tasks of one job on one device are
    counted one by one: whether they fit together is seen after the `move`."""
    nodes, classes = pool.nodes, pool.classes
    for t in range(running.first[v], running.first[v + 1]):
        c, n, mask = running.klass[t], running.node[t], running.mask[t]
        if nodes.cpu_free[n] < classes.cpu[c] or nodes.mib_free[n] < classes.mib[c]:
            return False
        each = min(classes.milli[c], np.int64(WHOLE))
        for d in range(nodes.milli_free.shape[1]):
            if mask >> d & 1 and nodes.milli_free[n, d] < each:
                return False
    return True


@inner
def _sound(running: Running, v: int, pool: Pool) -> bool:
    """After a job was put back: nothing it touches is over-full, and no power cap is exceeded around it."""
    nodes = pool.nodes
    for t in range(running.first[v], running.first[v + 1]):
        n = running.node[t]
        if nodes.cpu_free[n] < 0 or nodes.mib_free[n] < 0:
            return False
        for d in range(nodes.milli_free.shape[1]):
            if running.mask[t] >> d & 1 and (nodes.milli_free[n, d] < 0 or nodes.mem_free[n, d] < 0):
                return False
        if not within_cap(pool, n):
            return False
    return True


@inner
def _return(running: Running, v: int, pool: Pool, teams: Teams, within: I64) -> bool:
    """Let a piece stay after all, if places and quotas allow."""
    room(teams, running.team[v], within)
    least = within[0]
    for m in range(1, len(within)):
        least = min(least, within[m])
    if least < running.milli[v] or not _fits_back(running, v, pool):
        return False
    move(running, v, -1, pool, teams)
    if _sound(running, v, pool):
        return True
    move(running, v, 1, pool, teams)
    return False


class Place(NamedTuple):
    """Where the asker stands once it is placed: columns with room for its tasks. The rest is scratch."""

    node: I64
    mask: I64
    mem: I64
    kept: I64
    """[2, tasks]"""
    within: I64
    """[M], as the next one."""
    left: I64


@inner
def place(asker: Asker, pool: Pool, teams: Teams, at: Place) -> int:
    """The asker's workers that were placed; -1: it does not fit, and nothing changed."""
    room(teams, asker.team, at.within)
    head, worker, least = asker.head, asker.worker, asker.least
    return int(place_within(pool, head, worker, least, least, at.within, at.left, at.node, at.mask, at.mem))


@inner
def _put_back(asker: Asker, count: int, running: Running, pool: Pool, teams: Teams, at: Place) -> None:
    """Put back every piece that was asked for nothing, the dearest first, as far as places and quotas allow, those of
    the asker among them: a limit of its team may bind where places do not."""
    heads, within, need = 1 if asker.head >= 0 else 0, at.within, at.left
    need[:] = 0
    for t in range(heads + asker.least):
        milli = pool.classes.milli[asker.head if t < heads else asker.worker]
        need[0] += milli
        if pool.nodes.model[at.node[t]] > 0:
            need[pool.nodes.model[at.node[t]]] += milli
    for i in range(count - 1, -1, -1):
        v = running.asked[i]
        if running.extra[v] and running.taken[v - 1]:
            continue
        if _return(running, v, pool, teams, within):
            room(teams, asker.team, within)
            for m in range(len(need)):
                if need[m] > 0 and within[m] < need[m]:
                    move(running, v, 1, pool, teams)
                    break


@inner
def _makes_do_without(v: int, asker: Asker, running: Running, pool: Pool, teams: Teams, at: Place) -> bool:
    """Let a piece stay and place the asker, who has a place, in another one. False: all is as it was.

    The asker's place is kept and taken again: to search for it anew may find none, since a search takes the best node
    for each task in turn, and others have stayed since.
    """
    head, worker, least = asker.head, asker.worker, asker.least
    heads = 1 if head >= 0 else 0
    for t in range(heads + least):
        at.kept[0, t], at.kept[1, t] = at.node[t], at.mask[t]
    undo(pool, head, worker, least, at.node, at.mask)
    if _return(running, v, pool, teams, at.within):
        if place(asker, pool, teams, at) >= 0:
            return True
        move(running, v, 1, pool, teams)
    for t in range(heads + least):
        n, mask = at.kept[0, t], at.kept[1, t]
        c = head if t < heads else worker
        at.node[t], at.mask[t] = n, mask
        at.mem[t] = take(pool.nodes, pool.classes, pool.scores, c, n, mask, -1)
    return False


@inner
def settle(asker: Asker, count: int, free: int, running: Running, pool: Pool, teams: Teams, at: Place) -> int:
    """Of the first `count` in `asked`, who is not needed stays: first whoever's place the asker left free, then whoever
    lets it fit in another place. How many leave; they come first in `asked` from then on.

    `free` is the milli-GPU that were free when nobody had been asked.
    """
    asked = running.asked
    _put_back(asker, count, running, pool, teams, at)
    for i in range(count):
        if running.taken[asked[i]]:
            free += running.milli[asked[i]]
    tries = TRIES if asker.least < MANY else 0
    for i in range(count - 1, -1, -1):
        v = asked[i]
        may_stay = running.taken[v] and not (running.extra[v] and running.taken[v - 1])
        if tries > 0 and may_stay and running.milli[v] <= free - asker.milli:
            tries -= 1
            if _makes_do_without(v, asker, running, pool, teams, at):
                free -= running.milli[v]
    leave = 0
    for i in range(count):
        if running.taken[asked[i]]:
            asked[leave] = asked[i]
            leave += 1
    return leave


@inner
def forget(asker: Asker, count: int, running: Running, pool: Pool, teams: Teams, at: Place) -> None:
    """As if those in `asked` had not been asked, nor the asker placed."""
    undo(pool, asker.head, asker.worker, asker.least, at.node, at.mask)
    for i in range(count - 1, -1, -1):
        move(running, running.asked[i], -1, pool, teams)
