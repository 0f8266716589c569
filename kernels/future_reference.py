"""What `future` must answer, in array arithmetic rather than by walking: every time is tried on its own.

An event gives back (a job ends) or takes (a reservation begins) one task's share of one node. Events are kept in order
of time, at equal times what is given back first. `least_free` answers how much is free all through a span of time:
that is what a job which runs for that span may be placed on. E events, N nodes, G devices of a node.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moorage.kernels.gang import place_within
from moorage.kernels.placing import fresh_scores
from moorage.kernels.placing_scores import Classes, Nodes
from moorage.kernels.pool import Pool

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

UNLIMITED = 2**62
WHOLE = 1000
_FREE = ("milli_free", "mem_free", "cpu_free", "mib_free")
"""The columns of `Nodes` that change."""


class Tasks(NamedTuple):
    """Tasks that come or go. All int64[E]."""

    at: I64
    """When, in ns."""
    sign: I64
    """1 = gives back, -1 = takes."""
    node: I64
    mask: I64
    """The devices, as bits."""
    klass: I64


class Events(NamedTuple):
    """The same in order, as what each changes."""

    at: I64
    sign: I64
    node: I64
    milli: I64
    """[E,G]"""
    mem: I64
    """[E,G]"""
    cpu: I64
    mib: I64


def joined(parts: list[Tasks]) -> Tasks:
    return Tasks(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def in_order(tasks: Tasks, nodes: Nodes, classes: Classes) -> Events:
    """Sort by time, what is given back first, and work out what each task holds."""
    order = np.lexsort((-tasks.sign, tasks.at))
    at, sign, node, mask, c = (column[order] for column in tasks)
    held = (mask[:, None] >> np.arange(nodes.milli_free.shape[1])[None, :]) & 1
    milli, device_mib = classes.milli[c], nodes.device_mib[node]
    asked = classes.gpu_mib[c]
    share = np.where(milli >= WHOLE, device_mib, np.where(asked > 0, asked, milli * device_mib // WHOLE))
    share[milli == 0] = 0
    each = sign * np.minimum(milli, WHOLE)
    return Events(
        at,
        sign,
        node,
        held * each[:, None],
        held * (sign * share)[:, None],
        sign * classes.cpu[c],
        sign * classes.mib[c],
    )


def copied(nodes: Nodes) -> Nodes:
    """A working copy of what is free."""
    return nodes._replace(**{name: getattr(nodes, name).copy() for name in _FREE})


def apply(events: Events, first: int, last: int, nodes: Nodes) -> None:
    """Let events `first..last` happen."""
    if last <= first:
        return
    span = slice(first, last)
    node = events.node[span]
    np.add.at(nodes.milli_free, node, events.milli[span])
    np.add.at(nodes.mem_free, node, events.mem[span])
    np.add.at(nodes.cpu_free, node, events.cpu[span])
    np.add.at(nodes.mib_free, node, events.mib[span])


def least_free(events: Events, nodes: Nodes, begin: int, end: int) -> Nodes:
    """What of each device and node is free at every moment of [begin, end), by the events and what is free now."""
    free = copied(nodes)
    done = int(np.searchsorted(events.at, begin, "right"))
    apply(events, 0, done, free)
    last = int(np.searchsorted(events.at, end, "left"))
    takes = np.unique(events.at[done:last][events.sign[done:last] < 0])
    if not len(takes):
        return free
    least = copied(free)
    for at in takes.tolist():
        upto = int(np.searchsorted(events.at, at, "right"))
        apply(events, done, upto, free)
        done = upto
        for name in _FREE:
            have = getattr(least, name)
            np.minimum(have, getattr(free, name), out=have)
    return least


def count_fits(nodes: Nodes, classes: Classes, c: int) -> int:
    """How many tasks of class `c` the nodes could hold by their sums: an upper bound."""
    fit = np.full(len(nodes.model), 2**40, np.int64)
    milli, cpu, mib = int(classes.milli[c]), int(classes.cpu[c]), int(classes.mib[c])
    if cpu:
        np.minimum(fit, nodes.cpu_free // cpu, out=fit)
    if mib:
        np.minimum(fit, nodes.mib_free // mib, out=fit)
    if milli:
        each = (nodes.milli_free // min(milli, WHOLE)).sum(axis=1) // max(1, milli // WHOLE)
        np.minimum(fit, each, out=fit)
    return int(np.maximum(fit, 0)[classes.allowed[c]].sum())


Placed = list[tuple[int, int]]


def earliest(
    pool: Pool, tasks: Tasks, gang: tuple[int, int, int], now: int, run: int, window: int
) -> tuple[int, Placed] | None:
    """The earliest time at which a gang (head, worker, workers) fits for `run` ns, and (node, mask) by task."""
    events = in_order(tasks, pool.nodes, pool.classes)
    for time in np.unique(events.at[events.sign > 0]).tolist():
        if time - now <= window:
            placed = place_at(pool, events, gang, time, min(time + run, UNLIMITED))
            if placed is not None:
                return time, placed
    return None


def place_at(pool: Pool, events: Events, gang: tuple[int, int, int], start: int, end: int) -> Placed | None:
    """Where a gang fits all through [start, end)."""
    head, worker, workers = gang
    nodes = least_free(events, pool.nodes, start, end)
    if head >= 0 and not count_fits(nodes, pool.classes, head):
        return None
    if worker >= 0 and count_fits(nodes, pool.classes, worker) < workers:
        return None
    room, left = np.full((2, 8), UNLIMITED, np.int64)
    size = (head >= 0) + workers
    node, mask, mem = np.zeros((3, size + 1), np.int64)
    then = pool._replace(nodes=nodes, scores=fresh_scores(nodes, pool.classes, pool.scoring))
    if place_within(then, head, worker, workers, workers, room, left, node, mask, mem) < 0:
        return None
    return list(zip(node.tolist(), mask.tolist(), strict=True))[:size]
