"""Moving whole jobs out of the way under every limit (numba): gangs, and anybody where domains, spread or a power cap
bind.

`moving` finds a place for one task at a time, and that says nothing of a gang. Here jobs leave as wholes: who is in
the way is lifted, the asker is placed, and who was lifted returns to its place where that is still free or is placed
anew. A gang keeps the places of as many of its tasks as it can and moves the rest within the domain that it required;
where that will not do, it goes elsewhere whole.

What was found is then carried out from the start, one job after another: each is released and granted again when its
new place is free and no cap is exceeded with it, the asker last. Where no order does that, or the raylet would pick
devices with which it does not go on, nothing is changed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moorage.kernels.domains import best_of, count, may_take
from moorage.kernels.gang import place_within, undo
from moorage.kernels.jit import inner, outer
from moorage.kernels.moving import Moves
from moorage.kernels.placing import devices_for, fresh, take
from moorage.kernels.placing_scores import FAR, share
from moorage.kernels.pool import FIRST, PREFERRED, REQUIRED, Pool
from moorage.kernels.preemption import Running

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

UNLIMITED = 2**62
WHOLE = 1000
TRIES = 256
"""Jobs that are lifted for one asker."""
LIFTED, STAYS, PLACED, DONE = 0, 1, 2, 3


class Jobs(NamedTuple):
    """J running jobs. T tasks, M GPU models."""

    first: I64
    """[J + 1] their tasks are rows `first[j]..first[j+1]` of the task columns of `Running`, the head first."""
    piece: I64
    """[J + 1] their pieces."""
    headed: Bool
    """[J] the first task is a head: it does not count for spread."""
    may: I64
    """[J] see `Moves.may`; 0 = stays."""
    order: I64
    """Rows in the order in which they are tried: least harm first."""
    node: I64
    """[T] scratch: where each task is to go, -1 = not known"""
    mask: I64
    """[T] scratch"""
    old_node: I64
    """[T] scratch: where it was"""
    old_mask: I64
    """[T] scratch"""
    asked: I64
    """[J] scratch: who was lifted, in order"""
    state: I64
    """[J] scratch"""
    spare: I64
    """[3, longest gang + 1] scratch: a gang's places"""
    within: I64
    """[M] scratch"""
    left: I64
    """[M] scratch"""


class Wish(NamedTuple):
    """The waiting gang."""

    head: int
    worker: int
    least: int
    milli: int
    """Of the smallest gang."""


@inner
def _fits(pool: Pool, c: int, n: int, mask: int) -> bool:
    """Whether a task of class `c` has room on these devices."""
    nodes, classes = pool.nodes, pool.classes
    if nodes.cpu_free[n] < classes.cpu[c] or nodes.mib_free[n] < classes.mib[c]:
        return False
    milli = classes.milli[c]
    if milli > 0:
        mem = share(milli, classes.gpu_mib[c], nodes.device_mib[n])
        for d in range(nodes.devices[n]):
            short = nodes.milli_free[n, d] < min(milli, np.int64(WHOLE)) or nodes.mem_free[n, d] < mem
            if mask >> d & 1 and short:
                return False
    return True


@inner
def _picked(pool: Pool, c: int, n: int, mask: int) -> int:
    """The devices that a task of class `c` gets on node `n`: those of `mask`, or what the raylet picks; -1 = it has no
    room."""
    if pool.raylet:
        fresh(pool.classes, pool.scores, pool.scoring, c, pool.raylet)
        if pool.scores.key[c, pool.scores.slot[n]] == FAR:
            return -1
        return int(devices_for(pool.classes, pool.scores, pool.scoring, c, n, pool.raylet))
    if not pool.classes.allowed[c, n] or not _fits(pool, c, n, mask):
        return -1
    return mask


@inner
def _lift(pool: Pool, running: Running, jobs: Jobs, j: int) -> None:
    """Take a job off the pool, and note where it was."""
    for t in range(jobs.first[j], jobs.first[j + 1]):
        n, mask = running.node[t], running.mask[t]
        jobs.old_node[t], jobs.old_mask[t] = n, mask
        take(pool.nodes, pool.classes, pool.scores, running.klass[t], n, mask, 1)


@inner
def _put(
    pool: Pool, running: Running, jobs: Jobs, j: int, upto: int, node: I64, mask: I64, sign: int
) -> None:
    """Put the tasks before row `upto` of a job on these places (-1), or take them off (+1)."""
    for t in range(jobs.first[j], upto):
        take(pool.nodes, pool.classes, pool.scores, running.klass[t], node[t], mask[t], sign)


