"""The rules by which a placement is scored (numba): what a task would cost on a node, lower is better.

0 best fit, 1 potential, 2 FGD, 3 dot product, 4 random, 5 first. All arithmetic is in int64, so a score is the same
on every machine.

The rules read a node as one row of `state` (int64[N, DEVICES + 2 * G]): the columns named below, then the free
milli-GPU of its devices, then their free MiB. One array with a node's figures side by side is what makes a score cost
tens of nanoseconds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moorage.kernels.jit import outer

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

WHOLE = 1000
BEST_FIT, POTENTIAL, FGD, DOT_PRODUCT, RANDOM, FIRST = range(6)
CPU, MIB, MODEL, COUNT, DEVICE_MIB, IDLE, FREE, ROW, DEVICES = range(9)
TIE_BITS = 21
"""A key is `score << TIE_BITS | tie`: up to two million nodes, scores within +-2**41."""

FAR = 2**62
_MOST = 2**41 - 1
_AMPLE = 10**9


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
    """One rule and its tables, made by `scheduling.packing.scorings`. Z stages, M GPU model rows, K price points, G
    devices, T typical tasks."""

    kind: int
    tie: I64
    """[N]: a permutation; ties go to the lowest"""
    salt: int
    """random: its seed"""
    value: I64
    """potential [Z*M,1001+G+1,K]: by what is free on a device: its value, less the CPU and memory its use costs.
    Entries 0 and 1000 are 0: wholly idle devices count together, `value[r, 1001 + i]` for i of them. The rows of
    the GPU models are there once for each stage."""
    price: I64
    """potential [Z*M,2,K]: per milli-CPU, per MiB"""
    stages: I64
    """potential [Z-1]: falling; the next stage begins when no more milli-GPU than this is free in the whole pool"""
    typical: I64
    """FGD [T,5]: row in `levels`, devices, milli-CPU, frequency, bit mask of the models it may use"""
    levels: I64
    """FGD [L]: distinct milli-GPU per device of the typical tasks"""
    steps: I64
    """FGD [99]: the gain at which the score rises to each percent"""


@outer
def share(milli: int, gpu_mib: int, device_mib: int) -> int:
    """MiB a task holds on each device it touches."""
    if milli >= WHOLE:
        return device_mib
    return gpu_mib if gpu_mib > 0 else milli * device_mib // WHOLE


@outer
def tightest(state: I64, n: int, milli: int, mem: int, raylet: bool) -> int:
    """Device for a fraction: the smallest sufficient remainder, ties to the lowest index; -1 = none.

    Under the raylet's rule memory does not steer the choice: if the device it would take lacks memory, the node
    cannot be used.
    """
    best, left, end = -1, FAR, DEVICES + state[n, COUNT]
    stride = (state.shape[1] - DEVICES) // 2
    for d in range(DEVICES, end):
        free = state[n, d]
        if free >= milli and free < left and (raylet or state[n, d + stride] >= mem):
            best, left = d, free
    if best < 0 or state[n, best + stride] < mem:
        return -1
    return best - DEVICES


@outer
def lowest_idle(state: I64, n: int, need: int) -> int:
    """Mask of the first `need` wholly idle devices."""
    mask = np.int64(0)
    for d in range(state[n, COUNT]):
        if need > 0 and state[n, DEVICES + d] == WHOLE:
            mask |= np.int64(1) << d
            need -= 1
    return int(mask)


@outer
def best_fit(state: I64, n: int, milli: int, device: int) -> int:
    """The remainder left on the device or of whole devices, then the least free on the node (Johnson, 1973)."""
    free = state[n, FREE]
    if milli == 0:
        return int(free * 1_000_000 + min(state[n, CPU] // 1000, 999_999))
    left = state[n, DEVICES + device] - milli if device >= 0 else state[n, IDLE] - milli // WHOLE
    return int((left << 17) + free)


@outer
def dot_product(state: I64, n: int, milli: int, cpu: int) -> int:
    """Demand times what is free, in percent, the smallest first: as FGD's authors ran Tetris (SIGCOMM'14).

    CPU and GPU by the largest node of their cluster, 128 cores and 8 devices.
    """
    product = float(state[n, CPU]) / 128_000 * cpu / 128_000 + float(state[n, FREE]) / 8_000 * milli / 8_000
    return int(100 - int(100 * (1 - product / 2)))


@outer
def mixed(salt: int, c: int, n: int, cpu: int, free: int) -> int:
    """40 bits that look random and change whenever the node does (the mixer of splitmix64)."""
    x = np.uint64(salt) ^ (np.uint64(c) * np.uint64(0x9E3779B97F4A7C15)) ^ (np.uint64(n) << np.uint64(40))
    x ^= np.uint64(cpu) * np.uint64(0xD6E8FEB86659FD93) ^ np.uint64(free)
    for _ in range(2):
        x ^= x >> np.uint64(30)
        x *= np.uint64(0xBF58476D1CE4E5B9)
        x ^= x >> np.uint64(27)
        x *= np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return int(np.int64(x >> np.uint64(24)))


@outer
def hole_sums(state: I64, n: int, value: I64, sums: I64) -> None:
    """Into `sums[n]` the summed value of the node's holes at each price point."""
    m, points = state[n, ROW], value.shape[2]
    for k in range(points):
        sums[n, k] = value[m, WHOLE + 1 + state[n, IDLE], k]
    for d in range(DEVICES, DEVICES + state[n, COUNT]):
        free = state[n, d]
        if 0 < free < WHOLE:
            for k in range(points):
                sums[n, k] += value[m, free, k]


