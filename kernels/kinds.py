"""Which rows of a queue ask for the same (numba): each distinct combination of some columns gets a number."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moorage.kernels.jit import outer

I64 = npt.NDArray[np.int64]

_MIX = np.int64(0x2545F4914F6CDD1D)


def number(columns: I64) -> tuple[I64, int]:
    """([R] the number of each row's combination, how many there are), by first appearance. `columns`: [K,R], any
    integers."""
    rows = columns.shape[1]
    slots = 1 << max(4, (2 * rows - 1).bit_length())
    kind, first = np.empty((2, rows), np.int64)
    count = _number(np.ascontiguousarray(columns), np.full(slots, -1), first, kind)
    return kind, int(count)


@outer
def _number(columns: I64, table: I64, first: I64, kind: I64) -> int:
    """By open addressing: `table` is all -1 and has a power of two of slots, more than rows. `first[k]`: a row of kind
    k."""
    count, mask = 0, len(table) - 1
    for row in range(len(kind)):
        key = np.int64(0)
        for c in range(len(columns)):
            key = (key ^ columns[c, row]) * _MIX
            key ^= key >> 29
        at = key & mask
        while True:
            k = table[at]
            if k < 0:
                table[at], first[count] = count, row
                kind[row] = count
                count += 1
                break
            same = True
            for c in range(len(columns)):
                same &= columns[c, row] == columns[c, first[k]]
            if same:
                kind[row] = k
                break
            at = (at + 1) & mask
    return count
