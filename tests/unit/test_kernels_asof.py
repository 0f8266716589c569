"""D2, D4: the as-of kernels on cases small enough to read."""

from __future__ import annotations

import numpy as np
import pytest

from moorage.kernels.asof import NO_TOLERANCE, asof_merge, asof_reference, asof_search, group_by_key


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


RIGHT_TIME, RIGHT_KEY = ints(10, 20, 20, 30), ints(0, 0, 1, 0)
CASES = [
    ("the last one before", 25, 0, NO_TOLERANCE, False, 1),
    ("one at the very moment counts", 20, 0, NO_TOLERANCE, False, 1),
    ("unless strictly before is asked", 20, 0, NO_TOLERANCE, True, 0),
    ("another key's row is not it", 19, 1, NO_TOLERANCE, False, -1),
    ("nothing before the first", 9, 0, NO_TOLERANCE, False, -1),
    ("too old", 36, 0, 5, False, -1),
    ("just not too old", 35, 0, 5, False, 3),
    ("a key nobody has", 25, 7, NO_TOLERANCE, False, -1),
    ("no key", 25, -1, NO_TOLERANCE, False, -1),
]


@pytest.mark.parametrize(
    ("what", "time", "key", "tolerance", "strict", "expected"), CASES, ids=[c[0] for c in CASES]
)
def test_each_form_finds_the_row_a_reader_would(
    what: str, time: int, key: int, tolerance: int, strict: bool, expected: int
) -> None:
    order, offsets = group_by_key(RIGHT_KEY, RIGHT_TIME, 2)
    found = asof_search(ints(time), ints(key), RIGHT_TIME[order], offsets, tolerance, strict)
    assert (order[found[0]] if found[0] >= 0 else -1) == expected
    assert asof_merge(ints(time), ints(key), RIGHT_TIME, RIGHT_KEY, 2, tolerance, strict)[0] == expected
    assert asof_reference(ints(time), ints(key), RIGHT_TIME, RIGHT_KEY, tolerance, strict)[0] == expected


def test_grouping_refuses_a_key_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"\[0, 2\)"):
        group_by_key(ints(0, 2), ints(1, 1), 2)