@inner
def _returns(pool: Pool, running: Running, jobs: Jobs, j: int) -> bool:
    """Put a lifted job back where it was, if all of it still fits there."""
    for t in range(jobs.first[j], jobs.first[j + 1]):
        c, n, mask = running.klass[t], jobs.old_node[t], jobs.old_mask[t]
        if not _fits(pool, c, n, mask) or not may_take(pool, c, n, mask, False):
            _put(pool, running, jobs, j, t, jobs.old_node, jobs.old_mask, 1)
            return False
        take(pool.nodes, pool.classes, pool.scores, c, n, mask, -1)
    return True


@inner
def _same_kind(pool: Pool, jobs: Jobs, j: int, a: int, b: int) -> bool:
    """Whether job `j` may go from node `a` to node `b`, as far as GPU models go."""
    nodes = pool.nodes
    return bool(
        jobs.may[j] > 1 or (nodes.model[a] == nodes.model[b] and nodes.device_mib[a] == nodes.device_mib[b])
    )


@inner
def _another(pool: Pool, jobs: Jobs, j: int, c: int, n: int, worker: bool, domain: int) -> tuple[int, int]:
    """The best place for a task of a gang that was on node `n`, in the domain that the gang required (-1 = none): in
    the preferred domain that it was in if there is room, on a node of last resort if on no other."""
    limits = pool.limits
    every, required, near = len(limits.domains), limits.rules[c, REQUIRED], limits.rules[c, PREFERRED]
    models = np.int64(-1) if jobs.may[j] > 1 else np.int64(1) << pool.nodes.model[n]
    for wide in range(2):
        if wide == 0 and (near < 0 or limits.domain[near, n] < 0):
            continue
        row, low, high = every, np.int64(0), np.int64(len(limits.watts))
        key = np.int64(-1)
        if wide == 0:
            row, key = near, required
            low = limits.start[near, limits.domain[near, n]]
            high = limits.start[near, limits.domain[near, n] + 1]
        elif required >= 0:
            row, low, high = required, limits.start[required, domain], limits.start[required, domain + 1]
        for last in range(2):
            one = limits.rules[c, FIRST] if last == 0 else c
            if one < 0:
                continue
            to, mask = best_of(pool, one, models, worker, (row, low, high, key, domain))
            if to >= 0:
                return int(to), int(mask)
    return -1, 0


@inner
def _members(pool: Pool, running: Running, jobs: Jobs, j: int) -> bool:
    """Place a lifted job task by task: each where it was if it can, the rest near by. False: nothing is placed.

    Under the raylet's rule in the order of the tasks, as they will start; else who keeps its place goes first."""
    first, end, limits = jobs.first[j], jobs.first[j + 1], pool.limits
    workers = first + (1 if jobs.headed[j] else 0)
    required, domain, good = limits.rules[running.klass[end - 1], REQUIRED], -1, True
    if required >= 0:
        domain = limits.domain[required, jobs.old_node[first]]
        good = domain >= 0
    for t in range(first, end):
        jobs.node[t] = -1
    for phase in range(2):
        for t in range(first, end):
            if not good or jobs.node[t] >= 0:
                continue
            c, n = running.klass[t], jobs.old_node[t]
            mask = _picked(pool, c, n, jobs.old_mask[t])
            if mask < 0 or not may_take(pool, c, n, mask, t >= workers):
                if phase == 0 and not pool.raylet:
                    continue
                n, mask = _another(pool, jobs, j, c, n, t >= workers, domain)
                good = n >= 0 and _same_kind(pool, jobs, j, jobs.old_node[t], n)
            if good:
                take(pool.nodes, pool.classes, pool.scores, c, n, mask, -1)
                jobs.node[t], jobs.mask[t] = n, mask
                if t >= workers:
                    count(limits, c, n, 1)
    for t in range(first, end):
        if jobs.node[t] < 0:
            continue
        if t >= workers:
            count(limits, running.klass[t], jobs.node[t], -1)
        if not good:
            take(pool.nodes, pool.classes, pool.scores, running.klass[t], jobs.node[t], jobs.mask[t], 1)
    return bool(good)


