"""What will be free, and when (numba): the pool's future by the known ends of jobs, and who fits into it when.

An event gives back (a job ends) or takes (a reservation begins) one task's share of one node. A gang that runs for a
span of time may be placed on what is free at every moment of that span. `future_reference` says the same in array
arithmetic. E events, N nodes, P promises, T tasks of theirs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moorage.kernels.gang import holds_up_to
from moorage.kernels.jit import inner, outer
from moorage.kernels.placing import fresh_scores, refill
from moorage.kernels.placing_scores import Classes, Nodes, share
from moorage.kernels.pool import FIRST, Pool

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

UNLIMITED = 2**62
WHOLE = 1000


class Book(NamedTuple):
    """Events in order of time. Every array but `size` is int64[E], with room for more than there are."""

    at: I64
    """When, in ns."""
    sign: I64
    """1 = gives back, -1 = takes."""
    node: I64
    mask: I64
    """The devices, as bits."""
    klass: I64
    size: I64
    """[1] how many there are"""


class Promises(NamedTuple):
    """Reservations in the order in which they were made. int64[P] but for the columns by task."""

    row: I64
    """Of the queue."""
    head: I64
    """Class of the head, -1 = none; and of the workers."""
    worker: I64
    workers: I64
    """So many are placed."""
    start: I64
    end: I64
    """UNLIMITED = nobody knows"""
    first: I64
    """[P + 1] where the tasks of each begin"""
    node: I64
    """[T] head first"""
    mask: I64
    """[T]"""
    size: I64
    """[1]"""


class Spare(NamedTuple):
    """Scratch: copies of the pool, to be made what it will be. Gangs are then tried on `pool` by `place_within`."""

    pool: Pool
    """With its own free columns, scores and `classes.allowed`."""
    then: Nodes
    """As they are at a moment."""
    walk: Nodes
    fits: I64
    """[2,N] of the gang looked for, how many heads, and workers, each of `then` has room for"""
    used: Bool
    """[N]"""


def spare_of(pool: Pool) -> Spare:
    """Costs O(N), and the scores of all classes."""

    def copied() -> Nodes:
        nodes = pool.nodes
        return nodes._replace(
            milli_free=nodes.milli_free.copy(),
            mem_free=nodes.mem_free.copy(),
            cpu_free=nodes.cpu_free.copy(),
            mib_free=nodes.mib_free.copy(),
        )

    nodes, classes = copied(), pool.classes._replace(allowed=pool.classes.allowed.copy())
    return Spare(
        pool=pool._replace(nodes=nodes, classes=classes, scores=fresh_scores(nodes, classes, pool.scoring)),
        then=copied(),
        walk=copied(),
        fits=np.zeros((2, len(nodes.model)), np.int64),
        used=np.zeros(len(nodes.model), np.bool_),
    )


def book_of(room: int) -> Book:
    """An empty one."""
    at, sign, node, mask, klass = np.zeros((5, room), np.int64)
    return Book(at, sign, node, mask, klass, np.zeros(1, np.int64))


def promises_of(rows: int, tasks: int) -> Promises:
    """None yet, with room for some."""
    row, head, worker, workers, start, end = np.zeros((6, rows), np.int64)
    first, (node, mask) = np.zeros(rows + 1, np.int64), np.zeros((2, tasks), np.int64)
    return Promises(row, head, worker, workers, start, end, first, node, mask, np.zeros(1, np.int64))


@inner
def _enter(book: Book, at: int, sign: int, node: int, mask: int, klass: int) -> None:
    low, high = np.int64(0), book.size[0]
    while low < high:
        middle = (low + high) // 2
        if book.at[middle] <= at:
            low = middle + 1
        else:
            high = middle
    for i in range(book.size[0], low, -1):
        book.at[i], book.sign[i], book.node[i] = book.at[i - 1], book.sign[i - 1], book.node[i - 1]
        book.mask[i], book.klass[i] = book.mask[i - 1], book.klass[i - 1]
    book.at[low], book.sign[low], book.node[low], book.mask[low], book.klass[low] = (
        at,
        sign,
        node,
        mask,
        klass,
    )
    book.size[0] += 1


@outer
def enter(book: Book, ends: I64, node: I64, mask: I64, klass: I64) -> None:
    """Tasks that will have ended; `ends` UNLIMITED: nobody knows when. The book must have the room."""
    for t in range(len(ends)):
        if ends[t] < UNLIMITED:
            _enter(book, ends[t], 1, node[t], mask[t], klass[t])


@outer
def enter_promise(book: Book, made: Promises, p: int) -> None:
    """A promise takes its tasks when it starts and gives them back when it ends."""
    for t in range(made.first[p], made.first[p + 1]):
        c = made.head[p] if made.head[p] >= 0 and t == made.first[p] else made.worker[p]
        _enter(book, made.start[p], -1, made.node[t], made.mask[t], c)
        if made.end[p] < UNLIMITED:
            _enter(book, made.end[p], 1, made.node[t], made.mask[t], c)


@inner
def _apply(book: Book, e: int, nodes: Nodes, classes: Classes) -> None:
    """Let one event happen."""
    c, n, mask, sign = book.klass[e], book.node[e], book.mask[e], book.sign[e]
    milli = classes.milli[c]
    if milli > 0:
        mem = share(milli, classes.gpu_mib[c], nodes.device_mib[n])
        for d in range(nodes.devices[n]):
            if mask >> d & 1:
                nodes.milli_free[n, d] += sign * min(milli, WHOLE)
                nodes.mem_free[n, d] += sign * mem
    nodes.cpu_free[n] += sign * classes.cpu[c]
    nodes.mib_free[n] += sign * classes.mib[c]


@inner
def _copy_node(have: Nodes, n: int, out: Nodes) -> None:
    for d in range(have.milli_free.shape[1]):
        out.milli_free[n, d] = have.milli_free[n, d]
        out.mem_free[n, d] = have.mem_free[n, d]
    out.cpu_free[n] = have.cpu_free[n]
    out.mib_free[n] = have.mib_free[n]


@inner
def _copy(have: Nodes, out: Nodes) -> None:
    for n in range(len(have.model)):
        _copy_node(have, n, out)


@inner
def _lower(have: Nodes, n: int, out: Nodes) -> None:
    """Of each figure of the node the lower one."""
    for d in range(have.milli_free.shape[1]):
        out.milli_free[n, d] = min(out.milli_free[n, d], have.milli_free[n, d])
        out.mem_free[n, d] = min(out.mem_free[n, d], have.mem_free[n, d])
    out.cpu_free[n] = min(out.cpu_free[n], have.cpu_free[n])
    out.mib_free[n] = min(out.mib_free[n], have.mib_free[n])


@inner
def _least(spare: Spare, book: Book, classes: Classes, e: int, end: int) -> None:
    """Into the spare pool what is free from the moment `then` is, before event `e`, until `end`."""
    least, walk = spare.pool.nodes, spare.walk
    _copy(spare.then, least)
    until, takes = e, False
    while until < book.size[0] and book.at[until] < end:
        takes |= book.sign[until] < 0
        until += 1
    if not takes:
        return
    _copy(spare.then, walk)
    while e < until:
        group = e
        while e < until and book.at[e] == book.at[group]:
            _apply(book, e, walk, classes)
            e += 1
        for i in range(group, e):
            if book.sign[i] < 0:  # what was given back alone only adds to what was free before
                _lower(walk, book.node[i], least)


@inner
def _allow(pool: Pool, spare: Spare, c: int, apart: bool) -> None:
    """The nodes of a class; with `apart` without those in `used`."""
    while c >= 0:
        for n in range(len(spare.used)):
            spare.pool.classes.allowed[c, n] = pool.classes.allowed[c, n] and not (apart and spare.used[n])
        c = int(pool.limits.rules[c, FIRST]) if pool.limits.on else -1


@inner
def _enough(spare: Spare, classes: Classes, head: int, worker: int, workers: int) -> bool:
    nodes = spare.pool.nodes
    if head >= 0 and holds_up_to(nodes, classes, head, 1) < 1:
        return False
    return worker < 0 or holds_up_to(nodes, classes, worker, workers) >= workers


@inner
def _fit(nodes: Nodes, classes: Classes, c: int, n: int, enough: int) -> np.int64:
    """How many tasks of a class a node holds by its sums, counted until `enough`."""
    if not classes.allowed[c, n]:
        return np.int64(0)
    milli, fit = classes.milli[c], np.int64(enough)
    if classes.cpu[c] > 0:
        fit = min(fit, nodes.cpu_free[n] // classes.cpu[c])
    if classes.mib[c] > 0:
        fit = min(fit, nodes.mib_free[n] // classes.mib[c])
    if fit > 0 and milli > 0:
        total = np.int64(0)
        for d in range(nodes.milli_free.shape[1]):
            total += nodes.milli_free[n, d] // min(milli, np.int64(WHOLE))
        fit = min(fit, total // max(np.int64(1), milli // WHOLE))
    return max(np.int64(0), fit)


@inner
def _fits(pool: Pool, spare: Spare, gang: tuple[int, int, int], n: int, total: I64, sign: int) -> None:
    """Count a node of `then` in, or with -1 out, of how many heads and workers there is room for."""
    head, worker, workers = gang
    if sign > 0:
        spare.fits[0, n] = _fit(spare.then, pool.classes, head, n, 1) if head >= 0 else 0
        spare.fits[1, n] = _fit(spare.then, pool.classes, worker, n, workers) if worker >= 0 else 0
    total[0] += sign * spare.fits[0, n]
    total[1] += sign * spare.fits[1, n]


@outer
def next_time(
    pool: Pool, spare: Spare, book: Book, gang: tuple[int, int, int], span: tuple[int, int, int], state: I64
) -> int:
    """The next time at which a gang (head, worker, workers) may fit, as far as sums tell; -1 = there is none.

    `span`: (now, how long it runs, how far ahead is looked). `state[3]` is zeros at first, and then as it was left: the
    next call goes on. The spare pool is then what is free from that time on until the gang ends.
    """
    now, run, window = span
    total, then = state[1:], spare.then
    if state[0] == 0:
        _allow(pool, spare, gang[0], False)
        _allow(pool, spare, gang[1], False)
        _copy(pool.nodes, then)
        for n in range(len(spare.used)):
            _fits(pool, spare, gang, n, total, 1)
    while state[0] < book.size[0]:
        at, gives = book.at[state[0]], False
        if at - now > window:
            return -1
        while state[0] < book.size[0] and book.at[state[0]] == at:
            n = book.node[state[0]]
            _fits(pool, spare, gang, n, total, -1)
            _apply(book, state[0], then, pool.classes)
            _fits(pool, spare, gang, n, total, 1)
            gives |= book.sign[state[0]] > 0
            state[0] += 1
        if not gives or (gang[0] >= 0 and total[0] < 1) or (gang[1] >= 0 and total[1] < gang[2]):
            continue
        _least(spare, book, pool.classes, state[0], at + run if run < UNLIMITED - at else UNLIMITED)
        if _enough(spare, pool.classes, gang[0], gang[1], gang[2]):
            refill(spare.pool.nodes, spare.pool.scores)
            return int(at)
    return -1


@outer
def at_time(pool: Pool, spare: Spare, book: Book, gang: tuple[int, int, int], start: int, end: int) -> bool:
    """Make the spare pool what is free from `start` until `end`; False where that cannot be enough, by sums."""
    _allow(pool, spare, gang[0], False)
    _allow(pool, spare, gang[1], False)
    _copy(pool.nodes, spare.then)
    e = 0
    while e < book.size[0] and book.at[e] <= start:
        _apply(book, e, spare.then, pool.classes)
        e += 1
    _least(spare, book, pool.classes, e, end)
    if not _enough(spare, pool.classes, gang[0], gang[1], gang[2]):
        return False
    refill(spare.pool.nodes, spare.pool.scores)
    return True


@outer
def without(pool: Pool, spare: Spare, made: Promises, end: int, head: int, worker: int) -> None:
    """Make the spare pool what is free now, for these classes without the nodes that a promise uses before `end`."""
    spare.used[:] = False
    for p in range(made.size[0]):
        if made.start[p] < end:
            for t in range(made.first[p], made.first[p + 1]):
                spare.used[made.node[t]] = True
    _allow(pool, spare, head, True)
    _allow(pool, spare, worker, True)
    _copy(pool.nodes, spare.pool.nodes)
    refill(spare.pool.nodes, spare.pool.scores)


@outer
def meets(made: Promises, node: I64, count: int) -> bool:
    """Whether any of the first `count` tasks is on a node of a promise."""
    for t in range(count):
        for i in range(made.first[made.size[0]]):
            if made.node[i] == node[t]:
                return True
    return False
