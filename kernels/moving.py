"""Making a node by moving small jobs aside (numba): where enough is free, but nowhere together.

A task that wants several whole devices of one node finds them scattered. Of the nodes that lack least, one is emptied
so far as needed: residents of a single task each are placed into holes elsewhere, on nodes of the same GPU model, and
the task takes their place. All of it on the working copy; when it does not work out, everything is as it was.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moorage.kernels.gang import Pool
from moorage.kernels.jit import inner, outer
from moorage.kernels.placing import find_among, take
from moorage.kernels.preemption import Running

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

WHOLE = 1000
TRIES = 8
"""Nodes that are tried for one task."""


class Moves(NamedTuple):
    """Who may move, who moved, and scratch. V running jobs, N nodes."""

    may: Bool
    """[V] may be moved: stops and starts again elsewhere."""
    moved: Bool
    """[V] an output: its place in `Running` is the new one."""
    budget: I64
    """[1] how many moves this plan may still make."""
    old_node: I64
    """[V] scratch"""
    old_mask: I64
    """[V] scratch"""
    elsewhere: Bool
    """[N] scratch, all true"""
    here: Bool
    """[N] scratch, all false"""
    tried: Bool
    """[N] scratch"""


@inner
def idle_on(pool: Pool, n: int) -> int:
    """Wholly free devices of a node."""
    idle = 0
    for d in range(pool.nodes.devices[n]):
        if pool.nodes.milli_free[n, d] == WHOLE:
            idle += 1
    return idle


@inner
def scattered(pool: Pool, c: int) -> bool:
    """Whether the whole devices that class `c` wants are free on its nodes, taken together."""
    idle, need = 0, pool.classes.milli[c] // WHOLE
    for n in range(len(pool.nodes.model)):
        if pool.classes.allowed[c, n]:
            idle += idle_on(pool, n)
            if idle >= need:
                return True
    return False


@inner
def _resident(pool: Pool, running: Running, moves: Moves, n: int, missing: int) -> int:
    """Whom to move from node `n` next: the largest that is not more than missing, else the smallest; -1 nobody."""
    best, size = -1, 0
    for v in range(len(running.team)):
        t = running.first[v]
        if running.taken[v] or moves.moved[v] or not moves.may[v] or running.first[v + 1] != t + 1:
            continue
        if running.node[t] != n or moves.old_node[v] == n or running.milli[v] < WHOLE:
            continue
        own = running.milli[v] // WHOLE
        better = own <= missing and (size > missing or own > size)
        if best < 0 or better or (own > missing and size > missing and own < size):
            best, size = v, own
    return best


@inner
def _return(pool: Pool, running: Running, moves: Moves, asked: I64, count: int) -> None:
    """Put everybody back, last first."""
    for i in range(count - 1, -1, -1):
        v = asked[i]
        t = running.first[v]
        if running.node[t] != moves.old_node[v] or running.mask[t] != moves.old_mask[v]:
            take(pool.nodes, pool.classes, pool.scores, running.klass[t], running.node[t], running.mask[t], 1)
            running.node[t], running.mask[t] = moves.old_node[v], moves.old_mask[v]
            take(
                pool.nodes, pool.classes, pool.scores, running.klass[t], running.node[t], running.mask[t], -1
            )
        moves.old_node[v] = -1


@inner
def _empty(pool: Pool, running: Running, moves: Moves, n: int, need: int) -> int:
    """Move residents of node `n` until `need` of its devices are idle. How many were looked at (in `running.asked`),
    whether that was enough or not."""
    nodes, classes, scores = pool.nodes, pool.classes, pool.scores
    count, left = 0, moves.budget[0]
    missing = need - idle_on(pool, n)
    models = np.int64(1) << nodes.model[n]
    moves.elsewhere[n] = False
    while missing > 0 and left > 0:
        v = _resident(pool, running, moves, n, missing)
        if v < 0:
            break
        t = running.first[v]
        c = running.klass[t]
        moves.old_node[v], moves.old_mask[v] = n, running.mask[t]
        running.asked[count] = v
        count += 1
        to, mask = find_among(nodes, classes, scores, pool.scoring, c, models, pool.raylet, moves.elsewhere)
        if to < 0 or nodes.device_mib[to] != nodes.device_mib[n]:
            continue
        take(nodes, classes, scores, c, n, running.mask[t], 1)
        take(nodes, classes, scores, c, to, mask, -1)
        running.node[t], running.mask[t] = to, mask
        left -= 1
        missing -= running.milli[v] // WHOLE
    moves.elsewhere[n] = True
    return count


@inner
def _nearest(pool: Pool, moves: Moves, c: int, need: int) -> int:
    """The untried node that lacks the fewest devices, -1 when none has any idle."""
    best, most = -1, 0
    for n in range(len(pool.nodes.model)):
        if pool.classes.allowed[c, n] and not moves.tried[n] and pool.nodes.devices[n] >= need:
            idle = idle_on(pool, n)
            if idle > most:
                best, most = n, idle
    return best


@outer
def make_place(pool: Pool, c: int, running: Running, moves: Moves, node: I64, mask: I64, mem: I64) -> bool:
    """Place one task of class `c` (several whole devices) by moving others aside; False: nothing changed.

    On success `running`'s task columns hold the new places of those in `moves.moved`, and `node[0]`, `mask[0]`,
    `mem[0]` the task's.
    """
    nodes, classes, scores = pool.nodes, pool.classes, pool.scores
    need = classes.milli[c] // WHOLE
    moves.tried[:] = False
    for _ in range(TRIES):
        n = _nearest(pool, moves, c, need)
        if n < 0:
            break
        moves.tried[n] = True
        count = _empty(pool, running, moves, n, need)
        moves.here[n] = True
        at, devices = find_among(nodes, classes, scores, pool.scoring, c, -1, pool.raylet, moves.here)
        moves.here[n] = False
        if at < 0:
            _return(pool, running, moves, running.asked, count)
            continue
        node[0], mask[0] = at, devices
        mem[0] = take(nodes, classes, scores, c, at, devices, -1)
        for i in range(count):
            v = running.asked[i]
            if running.node[running.first[v]] != n:
                moves.moved[v] = True
                moves.budget[0] -= 1
            moves.old_node[v] = -1
        return True
    return False
