"""Which running tasks to move so that more can be packed (numba): defragmentation ahead of need.

One move takes a task from its place and puts it where the pool's potential falls least (`packing.values`: an estimate
of what can still be packed). Its gain is what the potential rises by in all. The moves are made one after another, the
greatest gain first, on the working copy: each finds the pool as those before it left it, so a list of moves that is
carried out in order fits at every step, the new place even before the old one is left. A task moves once at most.

A task of a gang goes where its domain, its spread and its gang's preference allow, and nobody to a device that a power
cap forbids beside those in use, its own old one among them. The gang restarts as a whole: it has to be worth that.

The gain of a task is its release less the cost of its new place. Releases are kept, and found again only where a node
changed. The cost of the cheapest place anywhere is known per class, so that most tasks are dismissed by one
subtraction.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moorage.kernels.domains import count, may_take
from moorage.kernels.gang import Pool
from moorage.kernels.jit import inner, outer
from moorage.kernels.lifting import TIE_MASK, Scratch, least_key, least_key_away, lift
from moorage.kernels.placing import devices_for, find_among, fresh, take
from moorage.kernels.placing_scores import FAR, TIE_BITS
from moorage.kernels.pool import ANY, FIRST, PREFERRED, REQUIRED

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


class Tasks(NamedTuple):
    """W tasks of running jobs. `node`, `mask` and `may` are changed as tasks move."""

    klass: I64
    node: I64
    mask: I64
    may: I64
    """[W] 0 = moves no more; 1 = to a node of its GPU model; 2 = to any that its class allows."""
    release: I64
    """[W] scratch: how the potential rises when it leaves."""
    seen: I64
    """[W] scratch: when its node had last changed when that was found, -1 = never."""
    job: I64
    """[W] whose: a row of `Gangs`."""
    worker: Bool
    """[W] counts for spread; a head does not."""


class Gangs(NamedTuple):
    """J jobs, of one task or of several."""

    first: I64
    """[J + 1] their tasks are rows `first[j]..first[j+1]`."""
    milli: I64
    """[J] of all their tasks."""
    stopped: Bool
    """[J] an output: one of its tasks moves, and so all of it restarts."""


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


@inner
def _bound_place(
    pool: Pool, tasks: Tasks, gangs: Gangs, scratch: Scratch, t: int, least: np.int64
) -> np.int64:
    """As `_place` under all limits: where the rest of the gang is where it is, and the old place is held until the new
    one is."""
    nodes, classes, scores, limits = pool.nodes, pool.classes, pool.scores, pool.limits
    n, c, best = tasks.node[t], tasks.klass[t], np.int64(FAR)
    if _place(pool, tasks, scratch, t, least) == FAR:
        return best  # it bounds what can be gained; and the release is known now
    required, near, one = limits.rules[c, REQUIRED], limits.rules[c, PREFERRED], limits.rules[c, FIRST]
    if one < 0:
        one = c
    first, end = gangs.first[tasks.job[t]], gangs.first[tasks.job[t] + 1]
    for other in range(first, end):
        if tasks.worker[other] and other != t:
            count(limits, c, tasks.node[other], 1)
    fresh(classes, scores, pool.scoring, one, pool.raylet)
    for to in range(len(nodes.model)):
        key = scores.key[one, scores.slot[to]]
        if key >= best or to == n or tasks.release[t] - (key >> TIE_BITS) <= least:
            continue
        if required >= 0 and limits.domain[required, to] != limits.domain[required, n]:
            continue
        if near >= 0 and limits.domain[near, to] != limits.domain[near, n]:
            continue
        if tasks.may[t] == 1 and nodes.model[to] != nodes.model[n]:
            continue
        if tasks.may[t] == 1 and nodes.device_mib[to] != nodes.device_mib[n]:
            continue
        mask = devices_for(classes, scores, pool.scoring, one, to, pool.raylet)
        if may_take(pool, c, to, mask, tasks.worker[t]):
            best = key
    for other in range(first, end):
        if tasks.worker[other] and other != t:
            count(limits, c, tasks.node[other], -1)
    return best


@outer
def defragment(
    pool: Pool,
    tasks: Tasks,
    gangs: Gangs,
    scratch: Scratch,
    among: Bool,
    budget: int,
    milli: int,
    least: int,
    out: Moved,
) -> int:
    """Make the moves: at most `budget` of them, each with a gain above `least` for every task that restarts for it, and
    of jobs with `milli` milli-GPU in all.

    `pool.scoring` is the potential rule, `among[N]` all false, `out` has `budget` entries. Returns how many were made.
    Costs O(W) a move; O(WN) where limits beyond single nodes bind.
    """
    nodes, classes, scores, made = pool.nodes, pool.classes, pool.scores, 0
    while made < budget:
        best, task, place = np.int64(least), -1, np.int64(FAR)
        for t in range(len(tasks.klass)):
            j, c = tasks.job[t], tasks.klass[t]
            if tasks.may[t] == 0 or (not gangs.stopped[j] and gangs.milli[j] > milli):
                continue
            restart = 1 if gangs.stopped[j] else gangs.first[j + 1] - gangs.first[j]
            enough = max(best, np.int64(least) * restart)
            if pool.limits.on and (pool.limits.power_by >= 0 or pool.limits.rules[c, ANY] > 0):
                key = _bound_place(pool, tasks, gangs, scratch, t, enough)
            else:
                key = _place(pool, tasks, scratch, t, enough)
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
        if not gangs.stopped[tasks.job[task]]:
            milli -= gangs.milli[tasks.job[task]]
            gangs.stopped[tasks.job[task]] = True
        out.task[made], out.node[made], out.mask[made], out.gain[made] = task, to, mask, best
        made += 1
    return made
