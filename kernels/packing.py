"""Best-fit placement of gangs on devices (numba), beside the plain reference it is tested against.

Best fit by the remainder a task leaves behind: the classic rule of bin packing (Johnson, 1973), with ties to
the node that is already most used, so that whole nodes stay whole for gangs.

Arrays, N nodes with at most G devices each, M GPU models (column 0 counts all of them):

=============  =========  =================================================================
milli_free     int64[N,G] free milli-GPU per device, 1000 = wholly free; unused columns are 0
mem_free       int64[N,G] free MiB per device
device_mib     int64[N]   MiB of one device
model          int64[N]   GPU model row, 0 = none
up             bool[N]    may be placed on
cpu_free       int64[N]   milli-CPU
mib_free       int64[N]   MiB of host memory
room           int64[M]   milli-GPU the team may still take, per model column
=============  =========  =================================================================
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

WHOLE = 1000
_FAR = np.int64(2**62)


@numba.njit(cache=True)
def _share(milli: np.int64, gpu_mib: np.int64, device_mib: np.int64) -> np.int64:
    """MiB a task holds on each device it touches."""
    if milli >= WHOLE:
        return device_mib
    return gpu_mib if gpu_mib > 0 else milli * device_mib // WHOLE


@numba.njit(cache=True)
def _device_for_fraction(milli_free: I64, mem_free: I64, milli: int, mib: int, raylet: bool) -> int:
    """Device of one node for a fraction: the smallest sufficient remainder, ties to the lowest index; -1 = none.

    Under the raylet's rule memory does not steer the choice: if the device it would take lacks memory, the
    node cannot be used.
    """
    best, left = -1, _FAR
    for d in range(milli_free.shape[0]):
        free = milli_free[d]
        if free >= milli and free < left and (raylet or mem_free[d] >= mib):
            best, left = d, free
    if best >= 0 and mem_free[best] < mib:
        return -1
    return best


@numba.njit(cache=True)
def _best_node(
    milli_free: I64,
    mem_free: I64,
    device_mib: I64,
    model: I64,
    up: Bool,
    cpu_free: I64,
    mib_free: I64,
    room: I64,
    want_model: int,
    shape: I64,
    raylet: bool,
) -> tuple[int, np.int64]:
    """(node, device mask) for one task, (-1, 0) when nothing fits."""
    milli, gpu_mib, cpu, mib = shape[0], shape[1], shape[2], shape[3]
    best, best_mask, best_score, best_free = -1, np.int64(0), _FAR, _FAR
    for n in range(milli_free.shape[0]):
        if not up[n] or cpu_free[n] < cpu or mib_free[n] < mib:
            continue
        if want_model > 0 and model[n] != want_model:
            continue
        if milli > 0 and (room[0] < milli or (model[n] > 0 and room[model[n]] < milli)):
            continue
        free = np.int64(0)
        whole = 0
        for d in range(milli_free.shape[1]):
            free += milli_free[n, d]
            if milli_free[n, d] == WHOLE:
                whole += 1
        mask = np.int64(0)
        if milli == 0:
            score = free * 1_000_000 + cpu_free[n] // 1000
        elif milli < WHOLE:
            d = _device_for_fraction(
                milli_free[n], mem_free[n], milli, _share(milli, gpu_mib, device_mib[n]), raylet
            )
            if d < 0:
                continue
            mask = np.int64(1) << d
            score = milli_free[n, d] - milli
        else:
            need = milli // WHOLE
            if whole < need or gpu_mib > device_mib[n]:
                continue
            score = np.int64(whole - need)
            taken = 0
            for d in range(milli_free.shape[1]):
                if milli_free[n, d] == WHOLE and taken < need:
                    mask |= np.int64(1) << d
                    taken += 1
        if score < best_score or (score == best_score and free < best_free):
            best, best_mask, best_score, best_free = n, mask, score, free
    return best, best_mask


@numba.njit(cache=True)
def _apply(
    sign: int,
    node: int,
    mask: np.int64,
    shape: I64,
    milli_free: I64,
    mem_free: I64,
    device_mib: I64,
    model: I64,
    cpu_free: I64,
    mib_free: I64,
    room: I64,
) -> np.int64:
    """Take (sign -1) or give back (+1) one task; returns the MiB per device."""
    milli = shape[0]
    each = milli if milli < WHOLE else np.int64(WHOLE)
    mem = _share(milli, shape[1], device_mib[node]) if milli > 0 else np.int64(0)
    for d in range(milli_free.shape[1]):
        if mask >> d & 1:
            milli_free[node, d] += sign * each
            mem_free[node, d] += sign * mem
    cpu_free[node] += sign * shape[2]
    mib_free[node] += sign * shape[3]
    if milli > 0:
        room[0] += sign * milli
        if model[node] > 0:
            room[model[node]] += sign * milli
    return mem


@numba.njit(cache=True)
def place_gang(
    milli_free: I64,
    mem_free: I64,
    device_mib: I64,
    model: I64,
    up: Bool,
    cpu_free: I64,
    mib_free: I64,
    room: I64,
    want_model: int,
    head: I64,
    worker: I64,
    workers: int,
    min_workers: int,
    raylet: bool,
    out_node: I64,
    out_mask: I64,
    out_mem: I64,
) -> int:
    """Place a head (unless its shape is all zero) and as many of `workers` equal tasks as fit.

    Shapes are int64[4]: milli-GPU, MiB per device, milli-CPU, MiB. Outputs have room for 1 + workers entries,
    head first when there is one. Returns the number of workers placed; -1 when the head or `min_workers` do
    not fit, and then every array is as it was: a gang holds all of its minimum or nothing.
    """
    has_head = 1 if head.max() > 0 else 0
    placed = 0
    total = has_head + workers
    for t in range(total):
        shape = head if t < has_head else worker
        node, mask = _best_node(
            milli_free, mem_free, device_mib, model, up, cpu_free, mib_free, room, want_model, shape, raylet
        )
        if node < 0:
            break
        out_node[t], out_mask[t] = node, mask
        out_mem[t] = _apply(
            -1, node, mask, shape, milli_free, mem_free, device_mib, model, cpu_free, mib_free, room
        )
        placed += 1
    if placed >= has_head + min_workers and placed > 0:
        return placed - has_head
    for t in range(placed - 1, -1, -1):
        shape = head if t < has_head else worker
        _apply(
            1,
            out_node[t],
            out_mask[t],
            shape,
            milli_free,
            mem_free,
            device_mib,
            model,
            cpu_free,
            mib_free,
            room,
        )
    return -1


def best_node_reference(
    milli_free: I64,
    mem_free: I64,
    device_mib: I64,
    model: I64,
    up: Bool,
    cpu_free: I64,
    mib_free: I64,
    room: I64,
    want_model: int,
    shape: I64,
    raylet: bool,
) -> tuple[int, int]:
    """What `_best_node` must answer, written for reading rather than speed."""
    milli, gpu_mib, cpu, mib = (int(x) for x in shape)
    found: list[tuple[int, int, int, int]] = []  # score, free on the node, node, mask
    for n, devices in enumerate(milli_free):
        m = int(model[n])
        if not up[n] or cpu_free[n] < cpu or mib_free[n] < mib or want_model not in (0, m):
            continue
        if milli and (room[0] < milli or (m and room[m] < milli)):
            continue
        free = int(devices.sum())
        if milli == 0:
            found.append((free * 1_000_000 + int(cpu_free[n]) // 1000, free, n, 0))
        elif milli < WHOLE:
            need = gpu_mib or milli * int(device_mib[n]) // WHOLE
            fits = [(int(f), d) for d, f in enumerate(devices) if f >= milli]
            if not raylet:
                fits = [(f, d) for f, d in fits if mem_free[n, d] >= need]
            if fits and mem_free[n, min(fits)[1]] >= need:
                left, d = min(fits)
                found.append((left - milli, free, n, 1 << d))
        else:
            idle = [d for d, f in enumerate(devices) if f == WHOLE]
            count = milli // WHOLE
            if len(idle) >= count and gpu_mib <= device_mib[n]:
                found.append((len(idle) - count, free, n, sum(1 << d for d in idle[:count])))
    if not found:
        return -1, 0
    _, _, node, mask = min(found)
    return node, mask
