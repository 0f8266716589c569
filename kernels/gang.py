"""Gangs within a team's room (numba): all of the minimum or nothing, split between GPU models where it must be."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moorage.kernels.domains import best_of, bound, count, holds, smallest
from moorage.kernels.jit import inner, outer, small
from moorage.kernels.placing import find, take
from moorage.kernels.placing_scores import Classes, Nodes
from moorage.kernels.pool import FIRST, PREFERRED, REQUIRED, Pool

__all__ = ["Pool", "fits_within", "holds_up_to", "models_with", "place_within", "undo"]

I64 = npt.NDArray[np.int64]

UNLIMITED = 2**62
_WHOLE = 1000
_MANY = 8
"""A gang of more is first refused by a count, where that can be, without placing and undoing it."""


@inner
def models_with(room: I64, milli: np.int64) -> np.int64:
    """The GPU models with room for that much, as a bit mask. Bit 0 stands for nodes without GPUs."""
    mask = np.int64(1)
    for m in range(1, len(room)):
        if room[m] >= milli:
            mask |= np.int64(1) << m
    return mask


@inner
def holds_up_to(nodes: Nodes, classes: Classes, c: int, enough: int) -> int:
    """An upper bound on how many tasks of class `c` fit together, counted until `enough`."""
    milli, cpu, mib = classes.milli[c], classes.cpu[c], classes.mib[c]
    total = np.int64(0)
    for n in range(len(nodes.model)):
        if total >= enough:
            break
        if not classes.allowed[c, n]:
            continue
        fit = np.int64(enough)
        if cpu > 0:
            fit = min(fit, nodes.cpu_free[n] // cpu)
        if mib > 0:
            fit = min(fit, nodes.mib_free[n] // mib)
        if fit > 0 and milli > 0:
            room = np.int64(0)
            for d in range(nodes.milli_free.shape[1]):
                room += nodes.milli_free[n, d] // min(milli, np.int64(_WHOLE))
            fit = min(fit, room // max(np.int64(1), milli // _WHOLE))
        total += max(np.int64(0), fit)
    return int(total)


@outer
def place_within(
    pool: Pool,
    head: int,
    worker: int,
    workers: int,
    least: int,
    room: I64,
    left: I64,
    node: I64,
    mask: I64,
    mem: I64,
) -> int:
    """Place one task of class `head` (-1 = none) and as many of `workers` tasks of class `worker` as fit.

    `room[M]` is the milli-GPU that may be taken by model column (0 = all); it is left as it was, and `left[M]` is
    scratch. `node`, `mask` and `mem` have room for 1 + workers entries, head first when there is one.

    Returns how many workers were placed; -1 when the head or `least` workers do not fit, and then nothing changed:
    a gang holds all of its minimum or nothing. A gang without a head starts with one worker at least.
    """
    nodes, classes, scores = pool.nodes, pool.classes, pool.scores
    heads = 1 if head >= 0 else 0
    head_milli = classes.milli[head] if head >= 0 else np.int64(0)
    worker_milli = classes.milli[worker] if worker >= 0 else np.int64(0)
    if heads == 0 and workers > 0:
        least = max(least, 1)
    if room[0] < head_milli + workers * worker_milli:
        if room[0] < head_milli + least * worker_milli:
            return -1
        workers = (room[0] - head_milli) // worker_milli
    whole = head_milli + workers * worker_milli
    models = models_with(room, whole) if whole > 0 else np.int64(-1)
    if least > _MANY and holds_up_to(nodes, classes, worker, least) < least:
        return -1
    # some model has room for a part of the gang only: then what is left of each counts
    counting = whole > 0 and models != models_with(room, 1)
    if counting:
        for m in range(len(room)):
            left[m] = room[m]
    gang = (head, worker, heads, heads + workers, counting, models)
    if heads + workers > 0 and bound(pool.limits, head, worker):
        placed = _place_bound(pool, gang, heads + least, left, node, mask, mem)
        for t in range(heads, placed):
            count(pool.limits, worker, node[t], -1)
    else:
        placed = 0
        while placed < heads + workers:
            c = head if placed < heads else worker
            if counting:
                models = models_with(left, classes.milli[c])
            n, devices = find(nodes, classes, scores, pool.scoring, c, models, pool.raylet)
            if n < 0:
                break
            node[placed], mask[placed] = n, devices
            mem[placed] = take(nodes, classes, scores, c, n, devices, -1)
            if counting:
                left[nodes.model[n]] -= classes.milli[c]
            placed += 1
    if placed >= heads + least:
        return placed - heads
    undo(pool, head, worker, placed - heads, node, mask)
    return -1


@small
def _room_by_domain(pool: Pool, c: int, key: int, row: int, low: int, high: int, level: int) -> None:
    """Into `hold[level]` how many tasks of class `c` each domain of `key` has room for on these nodes."""
    limits = pool.limits
    for d in range(limits.domains[key]):
        limits.hold[level, d], limits.tried[level, d] = 0, False
    for i in range(low, high):
        n = limits.member[row, i]
        if limits.domain[key, n] >= 0:
            limits.hold[level, limits.domain[key, n]] += holds(pool, c, n)


@inner
def _place_bound(
    pool: Pool,
    gang: tuple[int, int, int, int, bool, int],
    least: int,
    left: I64,
    node: I64,
    mask: I64,
    mem: I64,
) -> int:
    """Place a gang under all limits; how many tasks stand (fewer than `least`: it does not fit). Its workers stay
    counted for spread.

    Where one domain must hold the gang, domains are tried from the one with the least room that has enough for all,
    then from the one with most; the first that takes all wins, else the one that took most. Where few domains are
    preferred, the first is the smallest with room for all; where there is none, the largest are taken in turn, and last
    the smallest that holds the rest. It is one function: each more would be compiled into all that call it.
    """
    nodes, classes, scores, limits = pool.nodes, pool.classes, pool.scores, pool.limits
    head, worker, heads, total, counting, models = gang
    every, kind = len(limits.domains), worker if total > heads else head
    required, near = limits.rules[kind, REQUIRED], limits.rules[kind, PREFERRED]
    row, low, high, domain = every, 0, len(limits.watts), -1
    best, most, last = -1, least - 1, required < 0
    if required >= 0:
        _room_by_domain(pool, kind, required, every, low, high, 0)
    while True:
        if required >= 0:
            enough, at_least = max(1, total - heads), max(0, most + 1 - heads)
            domain = smallest(limits, 0, required, enough, at_least)
            if domain < 0:
                if best < 0:
                    return 0
                domain, last = best, True
            row, low, high = required, limits.start[required, domain], limits.start[required, domain + 1]
        if near >= 0:
            _room_by_domain(pool, kind, near, row, low, high, 1)
        placed, among = 0, 0
        while placed < total and among >= 0:
            among = -1 if near < 0 else smallest(limits, 1, near, total - max(placed, heads), 1)
            a, b = (low, high) if among < 0 else (limits.start[near, among], limits.start[near, among + 1])
            where = (row, a, b, -1, -1) if among < 0 else (near, a, b, required, domain)
            while placed < total:
                c = head if placed < heads else worker
                if counting:
                    models = models_with(left, classes.milli[c])
                n, devices, one = -1, 0, limits.rules[c, FIRST]
                if one < 0:
                    one = c
                while n < 0:
                    n, devices = best_of(pool, one, models, placed >= heads, where)
                    if one == c:
                        break
                    one = c
                if n < 0:
                    break
                node[placed], mask[placed] = n, devices
                mem[placed] = take(nodes, classes, scores, c, n, devices, -1)
                if counting:
                    left[nodes.model[n]] -= classes.milli[c]
                if placed >= heads:
                    count(limits, c, n, 1)
                placed += 1
        if last or placed == total:
            return placed
        if placed > most:
            best, most = domain, placed
        _take_back(pool, gang, placed, left, node, mask)


@small
def _take_back(
    pool: Pool, gang: tuple[int, int, int, int, bool, int], placed: int, left: I64, node: I64, mask: I64
) -> None:
    """As if the first `placed` tasks had not been placed."""
    head, worker, heads, _, counting, _ = gang
    for t in range(placed - 1, -1, -1):
        c = head if t < heads else worker
        if t >= heads:
            count(pool.limits, c, node[t], -1)
        if counting:
            left[pool.nodes.model[node[t]]] += pool.classes.milli[c]
        take(pool.nodes, pool.classes, pool.scores, c, node[t], mask[t], 1)


@inner
def undo(pool: Pool, head: int, worker: int, workers: int, node: I64, mask: I64) -> None:
    """Take back a placed gang of `workers` (and its head), last first. `workers` is -1 for nothing at all placed."""
    heads = 1 if head >= 0 else 0
    for t in range(heads + workers - 1, -1, -1):
        c = head if t < heads else worker
        take(pool.nodes, pool.classes, pool.scores, c, node[t], mask[t], 1)


@outer
def fits_within(
    pool: Pool, head: int, worker: int, least: int, room: I64, left: I64, node: I64, mask: I64, mem: I64
) -> bool:
    """Whether a gang of `least` workers could be placed. Nothing stays placed."""
    placed = place_within(pool, head, worker, least, least, room, left, node, mask, mem)
    if placed >= 0:
        undo(pool, head, worker, placed, node, mask)
    return placed >= 0
