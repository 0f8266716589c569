"""From what a job got, and what is known of its kind, to its key. Keys are 1024 * log2 of seconds of GPU-time:
1024 more means twice the GPU-time, so a hysteresis of a factor 2 is a margin of 1024.

- `attained_key`: least attained service over GPU-time, as Tiresias orders (Gu et al., NSDI 2019: 2D-LAS)
- `learned_key`: Gittins' index (Gittins, 1979; Tiresias' 2D-Gittins) of the learned rates: the least expected
  GPU-time per job ended, over all lengths of the next stretch of service
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from moorage.scheduling.queueing.history import BINS, FIRST_NS, SIZES, History, bin_of, rates, size_of
from moorage.scheduling.queueing.jit import compiled

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

DOUBLING = 1024
_SIZES_MILLI = (500, 1000, 2000, 4000, 8000, 16000)


@compiled
def log_key(seconds: float) -> int:
    """DOUBLING * log2, rounded down; below one millisecond counts as one millisecond."""
    return math.floor(DOUBLING * math.log2(max(seconds, 1e-3)))


@compiled
def attained_key(milli: int, attained_ns: int) -> int:
    """Key of a job that ran `attained_ns` on `milli` milli-GPU; the first minute counts as one minute."""
    return log_key(max(attained_ns, FIRST_NS) / 1e9 * milli / 1000.0)


@compiled
def gittins(rate: F64) -> F64:
    """[BINS] seconds of service per end that the best stretch starting at each bin promises. `rate`: ends per second.

    For a stretch over bins k..m: expected service / probability of ending in it; the best m counts.
    """
    best = np.full(BINS, np.inf)
    for k in range(BINS):
        alive = 1.0
        service = 0.0
        for m in range(k, BINS):
            width = FIRST_NS / 1e9 * (1.0 if m == 0 else 2.0 ** (m - 1))
            stays = math.exp(-rate[m] * width)
            service += alive * (1.0 - stays) / rate[m]
            alive *= stays
            if alive < 1.0:
                best[k] = min(best[k], service / (1.0 - alive))
    return best


@compiled
def table(history: History) -> I64:
    """[teams * SIZES, BINS] key of one GPU at each age, by team * SIZES + size. Rebuild it now and then: it is a
    function of the history alone."""
    groups = (len(history.ended) - 1 - SIZES) // 2
    keys = np.empty((groups, BINS), np.int64)
    for group in range(groups):
        seconds = gittins(rates(history, group // SIZES, _SIZES_MILLI[group % SIZES]))
        for k in range(BINS):
            keys[group, k] = log_key(seconds[k])
    return keys


@compiled
def learned_key(keys: I64, team: int, milli: int, attained_ns: int) -> int:
    """Key of a job of `milli` milli-GPU in all that ran `attained_ns`; `keys` is `table()`'s."""
    one: int = keys[team * SIZES + size_of(milli), bin_of(attained_ns)]
    return one + log_key(max(milli, 1) / 1000.0)


@compiled
def learned_keys(keys: I64, team: I64, milli: I64, attained_ns: I64) -> I64:
    """`learned_key` for [R] rows."""
    out = np.empty(len(team), np.int64)
    for row in range(len(team)):
        out[row] = learned_key(keys, team[row], milli[row], attained_ns[row])
    return out


@compiled
def attained_keys(milli: I64, attained_ns: I64) -> I64:
    """`attained_key` for [R] rows."""
    out = np.empty(len(milli), np.int64)
    for row in range(len(milli)):
        out[row] = attained_key(milli[row], attained_ns[row])
    return out
