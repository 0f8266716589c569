"""Counts and sums over the events of a key that became known in a window that ends before a moment.

An event counts for a query at time q and width w when  q - w <= known < q : never at q itself or later. Values are
integers and so are the prefix sums, so a sum is exact and the same whatever came before it: offline and online
agree to the bit. Times are int64 in any one unit.
"""

from __future__ import annotations

import numpy as np

from moorage.kernels.asof import Int64Array, window_bounds


def prefix_sums(values: Int64Array) -> Int64Array:
    """Running sums with a leading zero. Shape [m, n] -> [m, n + 1]; sums of values[:, a:b] are p[:, b] - p[:, a]."""
    sums = np.zeros((values.shape[0], values.shape[1] + 1), dtype=np.int64)
    np.cumsum(values, axis=1, out=sums[:, 1:])
    return sums


def rolling_sums(
    query_time: Int64Array,
    query_key: Int64Array,
    known: Int64Array,
    offsets: Int64Array,
    prefix: Int64Array,
    widths: Int64Array,
) -> tuple[Int64Array, Int64Array]:
    """(counts [w, q], sums [w, m, q]) of the events known in [time - width, time) for each query and width.

    Shapes: [q], [q], known [n] ascending within each key, offsets [keys + 1], prefix [m, n + 1], widths [w]. A
    query key outside [0, keys) has no events.
    """
    begin, end = window_bounds(query_time, query_key, known, offsets, widths)
    return end - begin, (prefix[:, end][:, None, :] - prefix[:, begin]).transpose(1, 0, 2)


def rolling_reference(
    query_time: Int64Array,
    query_key: Int64Array,
    known: Int64Array,
    event_key: Int64Array,
    values: Int64Array,
    widths: Int64Array,
) -> tuple[Int64Array, Int64Array]:
    """The plain meaning of `rolling_sums`, O(q * n); events in any order, values [m, n]."""
    counts = np.zeros((len(widths), len(query_time)), dtype=np.int64)
    sums = np.zeros((len(widths), values.shape[0], len(query_time)), dtype=np.int64)
    for w, width in enumerate(widths.tolist()):
        for i, (time, key) in enumerate(zip(query_time.tolist(), query_key.tolist(), strict=True)):
            inside = (event_key == key) & (known >= time - width) & (known < time)
            counts[w, i] = int(inside.sum())
            sums[w, :, i] = values[:, inside].sum(axis=1)
    return counts, sums
