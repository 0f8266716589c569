"""Requests on devices that serve them one at a time, in order of arrival: what each one's latency is.

Nothing here knows how placements are made or what was predicted of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moorage.scheduling.model import IntArray

F64 = npt.NDArray[np.float64]


def latencies(arrival_ms: F64, service_ms: F64, device: IntArray) -> F64:
    """[n] ms from arrival to answer. `device[n]` is where each request goes, -1 = nowhere: its latency is infinite.

    Lindley's recursion: a request begins when it has come and the one before it on its device is done.
    """
    out = np.full(len(arrival_ms), np.inf)
    order = np.lexsort((np.arange(len(arrival_ms)), arrival_ms))
    free: dict[int, float] = {}
    come, work, where = arrival_ms.tolist(), service_ms.tolist(), device.tolist()
    for row in order.tolist():
        at = where[row]
        if at < 0:
            continue
        done = max(come[row], free.get(at, 0.0)) + work[row]
        free[at] = done
        out[row] = done - come[row]
    return out
