"""Where a task of a bound gang may go next (numba): topology domains, spread, and the power of a rack.

Domains are chosen as Kueue's Topology-Aware Scheduling does: the one with the least room that still holds the gang, and
where none does the ones with most, so that few are used. Power is what the devices in use are rated for: it is summed
from the nodes of a rack when asked, so that nothing has to be undone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moorage.kernels import placing_scores
from moorage.kernels.jit import small
from moorage.kernels.placing import devices_for, fresh
from moorage.kernels.placing_scores import FAR
from moorage.kernels.pool import ANY, SPREAD, SPREAD_BY, Limits, Pool

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

WHOLE = 1000


@small
def bound(limits: Limits, head: int, worker: int) -> bool:
    """Whether a gang of these classes is bound by anything beyond its tasks' own nodes."""
    if not limits.on:
        return False
    if limits.power_by >= 0:
        return True
    return bool(
        (head >= 0 and limits.rules[head, ANY] > 0) or (worker >= 0 and limits.rules[worker, ANY] > 0)
    )


@small
def draw(pool: Pool, p: int) -> np.int64:
    """W that the devices in use in domain `p` of the power key are rated for."""
    nodes, limits, used = pool.nodes, pool.limits, np.int64(0)
    for i in range(limits.start[limits.power_by, p], limits.start[limits.power_by, p + 1]):
        n = limits.member[limits.power_by, i]
        used += limits.watts[n] * (nodes.devices[n] - pool.scores.state[n, placing_scores.IDLE])
    return used


@small
def powered(pool: Pool, n: int, mask: int) -> bool:
    """Whether the power cap over node `n` allows that devices `mask` come into use, beside those that are."""
    limits = pool.limits
    if limits.power_by < 0 or mask == 0:
        return True
    p = limits.domain[limits.power_by, n]
    if p < 0:
        return True
    more = np.int64(0)
    for d in range(pool.nodes.devices[n]):
        if mask >> d & 1 and pool.nodes.milli_free[n, d] == WHOLE:
            more += limits.watts[n]
    return more == 0 or draw(pool, p) + more <= limits.cap[p]


@small
def within_cap(pool: Pool, n: int) -> bool:
    """Whether the devices in use around node `n` are within their power cap."""
    limits = pool.limits
    if limits.power_by < 0:
        return True
    p = limits.domain[limits.power_by, n]
    return bool(p < 0 or draw(pool, p) <= limits.cap[p])


@small
def count(limits: Limits, c: int, n: int, sign: int) -> None:
    """Count a worker of class `c` on node `n` (or, with -1, no longer)."""
    if limits.rules[c, SPREAD] > 0:
        by = limits.rules[c, SPREAD_BY]
        limits.tally[n if by < 0 else limits.domain[by, n]] += sign


@small
def _spare(limits: Limits, c: int, n: int) -> np.int64:
    """How many more workers may be on node `n` before there are too many on it, or in its domain."""
    most = limits.rules[c, SPREAD]
    if most == 0:
        return np.int64(FAR)
    by = limits.rules[c, SPREAD_BY]
    at = n if by < 0 else limits.domain[by, n]
    return most - limits.tally[at] if at >= 0 else np.int64(0)


@small
def holds(pool: Pool, c: int, n: int) -> np.int64:
    """How many tasks of class `c` node `n` has room for together. Under the raylet's rule memory may allow fewer."""
    nodes, classes = pool.nodes, pool.classes
    if not classes.allowed[c, n]:
        return np.int64(0)
    milli, cpu, mib = classes.milli[c], classes.cpu[c], classes.mib[c]
    fit = _spare(pool.limits, c, n)
    if cpu > 0:
        fit = min(fit, nodes.cpu_free[n] // cpu)
    if mib > 0:
        fit = min(fit, nodes.mib_free[n] // mib)
    if fit <= 0 or milli == 0:
        return min(max(fit, np.int64(0)), np.int64(2**40))
    if milli < WHOLE:
        mem, room = placing_scores.share(milli, classes.gpu_mib[c], nodes.device_mib[n]), np.int64(0)
        for d in range(nodes.devices[n]):
            each = nodes.milli_free[n, d] // milli
            room += min(each, nodes.mem_free[n, d] // mem) if mem > 0 else each
        return min(fit, room)
    if classes.gpu_mib[c] > nodes.device_mib[n]:
        return np.int64(0)
    return min(fit, pool.scores.state[n, placing_scores.IDLE] * WHOLE // milli)


@small
def may_take(pool: Pool, c: int, n: int, mask: int, worker: bool) -> bool:
    """Whether spread (of a worker) and power allow a task of class `c` on devices `mask` of node `n`."""
    return (not worker or _spare(pool.limits, c, n) > 0) and powered(pool, n, mask)


@small
def best_of(
    pool: Pool, c: int, models: int, worker: bool, where: tuple[int, int, int, int, int]
) -> tuple[int, int]:
    """`find` among `member[row, low:high]` where they are in `domain` of `key` (-1 = all) and no limit forbids them."""
    nodes, classes, scores, limits = pool.nodes, pool.classes, pool.scores, pool.limits
    row, low, high, key, domain = where
    if scores.seen[c, 1] >= scores.clock[1]:
        return -1, 0
    fresh(classes, scores, pool.scoring, c, pool.raylet)
    best, at, mask = FAR, -1, 0
    for i in range(low, high):
        n = limits.member[row, i]
        score = scores.key[c, scores.slot[n]]
        if score >= best or not (models < 0 or (models >> nodes.model[n]) & 1):
            continue
        if key >= 0 and limits.domain[key, n] != domain:
            continue
        devices = devices_for(classes, scores, pool.scoring, c, n, pool.raylet)
        if may_take(pool, c, n, devices, worker):
            best, at, mask = score, n, devices
    return at, mask


@small
def smallest(limits: Limits, level: int, key: int, enough: int, least: int) -> int:
    """The domain of `key` with the least room (in `hold[level]`) that has room for `enough`; where there is none, the
    one with most, if that is `least` at least; -1 = none. Ties go to the first. It counts as tried then, and is not
    found again."""
    hold, tried, best = limits.hold, limits.tried, -1
    for d in range(limits.domains[key]):
        if tried[level, d] or hold[level, d] < least:
            continue
        if best < 0:
            best = d
        elif hold[level, best] >= enough:
            if enough <= hold[level, d] < hold[level, best]:
                best = d
        elif hold[level, d] > hold[level, best]:
            best = d
    if best >= 0:
        tried[level, best] = True
    return best
