"""The rules by which a placement is scored (numba): what a task would cost on a node, lower is better.

`KINDS`: 0 best fit, 1 potential, 2 FGD, 3 dot product, 4 random, 5 first. All arithmetic is in int64, so a score is
the same on every machine.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

WHOLE = 1000
BEST_FIT, POTENTIAL, FGD, DOT_PRODUCT, RANDOM, FIRST = range(6)
TIE_BITS = 21
"""A key is `score << TIE_BITS | tie`: up to two million nodes, scores within +-2**41."""

FAR = np.int64(2**62)
_MOST = np.int64(2**41 - 1)
_CPU_MOST = np.int64(10**9)


class Nodes(NamedTuple):
    """The working copy of the pool, mutated in place. Shapes and units: `placing`."""

    milli_free: I64
    mem_free: I64
    devices: I64
    device_mib: I64
    model: I64
    cpu_free: I64
    mib_free: I64


class Classes(NamedTuple):
    """The distinct task shapes of one decision. `milli` is 0, a fraction below 1000, or whole devices."""

    milli: I64
    gpu_mib: I64
    cpu: I64
    mib: I64
    allowed: Bool
    """[C,N]: up, model, labels, taints, region: all that does not change within the decision"""


class Scoring(NamedTuple):
    """One rule and its tables. `scheduling.packing.scorings` makes them; those a rule does not use are of length 0.

    M GPU model rows, K price points, T typical tasks, G devices.
    """

    kind: int
    tie: I64
    """[N]: a permutation; ties go to the lowest"""
    salt: int
    """random: its seed"""
    hole: I64
    """potential [M,K,1001]: value of a device by what is free on it, less what its CPU and memory cost"""
    idle: I64
    """potential [M,K,G+1]: value of so many wholly idle devices together"""
    cpu_price: I64
    """potential [M,K]: per milli-CPU"""
    mib_price: I64
    """potential [M,K]: per MiB"""
    typical: I64
    """FGD [T,5]: row in `levels`, devices, milli-CPU, frequency, bit mask of the models it may use"""
    levels: I64
    """FGD [L]: distinct milli-GPU per device of the typical tasks"""
    steps: I64
    """FGD [100]: the gain at which the score rises to each percent"""


@numba.njit(cache=True)
def share(milli: np.int64, gpu_mib: np.int64, device_mib: np.int64) -> np.int64:
    """MiB a task holds on each device it touches."""
    if milli >= WHOLE:
        return device_mib
    return gpu_mib if gpu_mib > 0 else milli * device_mib // WHOLE


@numba.njit(cache=True)
def tightest(nodes: Nodes, n: int, milli: np.int64, mem: np.int64, raylet: bool) -> int:
    """Device for a fraction: the smallest sufficient remainder, ties to the lowest index; -1 = none.

    Under the raylet's rule memory does not steer the choice: if the device it would take lacks memory, the node
    cannot be used.
    """
    best, left = -1, FAR
    for d in range(nodes.devices[n]):
        free = nodes.milli_free[n, d]
        if free >= milli and free < left and (raylet or nodes.mem_free[n, d] >= mem):
            best, left = d, free
    if best >= 0 and nodes.mem_free[n, best] < mem:
        return -1
    return best


@numba.njit(cache=True)
def idle_devices(nodes: Nodes, n: int) -> int:
    count = 0
    for d in range(nodes.devices[n]):
        if nodes.milli_free[n, d] == WHOLE:
            count += 1
    return count


@numba.njit(cache=True)
def node_free(nodes: Nodes, n: int) -> np.int64:
    """Milli-GPU free on a node."""
    free = np.int64(0)
    for d in range(nodes.devices[n]):
        free += nodes.milli_free[n, d]
    return free


@numba.njit(cache=True)
def device_choice(nodes: Nodes, classes: Classes, scoring: Scoring, c: int, n: int, raylet: bool) -> np.int64:
    """The devices a task of class `c`, known to fit on node `n`, takes there."""
    milli = classes.milli[c]
    if milli == 0:
        return np.int64(0)
    if milli >= WHOLE:
        mask, need = np.int64(0), milli // WHOLE
        for d in range(nodes.devices[n]):
            if nodes.milli_free[n, d] == WHOLE and need > 0:
                mask |= np.int64(1) << d
                need -= 1
        return mask
    if raylet or scoring.kind > FGD or scoring.kind == BEST_FIT:
        mem = share(milli, classes.gpu_mib[c], nodes.device_mib[n])
        return np.int64(np.int64(1) << tightest(nodes, n, milli, mem, raylet))
    return np.int64(np.int64(1) << _steered(nodes, classes, scoring, np.int64(0), c, n)[1])


@numba.njit(cache=True)
def score(
    nodes: Nodes, classes: Classes, scoring: Scoring, base: np.int64, c: int, n: int, raylet: bool
) -> np.int64:
    """Score of a task of class `c` on node `n`, which has the CPU and memory; FAR when the devices do not fit it.

    `base` is `base_value` of the node, for the rules which score by its fall.
    """
    milli = classes.milli[c]
    device = -1
    if milli >= WHOLE:
        if nodes.devices[n] * WHOLE < milli or classes.gpu_mib[c] > nodes.device_mib[n]:
            return FAR
        if idle_devices(nodes, n) * WHOLE < milli:
            return FAR
    elif milli > 0:
        device = tightest(nodes, n, milli, share(milli, classes.gpu_mib[c], nodes.device_mib[n]), raylet)
        if device < 0:
            return FAR
    kind = scoring.kind
    if kind in (POTENTIAL, FGD):
        if device >= 0 and not raylet:
            return np.int64(_steered(nodes, classes, scoring, base, c, n)[0])
        return np.int64(_fall(nodes, classes, scoring, base, c, n, device))
    if kind == BEST_FIT:
        return np.int64(_best_fit(nodes, milli, n, device))
    if kind == DOT_PRODUCT:
        return np.int64(_dot_product(nodes, classes, c, n))
    return (
        _mixed(scoring.salt, c, n, nodes.cpu_free[n], node_free(nodes, n)) if kind == RANDOM else np.int64(0)
    )


@numba.njit(cache=True)
def _best_fit(nodes: Nodes, milli: np.int64, n: int, device: int) -> np.int64:
    """The remainder left on the device or of whole devices, then the least free on the node (Johnson, 1973)."""
    free = node_free(nodes, n)
    if milli == 0:
        return np.int64(free * 1_000_000 + min(nodes.cpu_free[n] // 1000, np.int64(999_999)))
    left = nodes.milli_free[n, device] - milli if device >= 0 else idle_devices(nodes, n) - milli // WHOLE
    return np.int64((left << 17) + free)


@numba.njit(cache=True)
def _dot_product(nodes: Nodes, classes: Classes, c: int, n: int) -> np.int64:
    """Demand times what is free, in percent: the smallest first, as FGD's authors ran Tetris (SIGCOMM'14).

    CPU and GPU by the largest node of their cluster, 128 cores and 8 devices.
    """
    cpu = nodes.cpu_free[n] * classes.cpu[c] * 4000  # over 128,000**2 * 4000
    gpu = node_free(nodes, n) * classes.milli[c] * 1_024_000  # over 8,000**2 * 1,024,000: the same
    return 100 - np.int64(100 - (cpu + gpu) * 100 / (2 * 65_536_000_000_000.0))


@numba.njit(cache=True)
def _mixed(salt: int, c: int, n: int, cpu: np.int64, free: np.int64) -> np.int64:
    """40 bits that look random and change whenever the node does (the mixer of splitmix64)."""
    x = np.uint64(salt) ^ (np.uint64(c) * np.uint64(0x9E3779B97F4A7C15)) ^ (np.uint64(n) << np.uint64(40))
    x ^= np.uint64(cpu) * np.uint64(0xD6E8FEB86659FD93) ^ np.uint64(free)
    for _ in range(2):
        x ^= x >> np.uint64(30)
        x *= np.uint64(0xBF58476D1CE4E5B9)
        x ^= x >> np.uint64(27)
        x *= np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return np.int64(x >> np.uint64(24))


@numba.njit(cache=True)
def base_value(nodes: Nodes, scoring: Scoring, n: int) -> np.int64:
    """What a node as it is is worth (potential), or its fragmentation (FGD); rules without such a value: 0."""
    if scoring.kind == POTENTIAL:
        return np.int64(_worth(nodes, scoring, n, nodes.cpu_free[n], nodes.mib_free[n]))
    if scoring.kind == FGD:
        return np.int64(_fragmentation(nodes, scoring, n, nodes.cpu_free[n]))
    return np.int64(0)


@numba.njit(cache=True)
def _steered(
    nodes: Nodes, classes: Classes, scoring: Scoring, base: np.int64, c: int, n: int
) -> tuple[np.int64, int]:
    """(score, device) of the device where a fraction costs least, ties to the lowest index."""
    milli = classes.milli[c]
    mem = share(milli, classes.gpu_mib[c], nodes.device_mib[n])
    best, device = FAR, -1
    for d in range(nodes.devices[n]):
        free = nodes.milli_free[n, d]
        if free < milli or nodes.mem_free[n, d] < mem:
            continue
        twin = False
        for e in range(d):
            if nodes.milli_free[n, e] == free and nodes.mem_free[n, e] >= mem:
                twin = True
                break
        if twin:
            continue
        cost = _fall(nodes, classes, scoring, base, c, n, d)
        if cost < best:
            best, device = cost, d
    return best, device


@numba.njit(cache=True)
def _fall(
    nodes: Nodes, classes: Classes, scoring: Scoring, base: np.int64, c: int, n: int, device: int
) -> np.int64:
    """Score by the change of the node's value, the task placed on `device` (-1: the idle devices or none)."""
    milli, cpu, mib = classes.milli[c], classes.cpu[c], classes.mib[c]
    need = milli // WHOLE
    mask = np.int64(0)
    if device >= 0:
        mask = np.int64(1) << device
        nodes.milli_free[n, device] -= milli
    elif need > 0:
        for d in range(nodes.devices[n]):
            if need > 0 and nodes.milli_free[n, d] == WHOLE:
                nodes.milli_free[n, d] = 0
                mask |= np.int64(1) << d
                need -= 1
    if scoring.kind == POTENTIAL:
        after = _worth(nodes, scoring, n, nodes.cpu_free[n] - cpu, nodes.mib_free[n] - mib)
        found = min(max(base - after, -_MOST), _MOST)
    else:
        found = _percent(scoring, base - _fragmentation(nodes, scoring, n, nodes.cpu_free[n] - cpu))
    for d in range(nodes.devices[n]):
        if mask >> d & 1:
            nodes.milli_free[n, d] += min(milli, np.int64(WHOLE))
    return np.int64(found)


