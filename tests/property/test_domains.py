"""S5, S7: no plan breaks a limit beyond single nodes, and the kernel answers as its plain reference does."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from packing_pools import NAMES, a_pool, a_rule, some_classes

from moorage.kernels import domains_reference, gang
from moorage.kernels.placing import fresh_scores
from moorage.kernels.placing_scores import Classes, Nodes
from moorage.kernels.pool import (
    ANY,
    FIRST,
    PREFERRED,
    REQUIRED,
    RULES,
    SPREAD,
    SPREAD_BY,
    Limits,
    Pool,
    unlimited,
)

KEYS = 3


def some_limits(rng: np.random.Generator, nodes: Nodes, classes: Classes) -> tuple[Limits, Classes]:
    """Zones, racks within them, and a key of its own; rules for each class; perhaps a cap on each rack. Some classes
    get a second row without the nodes that are only a last resort."""
    count, n = len(classes.milli), len(nodes.model)
    zone, rack = rng.integers(0, 2, n), rng.integers(0, 2, n)
    domain = np.stack([zone, 2 * zone + rack, rng.integers(-1, 3, n)]).astype(np.int64)
    domain[1][rng.random(n) < 0.15] = -1
    most = 4
    member = np.concatenate([np.argsort(domain, axis=1, kind="stable"), np.arange(n).reshape(1, n)])
    start = [
        np.searchsorted(row[order], np.arange(most + 1)) for row, order in zip(domain, member, strict=False)
    ]
    rules = np.full((2 * count, RULES), -1, np.int64)
    rules[:, SPREAD] = np.where(rng.random(2 * count) < 0.4, rng.integers(1, 4, 2 * count), 0)
    for column in (REQUIRED, PREFERRED, SPREAD_BY):
        rules[:, column] = np.where(rng.random(2 * count) < 0.5, rng.integers(0, KEYS, 2 * count), -1)
    rules[:count, FIRST] = np.where(rng.random(count) < 0.3, np.arange(count) + count, -1)
    rules[:, FIRST][count:] = -1
    rules[count:] = np.where(np.arange(RULES) == FIRST, -1, rules[:count])
    rules[:, ANY] = 1
    allowed = np.concatenate([classes.allowed, classes.allowed & (rng.random((count, n)) < 0.5)])
    both = Classes(*(np.concatenate([column, column]) for column in classes[:-1]), allowed)
    limits = unlimited(n, 2 * count)._replace(
        on=True,
        rules=rules,
        domain=domain,
        member=member,
        start=np.array(start, np.int64),
        domains=np.array([2, 4, 3], np.int64),
        power_by=1 if rng.random() < 0.5 else -1,
        watts=rng.integers(0, 4, n),
        cap=rng.integers(0, 16, most),
        tally=np.zeros(max(n, most), np.int64),
        hold=np.zeros((2, most), np.int64),
        tried=np.zeros((2, most), np.bool_),
    )
    return limits, both


def drawn(pool: Pool, p: int) -> int:
    used = ((pool.nodes.milli_free < 1000) & has(pool.nodes)).sum(axis=1) * pool.limits.watts
    return int(used[pool.limits.domain[pool.limits.power_by] == p].sum())


def has(nodes: Nodes) -> np.ndarray:  # type: ignore[type-arg]
    return np.arange(nodes.milli_free.shape[1])[None, :] < nodes.devices[:, None]


@settings(max_examples=400, deadline=None)
@given(
    name=NAMES,
    seed=st.integers(0, 2**32),
    workers=st.integers(0, 8),
    fewer=st.integers(0, 8),
    with_head=st.booleans(),
    raylet=st.booleans(),
)
def test_a_bound_gang_is_placed_as_the_reference_says_and_breaks_no_limit(
    name: str, seed: int, workers: int, fewer: int, with_head: bool, raylet: bool
) -> None:
    rng = np.random.default_rng(seed)
    nodes = a_pool(rng)
    limits, classes = some_limits(rng, nodes, some_classes(rng, nodes))
    scoring = a_rule(name, rng, nodes)
    head, worker = (0 if with_head or not workers else -1), int(rng.integers(0, len(classes.milli) // 2))
    for column in (REQUIRED, PREFERRED, SPREAD, SPREAD_BY):  # the constraints are the job's, of all its tasks
        limits.rules[0, column] = limits.rules[worker, column]
    least = max(0 if head >= 0 else 1, workers - fewer)
    pool = Pool(nodes, classes, fresh_scores(nodes, classes, scoring), scoring, raylet, limits)
    expected = domains_reference.place(pool, head, worker, workers, least)
    before = [column.copy() for column in nodes]
    over = [p for p in range(4) if limits.power_by >= 0 and drawn(pool, p) > limits.cap[p]]
    node, mask, mem = (np.zeros(1 + workers, np.int64) for _ in range(3))
    room = np.full(8, gang.UNLIMITED, np.int64)
    placed = gang.place_within(pool, head, worker, workers, least, room, room.copy(), node, mask, mem)
    assert not limits.tally.any(), "the scratch is left clean"
    if placed < 0:
        assert expected is None
        assert all((a == b).all() for a, b in zip(nodes, before, strict=True))
        return
    heads = int(head >= 0)
    assert expected == list(zip(node.tolist(), mask.tolist(), strict=True))[: heads + placed]
    at = node[: heads + placed]
    required, spread, by = (int(limits.rules[worker, rule]) for rule in (REQUIRED, SPREAD, SPREAD_BY))
    if required >= 0:
        assert len(set(limits.domain[required, at].tolist())) == 1 and limits.domain[required, at[0]] >= 0
    if spread:
        of = at[heads:] if by < 0 else limits.domain[by, at[heads:]]
        assert all((of == where).sum() <= spread and where >= 0 for where in set(of.tolist()))
    if limits.power_by >= 0:
        assert all(drawn(pool, p) <= limits.cap[p] for p in range(4) if p not in over)
    assert classes.allowed[worker, at[heads:]].all()
    assert least <= placed <= workers
