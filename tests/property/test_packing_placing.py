"""S4: the placing kernel against its plain reference, a warm cache against a fresh one, gangs all or nothing."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from packing_pools import NAMES, a_pool, a_rule, some_classes

from moorage.kernels import gang
from moorage.kernels import placing_reference as reference
from moorage.kernels.placing import Scores, find, find_among, fresh_scores, take
from moorage.kernels.placing_scores import Classes, Nodes, Scoring
from moorage.kernels.pool import unlimited
from moorage.scheduling.packing import scorings


def snapshot(nodes: Nodes) -> list[np.ndarray]:  # type: ignore[type-arg]
    return [a.copy() for a in nodes]


def unchanged(nodes: Nodes, before: list[np.ndarray]) -> bool:  # type: ignore[type-arg]
    return all((a == b).all() for a, b in zip(nodes, before, strict=True))


@settings(max_examples=400, deadline=None)
@given(
    name=NAMES, seed=st.integers(0, 2**32), raylet=st.booleans(), models=st.sampled_from([-1, -1, 1, 3, 5])
)
@example(
    name=scorings.POTENTIAL, seed=2386024, raylet=False, models=-1
)  # a node scored by its neighbour's score
def test_a_warm_cache_answers_as_the_reference(name: str, seed: int, raylet: bool, models: int) -> None:
    """Through any history of taking and giving back, and whichever classes were asked for in between."""
    rng = np.random.default_rng(seed)
    nodes = a_pool(rng)
    classes, scoring = some_classes(rng, nodes), a_rule(name, rng, nodes)
    scores = fresh_scores(nodes, classes, scoring)
    held: list[tuple[int, int, int]] = []
    for _ in range(12):
        c = int(rng.integers(0, len(classes.milli)))
        if held and rng.random() < 0.3:
            k, n, mask = held.pop(int(rng.integers(0, len(held))))
            take(nodes, classes, scores, k, n, mask, 1)
        expected = reference.find(nodes, classes, scoring, c, models, raylet)
        assert tuple(find(nodes, classes, scores, scoring, c, models, raylet)) == expected
        if expected[0] >= 0 and rng.random() < 0.8:
            take(nodes, classes, scores, c, *expected, -1)
            held.append((c, *expected))
        assert min(int(a.min()) for a in nodes) >= 0


@settings(max_examples=150, deadline=None)
@given(name=NAMES, seed=st.integers(0, 2**32), raylet=st.booleans())
def test_among_some_nodes_it_answers_as_if_there_were_no_others(name: str, seed: int, raylet: bool) -> None:
    rng = np.random.default_rng(seed)
    nodes = a_pool(rng)
    classes, scoring = some_classes(rng, nodes), a_rule(name, rng, nodes)
    among = rng.random(len(nodes.model)) < 0.5
    scores = fresh_scores(nodes, classes, scoring)
    for c in range(len(classes.milli)):
        only = classes._replace(allowed=classes.allowed & among[None, :])
        expected = reference.find(nodes, only, scoring, c, -1, raylet)
        assert tuple(find_among(nodes, classes, scores, scoring, c, -1, raylet, among)) == expected


@settings(max_examples=150, deadline=None)
@given(name=NAMES, seed=st.integers(0, 2**32), raylet=st.booleans())
def test_what_is_given_back_leaves_no_trace(name: str, seed: int, raylet: bool) -> None:
    rng = np.random.default_rng(seed)
    nodes = a_pool(rng)
    classes, scoring = some_classes(rng, nodes), a_rule(name, rng, nodes)
    scores, before, held = fresh_scores(nodes, classes, scoring), snapshot(nodes), []
    answers = [find(nodes, classes, scores, scoring, c, -1, raylet) for c in range(len(classes.milli))]
    for c in range(len(classes.milli)):
        n, mask = find(nodes, classes, scores, scoring, c, -1, raylet)
        if n >= 0:
            take(nodes, classes, scores, c, n, mask, -1)
            held.append((c, n, mask))
    for c, n, mask in reversed(held):
        take(nodes, classes, scores, c, n, mask, 1)
    assert unchanged(nodes, before)
    assert answers == [
        find(nodes, classes, scores, scoring, c, -1, raylet) for c in range(len(classes.milli))
    ]


@settings(max_examples=300, deadline=None)
@given(
    name=NAMES,
    seed=st.integers(0, 2**32),
    workers=st.integers(0, 14),
    fewer=st.integers(0, 14),
    with_head=st.booleans(),
    raylet=st.booleans(),
)
def test_a_gang_holds_its_minimum_or_nothing(
    name: str, seed: int, workers: int, fewer: int, with_head: bool, raylet: bool
) -> None:
    rng = np.random.default_rng(seed)
    nodes = a_pool(rng)
    classes, scoring = some_classes(rng, nodes), a_rule(name, rng, nodes)
    least, before = max(0, workers - fewer), snapshot(nodes)
    head, worker = (0 if with_head else -1), len(classes.milli) - 1
    if workers and not with_head:
        least = max(least, 1)  # a gang without a head starts with something
    scores: Scores = fresh_scores(nodes, classes, scoring)
    out = [np.zeros(1 + workers, np.int64) for _ in range(3)]
    limits, room = unlimited(len(nodes.model), len(classes.milli)), np.full(8, gang.UNLIMITED, np.int64)
    pool = gang.Pool(nodes, classes, scores, scoring, raylet, limits)
    placed = gang.place_within(pool, head, worker, workers, least, room, room.copy(), *out)
    if placed < 0:
        assert unchanged(nodes, before)
        assert one_by_one(before, classes, scoring, head, worker, workers, raylet) < least
        return
    assert least <= placed <= workers
    assert placed == one_by_one(before, classes, scoring, head, worker, workers, raylet)
    taken = (classes.milli[0] if with_head else 0) + placed * classes.milli[worker]
    assert before[0].sum() - nodes.milli_free.sum() == taken


def one_by_one(
    before: list[np.ndarray],  # type: ignore[type-arg]
    classes: Classes,
    scoring: Scoring,
    head: int,
    worker: int,
    workers: int,
    raylet: bool,
) -> int:
    """How many workers the reference places, one after the other; -1 without room for the head."""
    nodes = Nodes(*(a.copy() for a in before))
    scores = fresh_scores(nodes, classes, scoring)
    tasks = ([head] if head >= 0 else []) + [worker] * workers
    for placed, c in enumerate(tasks):
        n, mask = reference.find(nodes, classes, scoring, c, -1, raylet)
        if n < 0:
            return placed - (head >= 0)
        take(nodes, classes, scores, c, n, mask, -1)
    return workers
