"""What was known when: lookups that a pipeline and an endpoint share, so that both get the same bits.

`AsofTable` answers "the last observation known at this moment"; `History` answers "the events that became
known in the hours before it". Both are built from Arrow tables that lie beside a dataset version, and hold
integers for time and keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moorage.kernels.asof import Int64Array, asof_search, group_by_key
from moorage.kernels.rolling import prefix_sums, rolling_sums

Float64Array = NDArray[np.float64]
SEPARATOR = "\x1f"


def joined_key(table: pa.Table, names: Sequence[str]) -> pa.Array:
    """One text key per row from the named columns; null where any of them is null."""
    columns = [_one_chunk(table[name]).cast(pa.string()) for name in names]
    return columns[0] if len(columns) == 1 else pc.binary_join_element_wise(*columns, SEPARATOR)


def ints(table: pa.Table, name: str) -> Int64Array:
    """A column without nulls as int64."""
    return np.ascontiguousarray(_one_chunk(table[name]).cast(pa.int64()).to_numpy(zero_copy_only=False))


def floats(table: pa.Table, name: str) -> Float64Array:
    """A column as float64, null as NaN."""
    return np.asarray(
        _one_chunk(table[name]).cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64
    )


class Vocabulary:
    """Text to codes in [0, size): a value it does not know is -1."""

    def __init__(self, values: pa.Array) -> None:
        self.values = values
        self._codes: dict[str, int] | None = None

    @classmethod
    def of(cls, column: pa.Array) -> Vocabulary:
        """Of the distinct values of a column, sorted, null left out."""
        distinct = column.unique().drop_null()
        return cls(distinct.take(pc.sort_indices(distinct)))

    def __len__(self) -> int:
        return len(self.values)

    def encode(self, column: pa.Array) -> Int64Array:
        if len(column) <= 64:  # a request: hashing the whole vocabulary would cost more than the lookups
            if self._codes is None:
                self._codes = {value: code for code, value in enumerate(self.values.to_pylist())}
            return np.array([self._codes.get(value, -1) for value in column.to_pylist()], dtype=np.int64)
        codes = pc.index_in(column, value_set=self.values).fill_null(-1)
        return np.asarray(codes.to_numpy(zero_copy_only=False), dtype=np.int64)


class AsofTable:
    """Observations per key, each with the minute from which it was known."""

    def __init__(self, table: pa.Table, *, by: Sequence[str], known: str, values: Sequence[str]) -> None:
        key = joined_key(table, by)
        self.by = tuple(by)
        self._keys = Vocabulary.of(key)
        times = ints(table, known)
        order, self._offsets = group_by_key(self._keys.encode(key), times, len(self._keys))
        self._known = times[order]
        self._values = {name: floats(table, name)[order] for name in values}

    def lookup(
        self, rows: pa.Table, at: Int64Array, *, tolerance: int
    ) -> tuple[dict[str, Float64Array], Float64Array]:
        """(values, age in minutes) of the last observation known at or before each moment; NaN where there is none.

        `at` is in minutes, shape [n]; an observation known more than `tolerance` minutes before is none.
        """
        keys = self._keys.encode(joined_key(rows, self.by))
        found = asof_search(at, keys, self._known, self._offsets, tolerance, False)
        hit, index = found >= 0, np.maximum(found, 0)
        values = {name: np.where(hit, column[index], np.nan) for name, column in self._values.items()}
        return values, np.where(hit, (at - self._known[index]).astype(np.float64), np.nan)


class History:
    """Events of a key with integer measures, each with the minute at which it became known."""

    def __init__(self, events: pa.Table, *, by: Sequence[str], known: str, measures: Sequence[str]) -> None:
        key = joined_key(events, by)
        keep = key.is_valid()
        if not pc.all(keep).as_py():
            events, key = events.filter(keep), key.filter(keep)
        self.by, self.measures = tuple(by), tuple(measures)
        self._keys = Vocabulary.of(key)
        times = ints(events, known)
        order, self._offsets = group_by_key(self._keys.encode(key), times, len(self._keys))
        self._known = times[order]
        empty = np.zeros((0, len(order)), dtype=np.int64)
        self._prefix = prefix_sums(
            np.stack([ints(events, m)[order] for m in measures]) if measures else empty
        )

    def before(
        self, rows: pa.Table, at: Int64Array, widths: Sequence[int]
    ) -> list[Mapping[str, Float64Array]]:
        """Per width in minutes: `n` and each measure's mean over events known in [at - width, at); NaN of none."""
        keys = self._keys.encode(joined_key(rows, self.by))
        counts, sums = rolling_sums(
            at, keys, self._known, self._offsets, self._prefix, np.array(widths, dtype=np.int64)
        )
        answer: list[Mapping[str, Float64Array]] = []
        for w in range(len(widths)):
            n = counts[w].astype(np.float64)
            with np.errstate(invalid="ignore"):
                means = {m: sums[w, i] / n for i, m in enumerate(self.measures)}
            answer.append({"n": n, **means})
        return answer


def _one_chunk(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
