"""Which running tasks to move so that more can be packed (numba): defragmentation ahead of need.

One move takes a task from its place and puts it where the pool's potential falls least (`packing.values`: an estimate
of what can still be packed). Its gain is what the potential rises by in all. The moves are made one after another, the
greatest gain first, on the working copy: each finds the pool as those before it left it, so a list of moves that is
carried out in order fits at every step, the new place even before the old one is left. A task moves once at most.

The gain of a task is its release less the cost of its new place. Releases are kept, and found again only where a node
changed. The cost of the cheapest place anywhere is known per class, so that most tasks are dismissed by one
subtraction.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moorage.kernels.gang import Pool
from moorage.kernels.jit import inner, outer
from moorage.kernels.lifting import TIE_MASK, Scratch, least_key, least_key_away, lift
from moorage.kernels.placing import find_among, take
from moorage.kernels.placing_scores import FAR, TIE_BITS

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


class Tasks(NamedTuple):
    """W tasks of running jobs of one task each. `node`, `mask` and `may` are changed as tasks move."""

    klass: I64
    node: I64
    mask: I64
    may: I64
    """[W] 0 = moves no more; 1 = to a node of its GPU model; 2 = to any that its class allows."""
    release: I64
    """[W] scratch: how the potential rises when it leaves."""
    seen: I64
    """[W] scratch: when its node had last changed when that was found, -1 = never."""


class Moved(NamedTuple):
    """The moves, in order. B entries."""

    task: I64
    node: I64
    mask: I64
    gain: I64
    """In the units of the potential's tables."""


@inner
def _place(pool: Pool, tasks: Tasks, scratch: Scratch, t: int, least: np.int64) -> np.int64:
    """The key of the best new place of task `t`; FAR when it gains no more than `least` there, or there is none."""
    scores, nodes, n, c = pool.scores, pool.nodes, tasks.node[t], tasks.klass[t]
    if least_key(pool, scratch, c) == FAR:
        return np.int64(FAR)
    if tasks.seen[t] != scores.changed[n]:
        tasks.release[t] = lift(pool, scratch, c, n, tasks.mask[t])
        tasks.seen[t] = scores.changed[n]
    if tasks.release[t] - (scratch.best[c] >> TIE_BITS) <= least:
        return np.int64(FAR)
    model = np.int64(-1) if tasks.may[t] > 1 else nodes.model[n]
    key = least_key_away(pool, c, n, model)
    if key == FAR or tasks.release[t] - (key >> TIE_BITS) <= least:
        return np.int64(FAR)
    if tasks.may[t] == 1 and nodes.device_mib[scores.by_tie[key & TIE_MASK]] != nodes.device_mib[n]:
        return np.int64(FAR)
    return key


@outer
def defragment(
    pool: Pool, tasks: Tasks, scratch: Scratch, among: Bool, budget: int, milli: int, least: int, out: Moved
) -> int:
    """Make the moves: at most `budget` of them and `milli` milli-GPU in all, each with a gain above `least`.

    `pool.scoring` is the potential rule, `among[N]` all false, `out` has `budget` entries. Returns how many were made.
    Costs O(W) a move.
    """
    nodes, classes, scores, made = pool.nodes, pool.classes, pool.scores, 0
    while made < budget:
        best, task, place = np.int64(least), -1, np.int64(FAR)
        for t in range(len(tasks.klass)):
            if tasks.may[t] == 0 or classes.milli[tasks.klass[t]] > milli:
                continue
            key = _place(pool, tasks, scratch, t, best)
            if key != FAR:
                best, task, place = tasks.release[t] - (key >> TIE_BITS), t, key
        if task < 0:
            break
        to, c = scores.by_tie[place & TIE_MASK], tasks.klass[task]
        among[to] = True
        _, mask = find_among(nodes, classes, scores, pool.scoring, c, -1, pool.raylet, among)
        among[to] = False
        take(nodes, classes, scores, c, tasks.node[task], tasks.mask[task], 1)
        take(nodes, classes, scores, c, to, mask, -1)
        tasks.node[task], tasks.mask[task], tasks.may[task] = to, mask, 0
        milli -= classes.milli[c]
        out.task[made], out.node[made], out.mask[made], out.gain[made] = task, to, mask, best
        made += 1
    return made
