"""Least remaining work first. An oracle: it is told durations that nobody knows, so only the simulator may use it, to
say how far a policy is from the best there could be."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moorage.scheduling.queueing.index import log_key

I64 = npt.NDArray[np.int64]


def keys(remaining_ns: I64, milli: I64 | None = None) -> I64:
    """[R] by remaining time; with `milli`, by remaining GPU-time (least work per job ended)."""
    gpus = np.ones(len(remaining_ns)) if milli is None else milli / 1000.0
    return np.array([log_key(float(s)) for s in np.maximum(remaining_ns, 0) / 1e9 * gpus], np.int64).reshape(
        len(remaining_ns)
    )
