"""Arrays that grow by rows, without copying all of them each time.

An array of exactly n rows is a view of a larger one: the next row is a new view. When the larger one is full, one
of twice the rows takes its place, so n rows cost O(n) in all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

_FIRST = 16


class Rows:
    """The larger arrays behind the columns of one owner, by attribute name."""

    __slots__ = ("_behind",)

    def __init__(self) -> None:
        self._behind: dict[str, npt.NDArray[Any]] = {}

    def grow(self, owner: object, names: Iterable[str], rows: int) -> None:
        """Give each named array of `owner` exactly `rows` rows, no fewer than it has; new ones are 0."""
        for name in names:
            array: npt.NDArray[Any] = getattr(owner, name)
            behind = self._behind.get(name)
            # Someone may have put another array in its place: then that one counts, and this store is stale.
            if behind is None or array.base is not behind or len(behind) < rows:
                behind = np.zeros((max(2 * rows, _FIRST), *array.shape[1:]), array.dtype)
                behind[: len(array)] = array
                self._behind[name] = behind
            setattr(owner, name, behind[:rows])


def widened(array: npt.NDArray[Any], columns: int, value: int) -> npt.NDArray[Any]:
    """`array` with `columns` columns, no fewer than it has; new ones are `value`."""
    wide = np.full((array.shape[0], columns), value, array.dtype)
    wide[:, : array.shape[1]] = array
    return wide
