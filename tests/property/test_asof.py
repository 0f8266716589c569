"""D2, D4: each kernel equals its plain reference, whatever the data."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.kernels.asof import asof_merge, asof_reference, asof_search, group_by_key
from moorage.kernels.rolling import prefix_sums, rolling_reference, rolling_sums

KEYS = 3
# Few distinct times, so that ties (equal times, window edges) are common.
rows = st.lists(st.tuples(st.integers(-20, 20), st.integers(0, KEYS - 1), st.integers(-9, 9)), max_size=30)
asked = st.lists(st.tuples(st.integers(-20, 20), st.integers(-1, KEYS)), max_size=30)


def columns(data: list[tuple[int, ...]], width: int) -> list[np.ndarray]:
    table = np.array(data, dtype=np.int64).reshape(-1, width)
    return [np.ascontiguousarray(table[:, i]) for i in range(width)]


@settings(max_examples=300, deadline=None)
@given(rows, asked, st.integers(0, 45), st.booleans())
def test_asof_search_and_merge_equal_the_reference(
    right: list[tuple[int, ...]], left: list[tuple[int, ...]], tolerance: int, strict: bool
) -> None:
    # Stable by time: both sorts keep the given order of ties, so all three pick the same one of equal times.
    right, left = sorted(right, key=lambda r: r[0]), sorted(left, key=lambda r: r[0])
    (right_time, right_key, _), (left_time, left_key) = columns(right, 3), columns(left, 2)
    expected = asof_reference(left_time, left_key, right_time, right_key, tolerance, strict)
    merged = asof_merge(left_time, left_key, right_time, right_key, KEYS, tolerance, strict)
    assert np.array_equal(merged, expected)
    order, offsets = group_by_key(right_key, right_time, KEYS)
    found = asof_search(left_time, left_key, right_time[order], offsets, tolerance, strict)
    searched = np.where(found >= 0, order[np.maximum(found, 0)], -1) if len(order) else found
    assert np.array_equal(searched, expected)


@settings(max_examples=300, deadline=None)
@given(rows, asked, st.lists(st.integers(0, 45), min_size=1, max_size=4))
def test_rolling_sums_equal_the_reference(
    events: list[tuple[int, ...]], queries: list[tuple[int, ...]], widths: list[int]
) -> None:
    (known, key, value), (time, wanted) = columns(events, 3), columns(queries, 2)
    values, spans = np.stack([value, value * value]), np.array(widths, dtype=np.int64)
    order, offsets = group_by_key(key, known, KEYS)
    counts, sums = rolling_sums(time, wanted, known[order], offsets, prefix_sums(values[:, order]), spans)
    plain_counts, plain_sums = rolling_reference(time, wanted, known, key, values, spans)
    assert np.array_equal(counts, plain_counts) and np.array_equal(sums, plain_sums)


@settings(max_examples=200, deadline=None)
@given(rows, asked, st.integers(-20, 20))
def test_what_becomes_known_later_changes_nothing_before(
    events: list[tuple[int, ...]], queries: list[tuple[int, ...]], now: int
) -> None:
    """D4, D8: no peeking, as a property: erase the future, and every answer up to now stays."""
    past_queries = [q for q in queries if q[0] <= now]
    (time, wanted), width = columns(past_queries, 2), np.array([7, 40], dtype=np.int64)

    def answer(data: list[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
        known, key, value = columns(data, 3)
        order, offsets = group_by_key(key, known, KEYS)
        return rolling_sums(time, wanted, known[order], offsets, prefix_sums(value[None, order]), width)

    everything, past = answer(events), answer([e for e in events if e[0] < now])
    assert np.array_equal(everything[0], past[0]) and np.array_equal(everything[1], past[1])
