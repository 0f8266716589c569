"""What `gang.place_within` must answer for a bound gang, written for reading rather than speed."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from moorage.kernels import placing_reference
from moorage.kernels.placing_scores import BEST_FIT, WHOLE, Nodes, share
from moorage.kernels.pool import FIRST, PREFERRED, REQUIRED, SPREAD, SPREAD_BY, Pool

Placed = list[tuple[int, int]]


def place(pool: Pool, head: int, worker: int, workers: int, least: int) -> Placed | None:
    """(node, device mask) by task, head first; None when fewer than `least` workers find room. Changes nothing."""
    heads = [head] if head >= 0 else []
    tasks = [*heads, *[worker] * workers]
    kind = worker if workers else head
    required = int(pool.limits.rules[kind, REQUIRED])
    everything = range(len(pool.nodes.model))
    if required < 0:
        placed = _near(pool, tasks, len(heads), kind, everything)
    else:
        placed = []
        for domain in _in_turn(pool, kind, required, everything, max(1, workers)):
            tried = _near(pool, tasks, len(heads), kind, _members(pool, required, domain, everything))
            if len(tried) > len(placed):
                placed = tried
    return placed if len(placed) >= len(heads) + least else None


def _in_turn(pool: Pool, kind: int, key: int, among: Iterable[int], enough: int) -> list[int]:
    """Domains from the smallest that holds enough on, then from the largest down; ties by their number."""
    among = list(among)
    room = {
        d: sum(_holds(pool, kind, n) for n in _members(pool, key, d, among))
        for d in range(int(pool.limits.domains[key]))
    }
    return sorted(room, key=lambda d: (room[d] < enough, room[d] if room[d] >= enough else -room[d], d))


def _near(pool: Pool, tasks: list[int], heads: int, kind: int, among: Iterable[int]) -> Placed:
    """All tasks that find room on these nodes, in few domains of the preferred key."""
    among, placed = list(among), Placed()
    key = int(pool.limits.rules[kind, PREFERRED])
    if key >= 0:
        room = {
            d: sum(_holds(pool, kind, n) for n in _members(pool, key, d, among))
            for d in range(int(pool.limits.domains[key]))
        }
        room = {d: many for d, many in room.items() if many}
        while room and len(placed) < len(tasks):
            rest = len(tasks) - max(len(placed), heads)
            enough = [d for d in room if room[d] >= rest]
            d = min(enough, key=lambda d: (room[d], d)) if enough else min(room, key=lambda d: (-room[d], d))
            del room[d]
            placed = _fill(pool, tasks, heads, placed, _members(pool, key, d, among))
    return _fill(pool, tasks, heads, placed, among)


def _fill(pool: Pool, tasks: list[int], heads: int, placed: Placed, among: Iterable[int]) -> Placed:
    """Task by task where each scores best, until one finds no room."""
    among, placed = list(among), list(placed)
    while len(placed) < len(tasks):
        c = tasks[len(placed)]
        spreads = len(placed) >= heads
        first = int(pool.limits.rules[c, FIRST])
        found = (-1, 0)
        for one in (first, c) if first >= 0 else (c,):
            found = _best(pool, one, tasks, heads, placed, among, spreads)
            if found[0] >= 0:
                break
        if found[0] < 0:
            return placed
        placed.append(found)
    return placed


def _best(
    pool: Pool, c: int, tasks: list[int], heads: int, placed: Placed, among: list[int], spreads: bool
) -> tuple[int, int]:
    nodes = _after(pool, tasks, placed)
    allowed = np.zeros_like(pool.classes.allowed)
    for n in among:
        if not pool.classes.allowed[c, n] or (spreads and not _may_spread(pool, c, placed[heads:], n)):
            continue
        alone = np.zeros_like(allowed)
        alone[c, n] = True
        at, mask = placing_reference.find(
            nodes, pool.classes._replace(allowed=alone), pool.scoring, c, -1, pool.raylet
        )
        allowed[c, n] = at == n and _powered(pool, nodes, n, mask)
    return placing_reference.find(
        nodes, pool.classes._replace(allowed=allowed), pool.scoring, c, -1, pool.raylet
    )


def _may_spread(pool: Pool, c: int, workers: Placed, n: int) -> bool:
    most, by = int(pool.limits.rules[c, SPREAD]), int(pool.limits.rules[c, SPREAD_BY])
    if not most:
        return True
    if by < 0:
        return sum(at == n for at, _ in workers) < most
    of = pool.limits.domain[by]
    return bool(of[n] >= 0 and sum(of[at] == of[n] for at, _ in workers) < most)


def _powered(pool: Pool, nodes: Nodes, n: int, mask: int) -> bool:
    limits = pool.limits
    if limits.power_by < 0 or limits.domain[limits.power_by, n] < 0:
        return True
    p = limits.domain[limits.power_by, n]
    more = sum(mask >> d & 1 and int(nodes.milli_free[n, d]) == WHOLE for d in range(int(nodes.devices[n])))
    drawn = sum(
        int(limits.watts[m]) * sum(nodes.milli_free[m, d] < WHOLE for d in range(int(nodes.devices[m])))
        for m in range(len(nodes.model))
        if limits.domain[limits.power_by, m] == p
    )
    watts = more * int(limits.watts[n])
    return bool(watts == 0 or drawn + watts <= limits.cap[p])


def _holds(pool: Pool, c: int, n: int) -> int:
    """How many tasks of the class fit on a node, put there one by one."""
    alone = np.zeros_like(pool.classes.allowed)
    alone[c, n] = pool.classes.allowed[c, n]
    classes, fits = pool.classes._replace(allowed=alone), 0
    while fits < 200:
        nodes = _after(pool, [c] * fits, [(n, mask) for mask in _masks(pool, c, n, fits)])
        if not _may_spread(pool, c, [(n, 0)] * fits, n):
            return fits
        scoring = pool.scoring._replace(kind=BEST_FIT)
        if placing_reference.find(nodes, classes, scoring, c, -1, False)[0] < 0:
            return fits
        fits += 1
    return fits


def _masks(pool: Pool, c: int, n: int, count: int) -> list[int]:
    alone = np.zeros_like(pool.classes.allowed)
    alone[c, n] = True
    classes, masks = pool.classes._replace(allowed=alone), list[int]()
    for _ in range(count):
        nodes = _after(pool, [c] * len(masks), [(n, mask) for mask in masks])
        scoring = pool.scoring._replace(kind=BEST_FIT)
        masks.append(placing_reference.find(nodes, classes, scoring, c, -1, False)[1])
    return masks


def _members(pool: Pool, key: int, domain: int, among: Iterable[int]) -> list[int]:
    return [n for n in among if pool.limits.domain[key, n] == domain]


def _after(pool: Pool, tasks: list[int], placed: Placed) -> Nodes:
    """The pool with these tasks in their places."""
    nodes = Nodes(*(column.copy() for column in pool.nodes))
    for c, (n, mask) in zip(tasks, placed, strict=False):
        milli = int(pool.classes.milli[c])
        mem = share(milli, int(pool.classes.gpu_mib[c]), int(nodes.device_mib[n])) if milli else 0
        for d in range(int(nodes.devices[n])):
            if mask >> d & 1:
                nodes.milli_free[n, d] -= min(milli, WHOLE)
                nodes.mem_free[n, d] -= mem
        nodes.cpu_free[n] -= pool.classes.cpu[c]
        nodes.mib_free[n] -= pool.classes.mib[c]
    return nodes
