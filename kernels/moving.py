"""Making room by moving running jobs aside (numba): where enough is free, but nowhere together.

`make_place`: a task that wants several whole devices of one node finds them scattered. Of the nodes that lack least,
one is emptied so far as needed: residents of a single task each are placed into holes elsewhere, on nodes of the same
GPU model, and the task takes their place.

`make_places`: the same for a gang, and for tasks of any size: where no node can be emptied, one resident anywhere
leaves whose going makes room, the one for whom that and its new place cost least by the rule of the pool.

All of it on the working copy; when it does not work out, everything is as it was. Moves are made one after another
between the plan's admissions, and each fits when it is made: carried out in that order they fit as well.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moorage.kernels.jit import inner, outer
from moorage.kernels.lifting import TIE_MASK, Scratch, cost_on_lifted, least_key, least_key_away, lift
from moorage.kernels.placing import find, find_among, take
from moorage.kernels.placing_scores import FAR, FREE, TIE_BITS
from moorage.kernels.pool import Pool
from moorage.kernels.preemption import Running

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

WHOLE = 1000
TRIES = 8
"""Nodes that are tried for one task."""


class Moves(NamedTuple):
    """Who may move, who moved, and scratch. V running jobs, N nodes."""

    may: I64
    """[V] may be moved (stops and starts again elsewhere): 1 to a node of its GPU model, 2 of any its class allows."""
    moved: Bool
    """[V] an output: its place in `Running` is the new one."""
    budget: I64
    """[1] how many moves this plan may still make."""
    log: I64
    """[T, 5] the tasks that move, in order: whose, from which node and devices, after how many admissions of the plan,
    and which one (a row of the task columns)."""
    made: I64
    """[2] how many entries the log has; how many admissions the plan has."""
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
    """Whether as much of GPUs as class `c` wants is free in the pool at all."""
    return bool(pool.scores.clock[2] >= pool.classes.milli[c])


@inner
def _noted(moves: Moves, v: int, t: int, node: int, mask: int) -> None:
    """Write down that the one task of job `v` left this place."""
    entry = moves.made[0]
    moves.log[entry, 0], moves.log[entry, 1], moves.log[entry, 2] = v, node, mask
    moves.log[entry, 3], moves.log[entry, 4] = moves.made[1], t
    moves.made[0] += 1
    moves.moved[v] = True
    moves.budget[0] -= 1


@inner
def _take_back(pool: Pool, running: Running, moves: Moves, upto: int) -> None:
    """Undo the moves after the first `upto`, last first."""
    nodes, classes, scores = pool.nodes, pool.classes, pool.scores
    for entry in range(moves.made[0] - 1, upto - 1, -1):
        v = moves.log[entry, 0]
        t = running.first[v]
        take(nodes, classes, scores, running.klass[t], running.node[t], running.mask[t], 1)
        running.node[t], running.mask[t] = moves.log[entry, 1], moves.log[entry, 2]
        take(nodes, classes, scores, running.klass[t], running.node[t], running.mask[t], -1)
        moves.moved[v] = False
        moves.budget[0] += 1
    moves.made[0] = upto


@inner
def _resident(pool: Pool, running: Running, moves: Moves, n: int, missing: int) -> int:
    """Whom to move from node `n` next: the largest that is not more than missing, else the smallest; -1 nobody."""
    best, size = -1, 0
    for v in range(len(running.team)):
        t = running.first[v]
        if running.taken[v] or moves.moved[v] or moves.may[v] == 0 or running.first[v + 1] != t + 1:
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
                _noted(moves, v, running.first[v], n, moves.old_mask[v])
            moves.old_node[v] = -1
        return True
    return False


@inner
def _one_aside(pool: Pool, c: int, running: Running, moves: Moves, scratch: Scratch) -> int:
    """Move one job so that a task of class `c` fits on the node it leaves; that node, -1 when there is no such job.

    Of all who may move, the one for whom the score of the task there and its own elsewhere are least in sum, less what
    the node's value rises by; ties to the first. What leaves nothing to gain is found by a few comparisons.
    """
    nodes, classes, scores = pool.nodes, pool.classes, pool.scores
    best, job, place = np.int64(FAR), -1, np.int64(FAR)
    for v in range(len(running.team)):
        t = running.first[v]
        if moves.may[v] == 0 or moves.moved[v] or running.taken[v] or running.first[v + 1] != t + 1:
            continue
        n, k = running.node[t], running.klass[t]
        if not classes.allowed[c, n] or scores.state[n, FREE] + classes.milli[k] < classes.milli[c]:
            continue
        if nodes.cpu_free[n] + classes.cpu[k] < classes.cpu[c]:
            continue
        if nodes.mib_free[n] + classes.mib[k] < classes.mib[c] or least_key(pool, scratch, k) == FAR:
            continue
        rise = lift(pool, scratch, k, n, running.mask[t])
        cost = cost_on_lifted(pool, scratch, c)
        if cost == FAR or cost - rise + (scratch.best[k] >> TIE_BITS) >= best:
            continue
        model = np.int64(-1) if moves.may[v] > 1 else nodes.model[n]
        key = least_key_away(pool, k, n, model)
        if key == FAR or cost - rise + (key >> TIE_BITS) >= best:
            continue
        to = scores.by_tie[key & TIE_MASK]
        if moves.may[v] == 1 and nodes.device_mib[to] != nodes.device_mib[n]:
            continue
        best, job, place = cost - rise + (key >> TIE_BITS), v, to
    if job < 0:
        return -1
    t = running.first[job]
    n, k = running.node[t], running.klass[t]
    _noted(moves, job, t, n, running.mask[t])
    moves.here[place] = True
    to, mask = find_among(nodes, classes, scores, pool.scoring, k, -1, pool.raylet, moves.here)
    moves.here[place] = False
    take(nodes, classes, scores, k, n, running.mask[t], 1)
    take(nodes, classes, scores, k, to, mask, -1)
    running.node[t], running.mask[t] = to, mask
    return int(n)


@outer
def make_places(
    pool: Pool,
    c: int,
    count: int,
    running: Running,
    moves: Moves,
    scratch: Scratch,
    node: I64,
    mask: I64,
    mem: I64,
) -> bool:
    """Place `count` tasks of class `c`, moving others aside where one does not fit; False: nothing changed.

    `node`, `mask` and `mem` have `count` entries. On success `running` is as after `make_place`.
    """
    nodes, classes, scores, begun = pool.nodes, pool.classes, pool.scores, moves.made[0]
    for i in range(count):
        n, devices = find(nodes, classes, scores, pool.scoring, c, -1, pool.raylet)
        large = n < 0 and classes.milli[c] > WHOLE
        if large and make_place(pool, c, running, moves, node[i:], mask[i:], mem[i:]):
            continue
        if n < 0 and moves.budget[0] > 0 and scattered(pool, c):
            at = _one_aside(pool, c, running, moves, scratch)
            if at >= 0:
                moves.here[at] = True
                n, devices = find_among(nodes, classes, scores, pool.scoring, c, -1, pool.raylet, moves.here)
                moves.here[at] = False
        if n < 0:
            for done in range(i):
                take(nodes, classes, scores, c, node[done], mask[done], 1)
            _take_back(pool, running, moves, begun)
            return False
        node[i], mask[i] = n, devices
        mem[i] = take(nodes, classes, scores, c, n, devices, -1)
    return True
