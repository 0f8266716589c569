"""D2, D4: windows end before the moment and begin at its width."""

from __future__ import annotations

import numpy as np

from moorage.kernels.asof import group_by_key
from moorage.kernels.rolling import prefix_sums, rolling_reference, rolling_sums


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_an_event_known_at_the_moment_itself_is_not_in_the_window_and_one_at_its_start_is() -> None:
    known, keys, values = ints(90, 95, 100), ints(0, 0, 0), np.array([[7, 11, 1000]], dtype=np.int64)
    order, offsets = group_by_key(keys, known, 1)
    counts, sums = rolling_sums(
        ints(100), ints(0), known[order], offsets, prefix_sums(values[:, order]), ints(10, 9, 5, 4)
    )
    assert counts[:, 0].tolist() == [2, 1, 1, 0]
    assert sums[:, 0, 0].tolist() == [18, 11, 11, 0]
    plain = rolling_reference(ints(100), ints(0), known, keys, values, ints(10, 9, 5, 4))
    assert np.array_equal(plain[0], counts) and np.array_equal(plain[1], sums)


def test_an_unknown_key_has_no_events() -> None:
    counts, sums = rolling_sums(
        ints(5, 5), ints(-1, 1), ints(1), ints(0, 1), prefix_sums(np.array([[3]])), ints(10)
    )
    assert not counts.any() and not sums.any()


def test_sums_stay_exact_where_floats_would_not() -> None:
    big = 2**53
    counts, sums = rolling_sums(
        ints(10), ints(0), ints(1, 8, 9), ints(0, 3), prefix_sums(np.array([[big, 1, 1]])), ints(5)
    )
    assert counts[0, 0] == 2 and sums[0, 0, 0] == 2
