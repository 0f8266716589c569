"""S3: the future kernel against its plain reference: who fits when and where, among tasks that come and go."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from packing_pools import NAMES, a_pool, a_rule, some_classes

from moorage.kernels import future
from moorage.kernels import future_reference as plain
from moorage.kernels.gang import UNLIMITED, place_within
from moorage.kernels.kinds import number
from moorage.kernels.placing import fresh_scores
from moorage.kernels.placing_scores import Classes
from moorage.kernels.pool import Pool, unlimited

NOW = 100
Gang = tuple[int, int, int]


def a_future(rng: np.random.Generator, pool: Pool) -> plain.Tasks:
    """Tasks placed now on what is free, with known ends; what they hold is taken out of the pool."""
    nodes, classes, tasks = pool.nodes, pool.classes, []
    for _ in range(int(rng.integers(0, 8))):
        c = int(rng.integers(0, len(classes.milli)))
        held = fill(pool, (-1, c, 1))
        if held is not None:
            tasks.append((NOW + int(rng.integers(0, 6)), 1, *held[0], c))
    columns = np.array(tasks, np.int64).reshape(-1, 5).T
    assert (nodes.milli_free >= 0).all()
    return plain.Tasks(*(np.ascontiguousarray(column) for column in columns))


def fill(pool: Pool, gang: Gang) -> list[tuple[int, int]] | None:
    """Place a gang now, and keep it there."""
    head, worker, workers = gang
    size = (head >= 0) + workers
    node, mask, mem = np.zeros((3, size + 1), np.int64)
    room, left = np.full((2, 8), UNLIMITED, np.int64)
    if place_within(pool, head, worker, workers, workers, room, left, node, mask, mem) < 0:
        return None
    return list(zip(node.tolist(), mask.tolist(), strict=True))[:size]


def classes_of(gang: Gang) -> np.ndarray:  # type: ignore[type-arg]
    head, worker, workers = gang
    return np.array([head] * (head >= 0) + [worker] * workers, np.int64)


def as_tasks(gang: Gang, placed: list[tuple[int, int]], start: int, end: int) -> list[plain.Tasks]:
    node, mask = np.array(placed, np.int64).reshape(-1, 2).T
    klass, count = classes_of(gang), len(placed)
    parts = [plain.Tasks(np.full(count, start), np.full(count, -1), node, mask, klass)]
    if end < UNLIMITED:
        parts.append(plain.Tasks(np.full(count, end), np.full(count, 1), node, mask, klass))
    return parts


def a_case(seed: int, name: str, raylet: bool) -> tuple[np.random.Generator, Pool, plain.Tasks]:
    rng = np.random.default_rng(seed)
    nodes = a_pool(rng)
    classes: Classes = some_classes(rng, nodes)
    scoring = a_rule(name, rng, nodes)
    limits = unlimited(len(nodes.model), len(classes.milli))
    pool = Pool(nodes, classes, fresh_scores(nodes, classes, scoring), scoring, raylet, limits)
    return rng, pool, a_future(rng, pool)


def promise_all(
    rng: np.random.Generator, pool: Pool, spare: future.Spare, tasks: plain.Tasks, gangs: int, window: int
) -> tuple[future.Promises, plain.Tasks]:
    """Promise one gang after the other by the kernel, each as the reference does; what is then taken and given."""
    made, book = future.promises_of(gangs, 8 * gangs), future.book_of(len(tasks.at) + 16 * gangs)
    future.enter(book, tasks.at, tasks.node, tasks.mask, tasks.klass)
    for _ in range(gangs):
        count = len(pool.classes.milli)
        worker, workers = int(rng.integers(0, count)), int(rng.integers(0, 4))
        head = int(rng.integers(0, count)) if rng.random() < 0.4 or not workers else -1
        gang, run = (head, worker if workers else -1, workers), int(rng.integers(1, 9))
        run = UNLIMITED - NOW if run == 8 else run
        p = int(made.size[0])
        made.head[p], made.worker[p], made.workers[p] = gang
        made.first[p + 1] = made.first[p] + len(classes_of(gang))
        state, time, placed = np.zeros(3, np.int64), 0, None
        while time >= 0 and placed is None:
            time = future.next_time(pool, spare, book, gang, (NOW, run, window), state)
            placed = fill(spare.pool, gang) if time >= 0 else None
        expected = plain.earliest(pool, tasks, gang, NOW, run, window)
        assert (None if placed is None else (time, placed)) == expected
        if expected is None:
            continue
        write(made, p, time, min(time + run, UNLIMITED), expected[1])
        future.enter_promise(book, made, p)
        tasks = plain.joined([tasks, *as_tasks(gang, expected[1], int(made.start[p]), int(made.end[p]))])
    assert book.size[0] == len(tasks.at)
    return made, tasks


def write(made: future.Promises, p: int, start: int, end: int, placed: list[tuple[int, int]]) -> None:
    span = slice(int(made.first[p]), int(made.first[p + 1]))
    made.start[p], made.end[p], made.size[0] = start, end, p + 1
    made.node[span], made.mask[span] = np.array(placed, np.int64).reshape(-1, 2).T


def at(made: future.Promises, p: int) -> tuple[int, list[tuple[int, int]]]:
    span = slice(int(made.first[p]), int(made.first[p + 1]))
    return int(made.start[p]), list(zip(made.node[span].tolist(), made.mask[span].tolist(), strict=True))


@settings(max_examples=300, deadline=None)
@given(name=NAMES, seed=st.integers(0, 2**32), raylet=st.booleans(), window=st.sampled_from([2, 50]))
def test_a_promise_is_what_trying_every_time_finds(name: str, seed: int, raylet: bool, window: int) -> None:
    rng, pool, tasks = a_case(seed, name, raylet)
    before = [column.copy() for column in pool.nodes]
    promise_all(rng, pool, future.spare_of(pool), tasks, 5, window)
    assert all((a == b).all() for a, b in zip(pool.nodes, before, strict=True)), (
        "the pool itself is left alone"
    )


@settings(max_examples=300, deadline=None)
@given(name=NAMES, seed=st.integers(0, 2**32), raylet=st.booleans())
def test_promises_are_kept_at_their_times_or_not_as_the_reference_says(
    name: str, seed: int, raylet: bool
) -> None:
    """One more task is placed now; then all promises again, each at its time."""
    rng, pool, tasks = a_case(seed, name, raylet)
    spare = future.spare_of(pool)
    made, _ = promise_all(rng, pool, spare, tasks, 4, 50)
    c, end = int(rng.integers(0, len(pool.classes.milli))), NOW + int(rng.integers(1, 9))
    placed = fill(pool, (-1, c, 1))
    if placed is None:
        return
    known = plain.joined([tasks, as_tasks((-1, c, 1), placed, NOW, end)[1]])
    book = future.book_of(len(known.at) + 2 * len(made.node))
    future.enter(book, known.at, known.node, known.mask, known.klass)
    for p in range(int(made.size[0])):
        gang = int(made.head[p]), int(made.worker[p]), int(made.workers[p])
        start, stop = int(made.start[p]), int(made.end[p])
        expected = plain.place_at(pool, plain.in_order(known, pool.nodes, pool.classes), gang, start, stop)
        enough = future.at_time(pool, spare, book, gang, start, stop)
        assert (fill(spare.pool, gang) if enough else None) == expected
        if expected is None:
            return
        write(made, p, start, stop, expected)
        future.enter_promise(book, made, p)
        known = plain.joined([known, *as_tasks(gang, expected, start, stop)])


@settings(max_examples=200, deadline=None)
@given(name=NAMES, seed=st.integers(0, 2**32), raylet=st.booleans(), end=st.integers(NOW, NOW + 9))
def test_beside_promises_is_on_other_nodes(name: str, seed: int, raylet: bool, end: int) -> None:
    """A gang that is to end by then, on none of the nodes that a promise uses before."""
    rng, pool, tasks = a_case(seed, name, raylet)
    spare = future.spare_of(pool)
    made, _ = promise_all(rng, pool, spare, tasks, 3, 50)
    c = int(rng.integers(0, len(pool.classes.milli)))
    future.without(pool, spare, made, end, -1, c)
    used = {n for p in range(int(made.size[0])) if made.start[p] < end for n, _ in at(made, p)[1]}
    allowed = pool.classes.allowed & ~np.isin(np.arange(pool.classes.allowed.shape[1]), list(used))
    apart = pool.classes._replace(allowed=allowed)
    fresh = pool._replace(classes=apart, scores=fresh_scores(pool.nodes, apart, pool.scoring))
    gang = (-1, c, 2)
    found = fill(spare.pool, gang)
    before = [column.copy() for column in pool.nodes]
    assert found == fill(fresh, gang)
    for column, old in zip(pool.nodes, before, strict=True):
        column[:] = old


@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(-(2**62), 2**62), st.integers(0, 1)), max_size=40))
def test_rows_are_of_one_kind_when_all_columns_are_equal(rows: list[tuple[int, int, int]]) -> None:
    kind, count = number(np.array(rows, np.int64).reshape(-1, 3).T)
    seen: dict[tuple[int, int, int], int] = {}
    assert kind.tolist() == [seen.setdefault(row, len(seen)) for row in rows] and count == len(seen)
