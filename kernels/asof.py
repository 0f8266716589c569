"""As-of lookup: for each left row, the last right row of the same key that is not later.

Two forms of one meaning. `asof_search` takes the right side sorted by (key, time) and left rows in any order:
what a request needs. `asof_merge` takes both sides sorted by time and walks them once: what a bulk join needs.
Times are int64 in any one unit; keys are codes in [0, number of keys), a left key outside that range matches
nothing.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]
NO_TOLERANCE = np.int64(2**62)


@njit(cache=True)
def first_at_or_after(times: Int64Array, lo: int, hi: int, time: int) -> int:
    """Index of the first of times[lo:hi] (ascending) that is >= time; hi if there is none."""
    while lo < hi:
        mid = (lo + hi) >> 1
        if times[mid] < time:
            lo = mid + 1
        else:
            hi = mid
    return lo


@njit(cache=True)
def asof_search(
    left_time: Int64Array,
    left_key: Int64Array,
    right_time: Int64Array,
    right_offsets: Int64Array,
    tolerance: int,
    strict: bool,
) -> Int64Array:
    """Index into the right side per left row, -1 where nothing matches. Shapes: [n], [n], [m], [keys + 1] -> [n].

    The rows of key k are right_time[right_offsets[k]:right_offsets[k + 1]], ascending. A match is at most
    `tolerance` older than the left row; `strict` leaves out a right row of exactly the left row's time.
    """
    found = np.full(left_time.shape[0], -1, dtype=np.int64)
    keys = right_offsets.shape[0] - 1
    for i in range(left_time.shape[0]):
        key = left_key[i]
        if key < 0 or key >= keys:
            continue
        start = right_offsets[key]
        bound = left_time[i] if strict else left_time[i] + 1
        last = first_at_or_after(right_time, start, right_offsets[key + 1], bound) - 1
        if last >= start and left_time[i] - right_time[last] <= tolerance:
            found[i] = last
    return found


@njit(cache=True)
def window_bounds(
    at: Int64Array, key: Int64Array, times: Int64Array, offsets: Int64Array, widths: Int64Array
) -> tuple[Int64Array, Int64Array]:
    """(begin [w, n], end [n]): times[begin:end] are the key's rows in [at - width, at).

    Shapes: [n], [n], [m] ascending within each key, [keys + 1], [w]. A key outside [0, keys) has the empty
    range 0:0. It stands here and not with the sums because numba's cache does not see a change in another file.
    """
    begin = np.zeros((widths.shape[0], at.shape[0]), dtype=np.int64)
    end = np.zeros(at.shape[0], dtype=np.int64)
    keys = offsets.shape[0] - 1
    for i in range(at.shape[0]):
        if key[i] < 0 or key[i] >= keys:
            continue
        start = offsets[key[i]]
        end[i] = first_at_or_after(times, start, offsets[key[i] + 1], at[i])
        for w in range(widths.shape[0]):
            begin[w, i] = first_at_or_after(times, start, end[i], at[i] - widths[w])
    return begin, end


@njit(cache=True)
def asof_merge(
    left_time: Int64Array,
    left_key: Int64Array,
    right_time: Int64Array,
    right_key: Int64Array,
    keys: int,
    tolerance: int,
    strict: bool,
) -> Int64Array:
    """Index into the right side per left row, -1 where nothing matches; both sides ascending in time.

    Shapes: [n], [n], [m], [m] -> [n]. Of right rows with equal key and time the last one wins. Right keys must
    lie in [0, keys). O(n + m) time, O(keys) memory.
    """
    found = np.full(left_time.shape[0], -1, dtype=np.int64)
    latest = np.full(keys, -1, dtype=np.int64)
    j = 0
    for i in range(left_time.shape[0]):
        time = left_time[i]
        while j < right_time.shape[0] and (right_time[j] < time or (not strict and right_time[j] == time)):
            latest[right_key[j]] = j
            j += 1
        key = left_key[i]
        if 0 <= key < keys:
            last = latest[key]
            if last >= 0 and time - right_time[last] <= tolerance:
                found[i] = last
    return found


def asof_reference(
    left_time: Int64Array,
    left_key: Int64Array,
    right_time: Int64Array,
    right_key: Int64Array,
    tolerance: int,
    strict: bool,
) -> Int64Array:
    """The plain meaning of both kernels, O(n * m): the right rows in any order, the last of equal times wins."""
    found = np.full(len(left_time), -1, dtype=np.int64)
    for i, (time, key) in enumerate(zip(left_time.tolist(), left_key.tolist(), strict=True)):
        best: int | None = None
        for j, (seen, owner) in enumerate(zip(right_time.tolist(), right_key.tolist(), strict=True)):
            if owner != key or seen > time or (strict and seen == time) or time - seen > tolerance:
                continue
            if best is None or seen >= int(right_time[best]):
                best = j
        if best is not None:
            found[i] = best
    return found


def group_by_key(keys: Int64Array, times: Int64Array, count: int) -> tuple[Int64Array, Int64Array]:
    """(order, offsets): `order` sorts rows by (key, time), stable; offsets [count + 1] bound each key's rows.

    Raises ValueError when a key lies outside [0, count).
    """
    if len(keys) and (int(keys.min()) < 0 or int(keys.max()) >= count):
        raise ValueError(f"keys must lie in [0, {count})")
    order = np.lexsort((times, keys)).astype(np.int64)
    offsets = np.searchsorted(keys[order], np.arange(count + 1)).astype(np.int64)
    return order, offsets
