"""Where the running jobs' tasks are, in flat columns: a table of fifty thousand of them is array work."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moorage.scheduling.model import IntArray, Role, Shape, TaskPlacement, unmask

_FIRST = 1024


class Placed:
    """The tasks of each running job lie side by side in one column; the holes of those that left are swept at times."""

    __slots__ = ("_at", "_end", "_live", "_mask", "_node", "_size")

    def __init__(self, jobs: int) -> None:
        self._at = np.full(jobs, -1, np.int64)
        self._size = np.zeros(jobs, np.int64)
        self._node, self._mask = np.zeros((2, _FIRST), np.int64)
        self._end = self._live = 0

    def put(self, row: int, node: IntArray, mask: IntArray) -> None:
        """A job's node rows and device masks, one entry per task."""
        count = len(node)
        if self._end + count > len(self._node):
            self._sweep(count)
        at = self._end
        self._node[at : at + count], self._mask[at : at + count] = node, mask
        self._at[row], self._size[row] = at, count
        self._end += count
        self._live += count

    def drop(self, row: int) -> None:
        self._live -= int(self._size[row])
        self._at[row], self._size[row] = -1, 0

    def of(self, rows: IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """(first, node, mask): the tasks of `rows[i]` are the entries `first[i]..first[i + 1]`."""
        sizes = self._size[rows]
        first = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes)))
        entry = np.repeat(self._at[rows] - first[:-1], sizes) + np.arange(first[-1])
        return first, self._node[entry], self._mask[entry]

    def _sweep(self, more: int) -> None:
        rows = np.flatnonzero(self._size)
        first, node, mask = self.of(rows)
        room = max(2 * (self._live + more), _FIRST)
        self._node, self._mask = np.zeros((2, room), np.int64)
        self._node[: len(node)], self._mask[: len(mask)] = node, mask
        self._at[rows] = first[:-1]
        self._end = len(node)


def placements(
    shape: Shape, names: Sequence[str], first: int, node: IntArray, mask: IntArray, gpu_mib: IntArray
) -> tuple[TaskPlacement, ...]:
    """Equal workers as the ledger has them, numbered from `first`. `names`: of the nodes, by row."""
    return tuple(
        TaskPlacement(
            role=Role.WORKER,
            index=first + i,
            node=names[n],
            devices=unmask(m),
            milli_gpu=shape.milli_gpu,
            gpu_mib=mib,
            milli_cpu=shape.milli_cpu,
            mib=shape.mib,
        )
        for i, (n, m, mib) in enumerate(zip(node.tolist(), mask.tolist(), gpu_mib.tolist(), strict=True))
    )