@numba.njit(cache=True)
def _worth(nodes: Nodes, scoring: Scoring, n: int, cpu: np.int64, mib: np.int64) -> np.int64:
    """The potential of a node: the least over price points of its holes' values plus its CPU and memory's."""
    m = nodes.model[n]
    least = FAR
    idle = idle_devices(nodes, n)
    for k in range(scoring.cpu_price.shape[1]):
        value = scoring.idle[m, k, idle]
        for d in range(nodes.devices[n]):
            free = nodes.milli_free[n, d]
            if free < WHOLE:
                value += scoring.hole[m, k, free]
        value += scoring.cpu_price[m, k] * min(cpu, _CPU_MOST) + scoring.mib_price[m, k] * min(mib, _CPU_MOST)
        least = min(least, value)
    return least


@numba.njit(cache=True)
def _fragmentation(nodes: Nodes, scoring: Scoring, n: int, cpu: np.int64) -> np.int64:
    """Expected free milli-GPU that a typical task cannot use, times the unit of the frequencies.

    "Beware of Fragmentation" (Weng et al., USENIX ATC'23), section 3.
    """
    total = node_free(nodes, n)
    frag = np.int64(0)
    small = np.empty(len(scoring.levels), np.int64)
    count = np.empty(len(scoring.levels), np.int64)
    for i in range(len(scoring.levels)):
        level, s, k = scoring.levels[i], np.int64(0), np.int64(0)
        for d in range(nodes.devices[n]):
            free = nodes.milli_free[n, d]
            if free < level:
                s += free
            else:
                k += 1
        small[i], count[i] = s, k
    model = nodes.model[n]
    for t in range(len(scoring.typical)):
        i = scoring.typical[t, 0]
        fits = (
            scoring.levels[i] > 0
            and scoring.typical[t, 1] <= count[i]
            and scoring.typical[t, 2] <= cpu
            and (scoring.typical[t, 4] >> model) & 1
        )
        frag += scoring.typical[t, 3] * (small[i] if fits else total)
    return frag


@numba.njit(cache=True)
def _percent(scoring: Scoring, gain: np.int64) -> np.int64:
    """100 minus FGD's score, int(100 * sigmoid(gain)): a step function, so kept as its steps."""
    return 100 - np.int64(np.searchsorted(scoring.steps, gain, side="right"))