@inner
def _whole(pool: Pool, running: Running, jobs: Jobs, j: int) -> bool:
    """Place a lifted job as if it had just come, with as much of each GPU model as it had. False: nothing is placed."""
    first, end, within = jobs.first[j], jobs.first[j + 1], jobs.within
    within[:] = UNLIMITED if jobs.may[j] > 1 else 0
    if jobs.may[j] == 1:
        for t in range(first, end):
            within[pool.nodes.model[jobs.old_node[t]]] += pool.classes.milli[running.klass[t]]
    within[0] = UNLIMITED
    heads = 1 if jobs.headed[j] else 0
    head, workers = (running.klass[first] if heads else np.int64(-1)), end - first - heads
    worker = running.klass[end - 1] if workers > 0 else np.int64(-1)
    node, mask, mem = jobs.spare[0], jobs.spare[1], jobs.spare[2]
    if place_within(pool, head, worker, workers, workers, within, jobs.left, node, mask, mem) < 0:
        return False
    good = True
    for t in range(first, end):
        jobs.node[t], jobs.mask[t] = node[t - first], mask[t - first]
        good = good and _same_kind(pool, jobs, j, jobs.old_node[t], jobs.node[t])
    if not good:
        undo(pool, head, worker, workers, node, mask)
    return good


@inner
def _settle(
    pool: Pool, running: Running, jobs: Jobs, asked: int, budget: int, wish: Wish, node: I64, mask: I64
) -> bool:
    """With the first `asked` of `jobs.asked` lifted and the asker placed, find places for them, the last first. All are
    back where they were afterwards and the asker is gone; True: `jobs.state` and `jobs.node` say what is to be done."""
    moved = 0
    for i in range(asked - 1, -1, -1):
        j = jobs.asked[i]
        jobs.state[j] = STAYS if _returns(pool, running, jobs, j) else LIFTED
        moved += 1 if jobs.state[j] == LIFTED else 0
    good = moved <= budget
    for i in range(asked - 1, -1, -1):
        j = jobs.asked[i]
        if good and jobs.state[j] == LIFTED:
            good = _members(pool, running, jobs, j) or _whole(pool, running, jobs, j)
            jobs.state[j] = PLACED if good else LIFTED
    for i in range(asked):
        j = jobs.asked[i]
        if jobs.state[j] == PLACED:
            _put(pool, running, jobs, j, jobs.first[j + 1], jobs.node, jobs.mask, 1)
        elif jobs.state[j] == STAYS:
            _put(pool, running, jobs, j, jobs.first[j + 1], jobs.old_node, jobs.old_mask, 1)
    undo(pool, wish.head, wish.worker, wish.least, node, mask)
    _return_all(pool, running, jobs, asked)
    return good


@inner
def _return_all(pool: Pool, running: Running, jobs: Jobs, asked: int) -> None:
    for i in range(asked - 1, -1, -1):
        j = jobs.asked[i]
        _put(pool, running, jobs, j, jobs.first[j + 1], jobs.old_node, jobs.old_mask, -1)


@inner
def _step(pool: Pool, running: Running, jobs: Jobs, j: int) -> bool:
    """Release one job and grant it again in its new place, if it fits there now; the raylet may pick other devices."""
    first, end = jobs.first[j], jobs.first[j + 1]
    _put(pool, running, jobs, j, end, jobs.old_node, jobs.old_mask, 1)
    for t in range(first, end):
        c, n = running.klass[t], jobs.node[t]
        mask = _picked(pool, c, n, jobs.mask[t])
        if mask < 0 or not may_take(pool, c, n, mask, False):
            _put(pool, running, jobs, j, t, running.node, running.mask, 1)
            _put(pool, running, jobs, j, end, jobs.old_node, jobs.old_mask, -1)
            for back in range(first, t):
                running.node[back], running.mask[back] = jobs.old_node[back], jobs.old_mask[back]
            return False
        take(pool.nodes, pool.classes, pool.scores, c, n, mask, -1)
        running.node[t], running.mask[t] = n, mask
    jobs.state[j] = DONE
    return True


@inner
def _start(pool: Pool, wish: Wish, node: I64, mask: I64, mem: I64) -> bool:
    """Start the asker where it was found to fit. False: nothing is placed."""
    heads = 1 if wish.head >= 0 else 0
    for t in range(heads + wish.least):
        c = wish.head if t < heads else wish.worker
        devices = _picked(pool, c, node[t], mask[t])
        if devices < 0 or not may_take(pool, c, node[t], devices, False):
            undo(pool, wish.head, wish.worker, t - heads, node, mask)
            return False
        mask[t] = devices
        mem[t] = take(pool.nodes, pool.classes, pool.scores, c, node[t], devices, -1)
    return True


