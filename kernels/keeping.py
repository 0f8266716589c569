"""Bringing a kept working copy of the pool up to date with the book (numba)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moorage.kernels.jit import inner, outer
from moorage.kernels.placing import Scores, touch
from moorage.kernels.placing_scores import Nodes

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


@inner
def _catch_up(nodes: Nodes, book: Nodes, scores: Scores, n: int) -> None:
    changed, room = False, False
    for d in range(nodes.devices[n]):
        changed |= (
            nodes.milli_free[n, d] != book.milli_free[n, d] or nodes.mem_free[n, d] != book.mem_free[n, d]
        )
        room |= nodes.milli_free[n, d] < book.milli_free[n, d] or nodes.mem_free[n, d] < book.mem_free[n, d]
        nodes.milli_free[n, d], nodes.mem_free[n, d] = book.milli_free[n, d], book.mem_free[n, d]
    changed |= nodes.cpu_free[n] != book.cpu_free[n] or nodes.mib_free[n] != book.mib_free[n]
    room |= nodes.cpu_free[n] < book.cpu_free[n] or nodes.mib_free[n] < book.mib_free[n]
    nodes.cpu_free[n], nodes.mib_free[n] = book.cpu_free[n], book.mib_free[n]
    if changed:
        touch(nodes, scores, n, room)


@outer
def catch_up(nodes: Nodes, book: Nodes, scores: Scores, since: int, rows: I64) -> None:
    """Make `nodes` equal to `book`, where it may differ: in `rows`, and where it was changed since the clock `since`.

    Scores of nodes that are as they were stay right: only what really differs is scored again.
    """
    now, log = scores.clock[0], scores.log
    if 2 * (now - since) > len(log):
        for n in range(len(nodes.model)):
            _catch_up(nodes, book, scores, n)
    else:
        for at in range(since, now):
            _catch_up(nodes, book, scores, log[at % len(log)])
    for n in rows:
        _catch_up(nodes, book, scores, n)


@outer
def free_by_model(nodes: Nodes, up: Bool, free: I64) -> None:
    """Into `free[M]` the milli-GPU free on the nodes that are up; column 0 counts all models."""
    free[:] = 0
    for n in range(len(nodes.model)):
        if up[n]:
            for d in range(nodes.devices[n]):
                free[0] += nodes.milli_free[n, d]
                if nodes.model[n] > 0:
                    free[nodes.model[n]] += nodes.milli_free[n, d]
