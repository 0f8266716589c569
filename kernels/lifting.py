"""What-if of one running task elsewhere (numba): its node without it, and the cheapest place on any other.

A node without the task is a copy of its row, so nothing in the cache of `placing` changes by asking. The cheapest place
elsewhere is read from that cache: the least key of each block, and of the block with the task's own node key by key.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moorage.kernels import placing_scores as rules
from moorage.kernels.gang import Pool
from moorage.kernels.jit import inner
from moorage.kernels.placing import BLOCK, _score, _value, find
from moorage.kernels.placing_scores import FAR, TIE_BITS, WHOLE

I64 = npt.NDArray[np.int64]

TIE_MASK = np.int64((1 << TIE_BITS) - 1)


class Scratch(NamedTuple):
    """C classes. `scratch_for` makes one."""

    state: I64
    """[1, width of `Scores.state`]: a node as it would be."""
    base: I64
    """[1, 2]: its value, for rules that score by its fall."""
    sums: I64
    """As `Scores.sums`, for that one node."""
    best: I64
    """[C] the least key of a class on any node, FAR = fits nowhere."""
    asked: I64
    """[C] the cache's clock when that was found, -1 = never."""


def scratch_for(pool: Pool) -> Scratch:
    """Costs O(C)."""
    sums, classes = pool.scores.sums, len(pool.classes.milli)
    rows = len(sums) if pool.scoring.kind == rules.FGD else 1
    return Scratch(
        state=np.zeros((1, pool.scores.state.shape[1]), np.int64),
        base=np.zeros((1, 2), np.int64),
        sums=np.zeros((rows, sums.shape[1]), np.int64),
        best=np.full(classes, FAR, np.int64),
        asked=np.full(classes, -1, np.int64),
    )


@inner
def lift(pool: Pool, scratch: Scratch, c: int, n: int, mask: int) -> np.int64:
    """Node `n` into the scratch row, without one task of class `c` on the devices of `mask`; its value too.

    Returns how much the node's value rises by it, 0 for rules that know no value.
    """
    scores, scoring, classes, state = pool.scores, pool.scoring, pool.classes, scratch.state
    rows = scores.state
    for j in range(rows.shape[1]):
        state[0, j] = rows[n, j]
    stride = (rows.shape[1] - rules.DEVICES) // 2
    milli = classes.milli[c]
    if milli > 0:
        each = min(milli, np.int64(WHOLE))
        mem = rules.share(milli, classes.gpu_mib[c], rows[n, rules.DEVICE_MIB])
        for d in range(rows[n, rules.COUNT]):
            if mask >> d & 1:
                state[0, rules.DEVICES + d] += each
                state[0, rules.DEVICES + stride + d] += mem
                state[0, rules.FREE] += each
                if state[0, rules.DEVICES + d] == WHOLE:
                    state[0, rules.IDLE] += 1
    state[0, rules.CPU] += classes.cpu[c]
    state[0, rules.MIB] += classes.mib[c]
    if scoring.kind == rules.POTENTIAL:
        if scores.base[n, 1] == 0:
            _value(scores, scoring, n)
        scratch.base[0, 0] = rules.node_worth(state, 0, scoring.value, scoring.price, scratch.sums)
        return scratch.base[0, 0] - scores.base[n, 0]
    if scoring.kind == rules.FGD:
        scratch.base[0, 0] = rules.fragmentation(
            state, 0, state[0, rules.CPU], scoring.typical, scoring.levels, scratch.sums
        )
    return np.int64(0)


@inner
def cost_on_lifted(pool: Pool, scratch: Scratch, c: int) -> np.int64:
    """The score of class `c` on the node in the scratch row; FAR when it does not fit there."""
    classes, scoring, state = pool.classes, pool.scoring, scratch.state
    if state[0, rules.CPU] < classes.cpu[c] or state[0, rules.MIB] < classes.mib[c]:
        return np.int64(FAR)
    found = _score(
        state,
        scratch.base,
        scratch.sums,
        scoring.value,
        scoring.price,
        scoring.typical,
        scoring.levels,
        scoring.steps,
        scoring.kind,
        scoring.salt,
        c,
        0,
        classes.milli[c],
        classes.gpu_mib[c],
        classes.cpu[c],
        classes.mib[c],
        pool.raylet,
    )[0]
    return np.int64(found)


@inner
def least_key(pool: Pool, scratch: Scratch, c: int) -> np.int64:
    """The key of the cheapest place of class `c` on any node, FAR = none."""
    scores = pool.scores
    if scratch.asked[c] != scores.clock[0]:
        scratch.best[c] = FAR
        if find(pool.nodes, pool.classes, scores, pool.scoring, c, -1, pool.raylet)[0] >= 0:
            for b in range(len(scores.block_model)):
                scratch.best[c] = min(scratch.best[c], scores.block[c, b])
        scratch.asked[c] = scores.clock[0]
    return scratch.best[c]


@inner
def least_key_away(pool: Pool, c: int, away: int, model: int) -> np.int64:
    """The same on another node than `away`, of GPU model row `model` (-1 = any). After `least_key` of the class."""
    scores, best = pool.scores, np.int64(FAR)
    slot = scores.slot[away]
    for b in range(len(scores.block_model)):
        if scores.block[c, b] >= best or (model >= 0 and scores.block_model[b] != model):
            continue
        if b != slot // BLOCK:
            best = scores.block[c, b]
            continue
        for s in range(b * BLOCK, b * BLOCK + BLOCK):
            if s != slot:
                best = min(best, scores.key[c, s])
    return best