@inner
def _carry_out(
    pool: Pool,
    running: Running,
    jobs: Jobs,
    moves: Moves,
    asked: int,
    wish: Wish,
    node: I64,
    mask: I64,
    mem: I64,
) -> bool:
    """Move whoever is to move in an order in which each fits when its turn comes, then start the asker. False: nothing
    changed."""
    begun, going = moves.made[0], True
    while going:
        going = False
        for i in range(asked):
            j = jobs.asked[i]
            if jobs.state[j] == PLACED and _step(pool, running, jobs, j):
                going = True
                for p in range(jobs.piece[j], jobs.piece[j + 1]):
                    for t in range(running.first[p], running.first[p + 1]):
                        n, old = jobs.old_node[t], jobs.old_mask[t]
                        if running.node[t] != n or running.mask[t] != old:
                            entry = moves.made[0]
                            moves.log[entry, 0], moves.log[entry, 1], moves.log[entry, 2] = p, n, old
                            moves.log[entry, 3], moves.log[entry, 4] = moves.made[1], t
                            moves.made[0] = entry + 1
    good = True
    for i in range(asked):
        good = good and jobs.state[jobs.asked[i]] != PLACED
    good = good and _start(pool, wish, node, mask, mem)
    for i in range(asked):
        j = jobs.asked[i]
        if jobs.state[j] != DONE:
            continue
        if good:
            moves.budget[0] -= 1
            moves.moved[jobs.piece[j] : jobs.piece[j + 1]] = True
            continue
        _put(pool, running, jobs, j, jobs.first[j + 1], running.node, running.mask, 1)
    if good:
        return True
    moves.made[0] = begun
    for i in range(asked):
        j = jobs.asked[i]
        if jobs.state[j] == DONE:
            for t in range(jobs.first[j], jobs.first[j + 1]):
                running.node[t], running.mask[t] = jobs.old_node[t], jobs.old_mask[t]
            _put(pool, running, jobs, j, jobs.first[j + 1], jobs.old_node, jobs.old_mask, -1)
    return False


@inner
def _may_go(pool: Pool, running: Running, jobs: Jobs, moves: Moves, wish: Wish, j: int) -> bool:
    """Whether to lift a job for the asker at all."""
    for p in range(jobs.piece[j], jobs.piece[j + 1]):
        if running.taken[p] or moves.moved[p]:
            return False
    for t in range(jobs.first[j], jobs.first[j + 1]):
        n = running.node[t]
        if wish.worker >= 0 and pool.classes.allowed[wish.worker, n]:
            return True
        if wish.head >= 0 and pool.classes.allowed[wish.head, n]:
            return True
    return False


@outer
def make_way(
    pool: Pool,
    wish: Wish,
    running: Running,
    jobs: Jobs,
    moves: Moves,
    allowed: I64,
    left: I64,
    node: I64,
    mask: I64,
    mem: I64,
) -> bool:
    """Place the asker's smallest gang by moving running jobs; False: nothing changed.

    Each job is tried alone first. Where none will do, jobs are lifted one after another until the asker fits, and who
    was not in the way stays. `allowed[M]` is what the asker's team may take; `node`, `mask` and `mem` have room for the
    gang, its head first. On success `running`'s task columns hold the new places of those in `moves.moved`, and
    `moves.log` has an entry for each task with a new place; the entries of one job follow one another.
    """
    if pool.scores.clock[2] < wish.milli or moves.budget[0] <= 0:
        return False
    tried = 0
    for several in range(2 if moves.budget[0] > 1 else 1):
        asked, tried, placed = 0, 0, -1
        for j in jobs.order:
            if tried >= TRIES or not _may_go(pool, running, jobs, moves, wish, j):
                continue
            tried += 1
            _lift(pool, running, jobs, j)
            jobs.asked[asked] = j
            asked += 1
            placed = place_within(
                pool, wish.head, wish.worker, wish.least, wish.least, allowed, left, node, mask, mem
            )
            if placed >= 0:
                found = _settle(pool, running, jobs, asked, moves.budget[0], wish, node, mask)
                if found and _carry_out(pool, running, jobs, moves, asked, wish, node, mask, mem):
                    return True
                if several == 1:
                    return False
            elif several == 0:
                _return_all(pool, running, jobs, asked)
            if several == 0:
                asked = 0
        if several == 1:
            _return_all(pool, running, jobs, asked)
    return False
