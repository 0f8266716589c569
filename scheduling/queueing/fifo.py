"""In order of submission: strict (nobody passes the head), or with backfill (who fits may pass)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]


def keys(submitted_ns: I64) -> I64:
    """[R] the time of submission is the key."""
    return submitted_ns.astype(np.int64, copy=True)


def strict_prefix(key: I64, rank: I64, milli: I64, free_milli: int) -> npt.NDArray[np.bool_]:
    """[R] who may start when nobody passes the head: the longest prefix in (key, rank) order that fits together."""
    order = np.lexsort((rank, key))
    starts = np.zeros(len(key), np.bool_)
    starts[order] = np.cumsum(milli[order]) <= free_milli
    return starts
