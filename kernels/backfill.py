"""What will be free, and when: the pool's future by the known ends of jobs, as arrays.

An event gives back (a job ends) or takes (a reservation begins) one task's share of one node. Events are kept in order
of time, at equal times what is given back first. `least_free` answers how much is free all through a span of time:
that is what a job which runs for that span may be placed on. E events, N nodes, G devices of a node.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moorage.kernels.placing_scores import Classes, Nodes

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

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
