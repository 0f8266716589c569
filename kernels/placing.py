"""Where one task goes: a node and its devices, by one of several scoring rules (numba).

A decision places many tasks of few distinct shapes on many nodes, and each placement changes one node. So the
score of every (class, node) is kept, and a class that is asked for again rescores only the nodes which changed
since it was last asked. The cache never changes an answer: `find` is a pure function of nodes, classes and rule.

A cached key is `score << TIE_BITS | tie`: lower is better, all keys of a class differ, `FAR` fits nowhere. Slots are
nodes grouped by GPU model and cut into blocks of one model, with the least key of each block beside the keys.

=============  ==========  =====================================================================
milli_free     int64[N,G]  free milli-GPU per device, 1000 = wholly free; unused columns are 0
mem_free       int64[N,G]  free MiB per device
device_mib     int64[N]    MiB of one device
model          int64[N]    GPU model row, 0 = none
cpu_free       int64[N]    milli-CPU
mib_free       int64[N]    MiB of host memory
=============  ==========  =====================================================================
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from moorage.kernels.placing_scores import (
    FAR,
    TIE_BITS,
    Classes,
    Nodes,
    Scoring,
    base_value,
    device_choice,
    score,
    share,
)

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

WHOLE = 1000
BLOCK = 64
_TIE_MASK = np.int64((1 << TIE_BITS) - 1)


class Scores(NamedTuple):
    """The cache of one decision. `fresh_scores` makes one; only `find` and `take` write it."""

    key: I64
    """[C,S]: by slot; a row means nothing until its class was first asked for"""
    block: I64
    """[C,B]: the least key of each block"""
    block_model: I64
    """[B]: the GPU model row of all nodes of the block"""
    slot: I64
    """[N]: the slot of a node"""
    node: I64
    """[S]: the node of a slot, -1 = padding"""
    by_tie: I64
    """[2**k]: the node of a tie rank"""
    log: I64
    """[L]: the nodes changed, a ring"""
    clock: I64
    """[2]: how many changes there were; the clock at the last one that gave room back"""
    changed: I64
    """[N]: the clock after the last change of a node"""
    seen: I64
    """[C]: the clock when the class was last refreshed, -1 = never"""
    full: I64
    """[C]: the clock when the class was found to fit nowhere, -1 = not so"""
    base: I64
    """[N]: the value of a node as it is, for rules that score by its fall"""
    base_seen: I64
    """[N]: the clock when `base` was computed, -1 = never"""


def fresh_scores(nodes: Nodes, classes: Classes, scoring: Scoring) -> Scores:
    """An empty cache. Costs O(N); the rows of a class are filled when it is first asked for.

    Nodes: fewer than 2**TIE_BITS. `scoring.tie` is a permutation of range(N).
    """
    count, shapes = len(nodes.model), len(classes.milli)
    if count >= 1 << TIE_BITS:
        raise ValueError(f"at most {(1 << TIE_BITS) - 1} nodes, got {count}")
    order = np.argsort(nodes.model, kind="stable")
    rows, sizes = np.unique(nodes.model, return_counts=True)
    blocks = -(-sizes // BLOCK)
    starts = (np.cumsum(blocks) - blocks) * BLOCK
    slot = np.empty(count, np.int64)
    firsts = np.cumsum(sizes) - sizes
    for start, first, size in zip(starts, firsts, sizes, strict=True):
        slot[order[first : first + size]] = start + np.arange(size)
    slots = int(blocks.sum()) * BLOCK
    node = np.full(slots, -1, np.int64)
    node[slot] = np.arange(count)
    by_tie = np.empty(count, np.int64)
    by_tie[scoring.tie] = np.arange(count)
    return Scores(
        key=np.empty((shapes, slots), np.int64),
        block=np.empty((shapes, slots // BLOCK), np.int64),
        block_model=np.repeat(rows, blocks).astype(np.int64),
        slot=slot,
        node=node,
        by_tie=by_tie,
        log=np.zeros(max(64, count), np.int64),
        clock=np.zeros(2, np.int64),
        changed=np.zeros(count, np.int64),
        seen=np.full(shapes, -1, np.int64),
        full=np.full(shapes, -1, np.int64),
        base=np.zeros(count, np.int64),
        base_seen=np.full(count, -1, np.int64),
    )


@numba.njit(cache=True)
def _key(
    nodes: Nodes, classes: Classes, scores: Scores, scoring: Scoring, c: int, n: int, raylet: bool
) -> np.int64:
    if not classes.allowed[c, n] or nodes.cpu_free[n] < classes.cpu[c] or nodes.mib_free[n] < classes.mib[c]:
        return FAR
    if scoring.kind <= 2 and scoring.kind > 0 and scores.base_seen[n] < scores.changed[n]:
        scores.base[n] = base_value(nodes, scoring, n)
        scores.base_seen[n] = scores.clock[0]
    found = score(nodes, classes, scoring, scores.base[n], c, n, raylet)
    return FAR if found == FAR else (found << TIE_BITS) | scoring.tie[n]


@numba.njit(cache=True)
def _store(scores: Scores, c: int, n: int, key: np.int64) -> None:
    """Set one key and keep the least of its block right."""
    s = scores.slot[n]
    b = s // BLOCK
    old = scores.key[c, s]
    scores.key[c, s] = key
    if key < scores.block[c, b]:
        scores.block[c, b] = key
    elif old == scores.block[c, b] and key > old:
        least = FAR
        for i in range(b * BLOCK, b * BLOCK + BLOCK):
            least = min(least, scores.key[c, i])
        scores.block[c, b] = least


@numba.njit(cache=True)
def _same(nodes: Nodes, a: int, b: int) -> bool:
    """Whether two nodes are in the same state."""
    if (
        nodes.cpu_free[a] != nodes.cpu_free[b]
        or nodes.mib_free[a] != nodes.mib_free[b]
        or nodes.device_mib[a] != nodes.device_mib[b]
        or nodes.devices[a] != nodes.devices[b]
        or nodes.model[a] != nodes.model[b]
    ):
        return False
    for d in range(nodes.milli_free.shape[1]):
        if nodes.milli_free[a, d] != nodes.milli_free[b, d] or nodes.mem_free[a, d] != nodes.mem_free[b, d]:
            return False
    return True


@numba.njit(cache=True)
def _fill(nodes: Nodes, classes: Classes, scores: Scores, scoring: Scoring, c: int, raylet: bool) -> None:
    """All keys of a class. Neighbours in the same state, the many of an idle pool, are scored once."""
    last, last_key = -1, FAR
    for b in range(scores.block.shape[1]):
        least = FAR
        for s in range(b * BLOCK, b * BLOCK + BLOCK):
            n = scores.node[s]
            key = FAR
            if n >= 0 and classes.allowed[c, n]:
                if last < 0 or not _same(nodes, last, n):
                    last, last_key = n, _key(nodes, classes, scores, scoring, c, n, raylet)
                elif scoring.kind == 4:
                    last_key = _key(nodes, classes, scores, scoring, c, n, raylet)
                if last_key != FAR:
                    key = (last_key & ~_TIE_MASK) | scoring.tie[n]
            scores.key[c, s] = key
            least = min(least, key)
        scores.block[c, b] = least


@numba.njit(cache=True)
def _refresh(nodes: Nodes, classes: Classes, scores: Scores, scoring: Scoring, c: int, raylet: bool) -> None:
    """Bring the keys of a class up to date with the nodes."""
    now, since = scores.clock[0], scores.seen[c]
    if since < 0:
        _fill(nodes, classes, scores, scoring, c, raylet)
    elif now - since > len(scores.log) // 2:
        for n in range(len(scores.changed)):
            if scores.changed[n] > since:
                _store(scores, c, n, _key(nodes, classes, scores, scoring, c, n, raylet))
    else:
        for at in range(since, now):
            n = scores.log[at % len(scores.log)]
            if scores.changed[n] == at + 1:  # else it changed once more later in the log
                _store(scores, c, n, _key(nodes, classes, scores, scoring, c, n, raylet))
    scores.seen[c] = now


@numba.njit(cache=True)
def find(
    nodes: Nodes,
    classes: Classes,
    scores: Scores,
    scoring: Scoring,
    c: int,
    models: int,
    raylet: bool,
) -> tuple[int, np.int64]:
    """(node, device mask) for one task of class `c`, (-1, 0) when nothing fits.

    `models` is a bit mask of the GPU model rows that may be used, -1 = all. A cache serves one `scoring` and one
    device rule. Ties go to the lowest `scoring.tie`.
    """
    if scores.full[c] >= scores.clock[1]:
        return -1, np.int64(0)
    if scores.seen[c] != scores.clock[0]:
        _refresh(nodes, classes, scores, scoring, c, raylet)
    best, any_model = FAR, FAR
    for b in range(scores.block.shape[1]):
        key = scores.block[c, b]
        any_model = min(any_model, key)
        if key < best and (models < 0 or (models >> scores.block_model[b]) & 1):
            best = key
    if any_model == FAR and (not raylet or classes.milli[c] == 0 or classes.milli[c] >= WHOLE):
        # Taking never makes room for it; under the raylet's rule it may, by moving the device it would use.
        scores.full[c] = scores.clock[0]
    if best == FAR:
        return -1, np.int64(0)
    n = scores.by_tie[best & _TIE_MASK]
    return n, device_choice(nodes, classes, scoring, c, n, raylet)


@numba.njit(cache=True)
def find_among(
    nodes: Nodes,
    classes: Classes,
    scores: Scores,
    scoring: Scoring,
    c: int,
    models: int,
    raylet: bool,
    among: Bool,
) -> tuple[int, np.int64]:
    """`find` over the nodes marked in `among` only: O(N)."""
    if scores.seen[c] != scores.clock[0]:
        _refresh(nodes, classes, scores, scoring, c, raylet)
    best = FAR
    for n in range(len(among)):
        if among[n]:
            key = scores.key[c, scores.slot[n]]
            if key < best and (models < 0 or (models >> nodes.model[n]) & 1):
                best = key
    if best == FAR:
        return -1, np.int64(0)
    n = scores.by_tie[best & _TIE_MASK]
    return n, device_choice(nodes, classes, scoring, c, n, raylet)


@numba.njit(cache=True)
def take(
    nodes: Nodes, classes: Classes, scores: Scores, c: int, n: int, mask: np.int64, sign: int
) -> np.int64:
    """Take (sign -1) or give back (+1) one task of class `c`; returns the MiB held on each of its devices."""
    milli = classes.milli[c]
    each = min(milli, np.int64(WHOLE))
    mem = share(milli, classes.gpu_mib[c], nodes.device_mib[n]) if milli > 0 else np.int64(0)
    if mask != 0:
        for d in range(nodes.milli_free.shape[1]):
            if mask >> d & 1:
                nodes.milli_free[n, d] += sign * each
                nodes.mem_free[n, d] += sign * mem
    nodes.cpu_free[n] += sign * classes.cpu[c]
    nodes.mib_free[n] += sign * classes.mib[c]
    touch(scores, n, sign > 0)
    return mem


@numba.njit(cache=True)
def touch(scores: Scores, n: int, room: bool) -> None:
    """Say that a node changed. Whoever writes `Nodes` by hand calls this; `room` when something became free."""
    at = scores.clock[0]
    scores.log[at % len(scores.log)] = n
    scores.clock[0] = at + 1
    scores.changed[n] = at + 1
    if room:
        scores.clock[1] = at + 1


@numba.njit(cache=True)
def _holds(nodes: Nodes, classes: Classes, c: int, models: int, enough: int) -> int:
    """An upper bound on how many tasks of class `c` fit together, counted until `enough`."""
    milli, cpu, mib = classes.milli[c], classes.cpu[c], classes.mib[c]
    total = np.int64(0)
    for n in range(len(nodes.model)):
        if total >= enough:
            break
        if not classes.allowed[c, n] or (models >= 0 and not (models >> nodes.model[n]) & 1):
            continue
        fit = np.int64(enough)
        if cpu > 0:
            fit = min(fit, nodes.cpu_free[n] // cpu)
        if mib > 0:
            fit = min(fit, nodes.mib_free[n] // mib)
        if fit > 0 and milli > 0:
            room = np.int64(0)
            for d in range(nodes.milli_free.shape[1]):
                room += nodes.milli_free[n, d] // min(milli, np.int64(WHOLE))
            fit = min(fit, room // max(np.int64(1), milli // WHOLE))
        total += max(np.int64(0), fit)
    return int(total)


@numba.njit(cache=True)
def place_gang(
    nodes: Nodes,
    classes: Classes,
    scores: Scores,
    scoring: Scoring,
    head: int,
    worker: int,
    workers: int,
    min_workers: int,
    models: int,
    raylet: bool,
    out_node: I64,
    out_mask: I64,
    out_mem: I64,
) -> int:
    """Place one task of class `head` (-1 = none) and as many of `workers` tasks of class `worker` as fit.

    Outputs have room for 1 + workers entries, head first when there is one. Returns the number of workers placed;
    -1 when the head or `min_workers` do not fit, and then the nodes are as they were: a gang holds all of its
    minimum or nothing. A large gang that cannot fit is refused by a count, without placing and undoing.
    """
    heads = 1 if head >= 0 else 0
    if min_workers > 8 and _holds(nodes, classes, worker, models, min_workers) < min_workers:
        return -1
    placed = 0
    total = heads + workers
    while placed < total:
        c = head if placed < heads else worker
        n, mask = find(nodes, classes, scores, scoring, c, models, raylet)
        if n < 0:
            break
        out_node[placed], out_mask[placed] = n, mask
        out_mem[placed] = take(nodes, classes, scores, c, n, mask, -1)
        placed += 1
    if placed >= heads + min_workers:
        return placed - heads
    while placed > 0:
        placed -= 1
        c = head if placed < heads else worker
        take(nodes, classes, scores, c, out_node[placed], out_mask[placed], 1)
    return -1
