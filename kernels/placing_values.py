"""Knapsacks over one device (numba): what can still be packed into a hole of so many milli-GPU."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]


@numba.njit(cache=True)
def fillings(sizes: I64, worth: F64, room: int) -> F64:
    """The most worth that fits into each hole: `out[f, k]`, f = 0..room, for K worths per size (`worth[S,K]`).

    Sizes are positive, each may be used any number of times; worths are not negative.
    """
    points = worth.shape[1]
    out = np.zeros((room + 1, points))
    for f in range(1, room + 1):
        for k in range(points):
            out[f, k] = out[f - 1, k]
        for i in range(len(sizes)):
            if sizes[i] <= f:
                for k in range(points):
                    out[f, k] = max(out[f, k], out[f - sizes[i], k] + worth[i, k])
    return out


@numba.njit(cache=True)
def best_pattern(sizes: I64, worth: F64, room: int) -> tuple[float, I64]:
    """The worth of the best filling of a hole of `room`, and how often it uses each size."""
    best = np.zeros(room + 1)
    used = np.full(room + 1, -1, np.int64)
    for f in range(1, room + 1):
        best[f] = best[f - 1]
        for i in range(len(sizes)):
            if sizes[i] <= f and best[f - sizes[i]] + worth[i] > best[f] + 1e-12:
                best[f], used[f] = best[f - sizes[i]] + worth[i], i
    counts = np.zeros(len(sizes), np.int64)
    f = room
    while f > 0:
        if used[f] < 0:
            f -= 1
        else:
            counts[used[f]] += 1
            f -= sizes[used[f]]
    return best[room], counts
