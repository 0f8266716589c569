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

import numpy as np
import numpy.typing as npt

from moorage.kernels import placing_scores as rules
from moorage.kernels.jit import outer
from moorage.kernels.placing_scores import FAR, TIE_BITS, Classes, Nodes, Scoring

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

WHOLE = 1000
BLOCK = 64
_TIE_MASK = np.int64((1 << TIE_BITS) - 1)


class Scores(NamedTuple):
    """The cache of one decision. `fresh_scores` makes one; only `find`, `take` and `touch` write it."""

    state: I64
    """[N,8+2G]: the nodes by rows, see `placing_scores`"""
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
    """[N]: the node of a tie rank"""
    log: I64
    """[L]: the nodes changed, a ring"""
    clock: I64
    """[4]: how many changes there were; the clock at the last one that gave room back; the milli-GPU free in the
    pool; the stage of the potential that the cache is for"""
    changed: I64
    """[N]: the clock after the last change of a node"""
    seen: I64
    """[C,2]: the clock when the class was last refreshed; when it was found to fit nowhere; -1 = never"""
    base: I64
    """[N,2]: the value of a node as it is, for rules that score by its fall; 1 = right"""
    sums: I64
    """[N,K]: potential: the summed values of a node's holes; FGD: [2,L] of scratch"""
    todo: I64
    """[N]: scratch: the nodes to rescore"""
    found: I64
    """[N]: scratch: their keys"""


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
    # Where the run of each model begins, less where it began before padding.
    moved = np.repeat((np.cumsum(blocks) - blocks) * BLOCK - (np.cumsum(sizes) - sizes), sizes)
    slot = np.empty(count, np.int64)
    slot[order] = np.arange(count) + moved
    slots = int(blocks.sum()) * BLOCK
    node = np.full(slots, -1, np.int64)
    node[slot] = np.arange(count)
    by_tie = np.empty(count, np.int64)
    by_tie[scoring.tie] = np.arange(count)
    fgd = scoring.kind == rules.FGD
    scores = Scores(
        state=np.empty((count, rules.DEVICES + 2 * nodes.milli_free.shape[1]), np.int64),
        key=np.empty((shapes, slots), np.int64),
        block=np.empty((shapes, slots // BLOCK), np.int64),
        block_model=np.repeat(rows, blocks).astype(np.int64),
        slot=slot,
        node=node,
        by_tie=by_tie,
        log=np.zeros(max(BLOCK, count), np.int64),
        clock=np.array([0, 0, nodes.milli_free.sum(), 0], np.int64),
        changed=np.zeros(count, np.int64),
        seen=np.full((shapes, 2), -1, np.int64),
        base=np.zeros((count, 2), np.int64),
        sums=np.zeros((2, len(scoring.levels)) if fgd else (count, scoring.value.shape[2]), np.int64),
        todo=np.empty(count, np.int64),
        found=np.empty(count, np.int64),
    )
    _copy_all(nodes, scores.state)
    scores.state[:, rules.ROW] = nodes.model
    return scores


@outer
def refill(nodes: Nodes, scores: Scores) -> None:
    """Make a cache that was used for other nodes, as many and of the same models, a fresh one of these."""
    free = np.int64(0)
    for n in range(len(scores.state)):
        _copy(nodes, scores.state, n)
        scores.state[n, rules.ROW] = nodes.model[n]
        scores.base[n, 1] = scores.changed[n] = 0
        free += scores.state[n, rules.FREE]
    for c in range(len(scores.seen)):
        scores.seen[c, 0] = scores.seen[c, 1] = -1
    scores.clock[0] = scores.clock[1] = scores.clock[3] = 0
    scores.clock[2] = free


@outer
def _copy_all(nodes: Nodes, state: I64) -> None:
    for n in range(len(state)):
        _copy(nodes, state, n)


@outer
def _copy(nodes: Nodes, state: I64, n: int) -> None:
    """One node into its row; the column ROW stays."""
    width = nodes.milli_free.shape[1]
    state[n, rules.CPU], state[n, rules.MIB] = nodes.cpu_free[n], nodes.mib_free[n]
    state[n, rules.MODEL], state[n, rules.COUNT] = nodes.model[n], nodes.devices[n]
    state[n, rules.DEVICE_MIB] = nodes.device_mib[n]
    free, idle = np.int64(0), np.int64(0)
    for d in range(width):
        milli = nodes.milli_free[n, d]
        free += milli
        if milli == WHOLE:
            idle += 1
        state[n, rules.DEVICES + d] = milli
        state[n, rules.DEVICES + width + d] = nodes.mem_free[n, d]
    state[n, rules.IDLE], state[n, rules.FREE] = idle, free


@outer
def _score(
    state: I64,
    base: I64,
    sums: I64,
    value: I64,
    price: I64,
    typical: I64,
    levels: I64,
    steps: I64,
    kind: int,
    salt: int,
    c: int,
    n: int,
    milli: int,
    gpu_mib: int,
    cpu: int,
    mib: int,
    raylet: bool,
) -> tuple[int, int]:
    """(score, device or -1) of a task on a node which has the CPU and memory; FAR when the devices do not fit it."""
    device, mem = -1, np.int64(0)
    if milli >= WHOLE:
        if state[n, rules.IDLE] * WHOLE < milli or gpu_mib > state[n, rules.DEVICE_MIB]:
            return FAR, -1
    elif milli > 0:
        mem = rules.share(milli, gpu_mib, state[n, rules.DEVICE_MIB])
        if not raylet and kind == rules.POTENTIAL:
            return rules.cheapest_device(state, n, value, price, sums, base[n, 0], milli, mem, cpu, mib)
        if not raylet and kind == rules.FGD:
            return rules.least_fragmented(state, n, milli, mem, cpu, typical, levels, steps, base[n, 0], sums)
        device = rules.tightest(state, n, milli, mem, raylet)
        if device < 0:
            return FAR, -1
    cost = np.int64(0)
    if kind == rules.POTENTIAL:
        worth = base[n, 0]
        if device < 0:
            cost = rules.whole_cost(state, n, value, price, sums, worth, milli // WHOLE, cpu, mib)
        else:
            cost = rules.fraction_cost(state, n, value, price, sums, worth, device, milli, cpu, mib)
    elif kind == rules.FGD:
        mask = np.int64(1) << device if device >= 0 else rules.lowest_idle(state, n, milli // WHOLE)
        cost = rules.fragments(state, n, mask, milli, cpu, typical, levels, steps, base[n, 0], sums)
    elif kind == rules.BEST_FIT:
        cost = rules.best_fit(state, n, milli, device)
    elif kind == rules.DOT_PRODUCT:
        cost = rules.dot_product(state, n, milli, cpu)
    elif kind == rules.RANDOM:
        cost = rules.mixed(salt, c, n, state[n, rules.CPU], state[n, rules.FREE])
    return int(cost), int(device)


@outer
def _value(scores: Scores, scoring: Scoring, n: int) -> None:
    """What a node is worth as it is, for rules that score by its fall."""
    state, base, sums = scores.state, scores.base, scores.sums
    if scoring.kind == rules.POTENTIAL:
        base[n, 0] = rules.node_worth(state, n, scoring.value, scoring.price, sums)
    elif scoring.kind == rules.FGD:
        base[n, 0] = rules.fragmentation(state, n, state[n, rules.CPU], scoring.typical, scoring.levels, sums)
    base[n, 1] = 1


@outer
def _keys(classes: Classes, scores: Scores, scoring: Scoring, c: int, raylet: bool, count: int) -> None:
    """Into `scores.found` the keys of class `c` for the first `count` nodes of `scores.todo`."""
    milli, gpu_mib, cpu, mib = classes.milli[c], classes.gpu_mib[c], classes.cpu[c], classes.mib[c]
    allowed, tie, kind, salt = classes.allowed, scoring.tie, scoring.kind, scoring.salt
    state, base, sums, todo, out = scores.state, scores.base, scores.sums, scores.todo, scores.found
    value, price = scoring.value, scoring.price
    typical, levels, steps = scoring.typical, scoring.levels, scoring.steps
    for i in range(count):
        n = todo[i]
        out[i] = FAR
        if not allowed[c, n] or state[n, rules.CPU] < cpu or state[n, rules.MIB] < mib:
            continue
        if base[n, 1] == 0:
            _value(scores, scoring, n)
        found = _score(
            state,
            base,
            sums,
            value,
            price,
            typical,
            levels,
            steps,
            kind,
            salt,
            c,
            n,
            milli,
            gpu_mib,
            cpu,
            mib,
            raylet,
        )[0]
        if found != FAR:
            out[i] = (found << TIE_BITS) | tie[n]


@outer
def _fill(classes: Classes, scores: Scores, scoring: Scoring, c: int, raylet: bool) -> None:
    """All keys of a class. Neighbours in the same state, the many of an idle pool, are scored once."""
    state, node, todo, found, tie = scores.state, scores.node, scores.todo, scores.found, scoring.tie
    count, last = 0, -1
    for s in range(len(node)):
        n = node[s]
        if n < 0 or not classes.allowed[c, n]:
            continue
        same = last >= 0 and scoring.kind != rules.RANDOM
        if same:
            for j in range(state.shape[1]):
                if state[n, j] != state[last, j]:
                    same = False
                    break
        if not same:
            todo[count] = n
            count += 1
            last = n
    _keys(classes, scores, scoring, c, raylet, count)
    keys, blocks = scores.key, scores.block
    at = -1
    for b in range(blocks.shape[1]):
        least = FAR
        for s in range(b * BLOCK, b * BLOCK + BLOCK):
            n, key = node[s], FAR
            if n >= 0 and classes.allowed[c, n]:
                if at + 1 < count and todo[at + 1] == n:
                    at += 1
                if found[at] != FAR:
                    key = (found[at] & ~_TIE_MASK) | tie[n]
            keys[c, s] = key
            least = min(least, key)
        blocks[c, b] = least


@outer
def _refresh(classes: Classes, scores: Scores, scoring: Scoring, c: int, raylet: bool) -> None:
    """Bring the keys of a class up to date with the nodes."""
    now, since = scores.clock[0], scores.seen[c, 0]
    scores.seen[c, 0] = now
    if since < 0:
        _fill(classes, scores, scoring, c, raylet)
        return
    log, changed, todo, count = scores.log, scores.changed, scores.todo, 0
    if now - since > len(log) // 2:
        for n in range(len(changed)):
            if changed[n] > since:
                todo[count] = n
                count += 1
    else:
        for at in range(since, now):
            n = log[at % len(log)]
            if changed[n] == at + 1:  # else it comes once more later in the log
                todo[count] = n
                count += 1
    _keys(classes, scores, scoring, c, raylet, count)
    slot, keys, blocks, found = scores.slot, scores.key, scores.block, scores.found
    for i in range(count):
        s, key = slot[todo[i]], found[i]
        b, old = s // BLOCK, keys[c, s]
        keys[c, s] = key
        if key < blocks[c, b]:
            blocks[c, b] = key
        elif old == blocks[c, b] and key > old:
            least = FAR
            for j in range(b * BLOCK, b * BLOCK + BLOCK):
                least = min(least, keys[c, j])
            blocks[c, b] = least


@outer
def _restage(scores: Scores, scoring: Scoring) -> None:
    """When what is free in the pool calls for another stage of the tables, forget all scores."""
    stages, clock, stage = scoring.stages, scores.clock, 0
    while stage < len(stages) and clock[2] <= stages[stage]:
        stage += 1
    if stage == clock[3]:
        return
    clock[3] = stage
    rows = len(scoring.value) // (len(stages) + 1)
    state, base, seen = scores.state, scores.base, scores.seen
    for n in range(len(state)):
        state[n, rules.ROW] = stage * rows + state[n, rules.MODEL]
        base[n, 1] = 0
    for c in range(len(seen)):
        seen[c, 0] = -1


@outer
def devices_for(classes: Classes, scores: Scores, scoring: Scoring, c: int, n: int, raylet: bool) -> int:
    """Mask of the devices a task of class `c`, known to fit on node `n`, takes there."""
    milli = classes.milli[c]
    if milli >= WHOLE:
        return int(rules.lowest_idle(scores.state, n, milli // WHOLE))
    if milli == 0:
        return 0
    if scores.base[n, 1] == 0:  # its score is that of a neighbour in the same state
        _value(scores, scoring, n)
    device = _score(
        scores.state,
        scores.base,
        scores.sums,
        scoring.value,
        scoring.price,
        scoring.typical,
        scoring.levels,
        scoring.steps,
        scoring.kind,
        scoring.salt,
        c,
        n,
        milli,
        classes.gpu_mib[c],
        classes.cpu[c],
        classes.mib[c],
        raylet,
    )[1]
    return 1 << int(device)


@outer
def find(
    nodes: Nodes, classes: Classes, scores: Scores, scoring: Scoring, c: int, models: int, raylet: bool
) -> tuple[int, int]:
    """(node, device mask) for one task of class `c`, (-1, 0) when nothing fits.

    `models` is a bit mask of the GPU model rows that may be used, -1 = all. A cache serves one `scoring` and one
    device rule. Ties go to the lowest `scoring.tie`.
    """
    if scores.seen[c, 1] >= scores.clock[1]:
        return -1, 0
    if len(scoring.stages) > 0:
        _restage(scores, scoring)
    if scores.seen[c, 0] != scores.clock[0]:
        _refresh(classes, scores, scoring, c, raylet)
    block, block_model = scores.block, scores.block_model
    best, least = FAR, FAR
    for b in range(len(block_model)):
        key = block[c, b]
        least = min(least, key)
        if key < best and (models < 0 or (models >> block_model[b]) & 1):
            best = key
    if best != FAR:
        n = scores.by_tie[best & _TIE_MASK]
        return int(n), devices_for(classes, scores, scoring, c, n, raylet)
    if least == FAR and (not raylet or classes.milli[c] == 0 or classes.milli[c] >= WHOLE):
        # Taking never makes room for it; under the raylet's rule it may, by moving the device it would use.
        scores.seen[c, 1] = scores.clock[0]
    return -1, 0


@outer
def fresh(classes: Classes, scores: Scores, scoring: Scoring, c: int, raylet: bool) -> None:
    """Make the keys of class `c` those of the pool as it is now."""
    if len(scoring.stages) > 0:
        _restage(scores, scoring)
    if scores.seen[c, 0] != scores.clock[0]:
        _refresh(classes, scores, scoring, c, raylet)


@outer
def find_among(
    nodes: Nodes,
    classes: Classes,
    scores: Scores,
    scoring: Scoring,
    c: int,
    models: int,
    raylet: bool,
    among: Bool,
) -> tuple[int, int]:
    """`find` over the nodes marked in `among` only: O(N)."""
    fresh(classes, scores, scoring, c, raylet)
    best = FAR
    for n in range(len(among)):
        if among[n]:
            key = scores.key[c, scores.slot[n]]
            if key < best and (models < 0 or (models >> nodes.model[n]) & 1):
                best = key
    if best == FAR:
        return -1, 0
    n = scores.by_tie[best & _TIE_MASK]
    return int(n), devices_for(classes, scores, scoring, c, n, raylet)


@outer
def take(nodes: Nodes, classes: Classes, scores: Scores, c: int, n: int, mask: int, sign: int) -> int:
    """Take (sign -1) or give back (+1) one task of class `c`; returns the MiB held on each of its devices."""
    milli = classes.milli[c]
    mem = np.int64(0)
    if milli > 0:
        mem = rules.share(milli, classes.gpu_mib[c], nodes.device_mib[n])
        for d in range(nodes.devices[n]):
            if mask >> d & 1:
                nodes.milli_free[n, d] += sign * min(milli, WHOLE)
                nodes.mem_free[n, d] += sign * mem
    nodes.cpu_free[n] += sign * classes.cpu[c]
    nodes.mib_free[n] += sign * classes.mib[c]
    touch(nodes, scores, n, sign > 0)
    return int(mem)


@outer
def touch(nodes: Nodes, scores: Scores, n: int, room: bool) -> None:
    """Say that a node changed. Whoever writes `Nodes` by hand calls this; `room` when something became free."""
    free = scores.state[n, rules.FREE]
    _copy(nodes, scores.state, n)
    scores.clock[2] += scores.state[n, rules.FREE] - free
    at = scores.clock[0]
    scores.log[at % len(scores.log)] = n
    scores.clock[0] = scores.changed[n] = at + 1
    scores.base[n, 1] = 0
    if room:
        scores.clock[1] = at + 1
