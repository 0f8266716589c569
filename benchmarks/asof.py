"""As-of join: the kernels beside Polars, on the same columns; the results are compared before they are timed."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import polars as pl
from _frame import Figure, interleaved, main

from moorage.kernels.asof import NO_TOLERANCE, Int64Array, asof_merge, asof_search, group_by_key

KEYS = 10_000


def columns(rows: int, seed: int) -> tuple[Int64Array, Int64Array]:
    """(time, key), ascending in time."""
    draw = np.random.default_rng(seed)
    time = np.sort(draw.integers(0, 10**12, rows))
    return time, draw.integers(0, KEYS, rows)


def measure(quick: bool) -> list[Figure]:
    n, m, rounds = (500_000, 100_000, 1) if quick else (10_000_000, 1_000_000, 3)
    left_time, left_key = columns(n, 1)
    right_time, right_key = columns(m, 2)
    values = np.arange(m, dtype=np.int64)
    left = pl.DataFrame({"time": left_time, "key": left_key}).set_sorted("time")
    right = pl.DataFrame({"time": right_time, "key": right_key, "value": values}).set_sorted("time")
    order, offsets = group_by_key(right_key, right_time, KEYS)
    sorted_time, sorted_values = right_time[order], values[order]

    def merged() -> Int64Array:
        found = asof_merge(left_time, left_key, right_time, right_key, KEYS, NO_TOLERANCE, False)
        return np.where(found >= 0, values[np.maximum(found, 0)], -1)

    def searched() -> Int64Array:
        found = asof_search(left_time, left_key, sorted_time, offsets, NO_TOLERANCE, False)
        return np.where(found >= 0, sorted_values[np.maximum(found, 0)], -1)

    def joined() -> pl.DataFrame:
        return left.join_asof(right, on="time", by="key", check_sortedness=False)

    expected = joined()["value"].fill_null(-1).to_numpy()
    assert np.array_equal(merged(), expected) and np.array_equal(searched(), expected), "the joins must agree"
    polars = f"polars {pl.__version__} join_asof, {pl.thread_pool_size()} threads, ours 1"
    shape = f"{n / 1e6:g} M x {m / 1e6:g} M rows, {KEYS} keys"
    figures = []
    for name, ours in (("merge of sorted rows", merged), ("search per row", searched)):
        seconds, peer = interleaved(lambda ours=ours: timed(ours), lambda: timed(joined), rounds)
        figures.append(
            Figure(
                metric=f"as-of join by {name}, {shape}, rows/s",
                ours=n / seconds,
                peer=n / peer,
                peer_name=polars,
                better="higher",
                target=2.0 if ours is merged else None,
            )
        )
    return figures


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    raise SystemExit(main(measure, "as-of join with the value gathered: numba kernels beside Polars"))