@outer
def node_worth(state: I64, n: int, value: I64, price: I64, sums: I64) -> int:
    """The potential of a node, its `sums` brought up to date.

    The least over the price points of the values of the holes plus the CPU and memory left at those prices: the
    Lagrangian bound on what can still be packed there.
    """
    hole_sums(state, n, value, sums)
    m, least = state[n, ROW], FAR
    cpu, mib = min(state[n, CPU], _AMPLE), min(state[n, MIB], _AMPLE)
    for k in range(value.shape[2]):
        least = min(least, sums[n, k] + price[m, 0, k] * cpu + price[m, 1, k] * mib)
    return int(least)


@outer
def whole_cost(
    state: I64, n: int, value: I64, price: I64, sums: I64, base: int, need: int, cpu: int, mib: int
) -> int:
    """The fall of the potential when `need` idle devices, CPU and memory are taken."""
    m, idle, least = state[n, ROW], WHOLE + 1 + state[n, IDLE], FAR
    cpu_left, mib_left = min(state[n, CPU], _AMPLE) - cpu, min(state[n, MIB], _AMPLE) - mib
    for k in range(value.shape[2]):
        holes = sums[n, k] + value[m, idle - need, k] - value[m, idle, k]
        least = min(least, holes + price[m, 0, k] * cpu_left + price[m, 1, k] * mib_left)
    return int(min(max(base - least, -_MOST), _MOST))


@outer
def fraction_cost(
    state: I64, n: int, value: I64, price: I64, sums: I64, base: int, d: int, milli: int, cpu: int, mib: int
) -> int:
    """The fall of the potential when a fraction goes on device `d`."""
    m, free, least = state[n, ROW], state[n, DEVICES + d], FAR
    cpu_left, mib_left = min(state[n, CPU], _AMPLE) - cpu, min(state[n, MIB], _AMPLE) - mib
    now, less = free, 0
    if free == WHOLE:
        now = WHOLE + 1 + state[n, IDLE]
        less = now - 1
    for k in range(value.shape[2]):
        holes = sums[n, k] + value[m, free - milli, k] - value[m, now, k] + value[m, less, k]
        least = min(least, holes + price[m, 0, k] * cpu_left + price[m, 1, k] * mib_left)
    return int(min(max(base - least, -_MOST), _MOST))


@outer
def cheapest_device(
    state: I64, n: int, value: I64, price: I64, sums: I64, base: int, milli: int, mem: int, cpu: int, mib: int
) -> tuple[int, int]:
    """(cost, device) of the device where a fraction lets the potential fall least, ties to the lowest index."""
    best, device = FAR, -1
    stride = (state.shape[1] - DEVICES) // 2
    last = np.int64(-1)
    for d in range(DEVICES, DEVICES + state[n, COUNT]):
        free = state[n, d]
        if free < milli or free == last or state[n, d + stride] < mem:
            continue
        last = free
        cost = fraction_cost(state, n, value, price, sums, base, d - DEVICES, milli, cpu, mib)
        if cost < best:
            best, device = cost, d - DEVICES
    return int(best), int(device)


@outer
def fragmentation(state: I64, n: int, cpu: int, typical: I64, levels: I64, at: I64) -> int:
    """Expected free milli-GPU that a typical task cannot use, times the unit of the frequencies.

    "Beware of Fragmentation" (Weng et al., USENIX ATC'23), section 3. `at` is scratch, int64[2,L].
    """
    total = np.int64(0)
    for i in range(len(levels)):
        at[0, i] = at[1, i] = 0
    for d in range(DEVICES, DEVICES + state[n, COUNT]):
        free = state[n, d]
        total += free
        for i in range(len(levels)):
            if free < levels[i]:
                at[0, i] += free
            else:
                at[1, i] += 1
    model = state[n, MODEL]
    frag = np.int64(0)
    for t in range(len(typical)):
        i = typical[t, 0]
        fits = (
            levels[i] > 0
            and typical[t, 1] <= at[1, i]
            and typical[t, 2] <= cpu
            and (typical[t, 4] >> model) & 1
        )
        frag += typical[t, 3] * (at[0, i] if fits else total)
    return int(frag)


@outer
def fragments(
    state: I64,
    n: int,
    mask: int,
    milli: int,
    cpu: int,
    typical: I64,
    levels: I64,
    steps: I64,
    base: int,
    at: I64,
) -> int:
    """100 minus FGD's score, int(100 * sigmoid(gain)), for a task on the devices of `mask`."""
    each = min(milli, WHOLE)
    for d in range(state[n, COUNT]):
        if mask >> d & 1:
            state[n, DEVICES + d] -= each
    after = fragmentation(state, n, state[n, CPU] - cpu, typical, levels, at)
    for d in range(state[n, COUNT]):
        if mask >> d & 1:
            state[n, DEVICES + d] += each
    return int(100 - np.searchsorted(steps, base - after, side="right"))


@outer
def least_fragmented(
    state: I64,
    n: int,
    milli: int,
    mem: int,
    cpu: int,
    typical: I64,
    levels: I64,
    steps: I64,
    base: int,
    at: I64,
) -> tuple[int, int]:
    """(cost, device) of the device where a fraction fragments least, ties to the lowest index."""
    best, device = FAR, -1
    stride = (state.shape[1] - DEVICES) // 2
    for d in range(state[n, COUNT]):
        if state[n, DEVICES + d] < milli or state[n, DEVICES + stride + d] < mem:
            continue
        cost = fragments(state, n, 1 << d, milli, cpu, typical, levels, steps, base, at)
        if cost < best:
            best, device = cost, d
    return int(best), int(device)
