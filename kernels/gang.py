"""Gangs within a team's room (numba): all of the minimum or nothing, split between GPU models where it must be."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moorage.kernels.jit import inner, outer
from moorage.kernels.placing import Scores, find, take
from moorage.kernels.placing_scores import Classes, Nodes, Scoring

I64 = npt.NDArray[np.int64]

UNLIMITED = 2**62
_WHOLE = 1000
_MANY = 8
"""A gang of more is first refused by a count, where that can be, without placing and undoing it."""


class Pool(NamedTuple):
    """What tasks are placed on, with what, and how."""

    nodes: Nodes
    classes: Classes
    scores: Scores
    scoring: Scoring
    raylet: bool
    """Ray's raylet picks the device; else the planner."""


@inner
def models_with(room: I64, milli: np.int64) -> np.int64:
    """The GPU models with room for that much, as a bit mask. Bit 0 stands for nodes without GPUs."""
    mask = np.int64(1)
    for m in range(1, len(room)):
        if room[m] >= milli:
            mask |= np.int64(1) << m
    return mask


@inner
def _holds(nodes: Nodes, classes: Classes, c: int, enough: int) -> int:
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
    if least > _MANY and _holds(nodes, classes, worker, least) < least:
        return -1
    # some model has room for a part of the gang only: then what is left of each counts
    counting = whole > 0 and models != models_with(room, 1)
    if counting:
        for m in range(len(room)):
            left[m] = room[m]
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
