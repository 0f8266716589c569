"""A CSV file to typed columns: whole chunks at a time, cell by cell only where a chunk holds something odd.

What is wrong with the file as a whole is a `DataError`; what is wrong with a row is noted, and the row is left out.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from moorage.errors import DataError, NotFound
from moorage.scheduling.model import IntArray
from moorage.scheduling.simulator.model import LeftOut

MOST = 2**53
"""The largest number a cell may hold: exact as a float, and far from overflow when multiplied by a thousand."""

_CHUNK = 20_000
Cells: TypeAlias = tuple[str, ...]
Note: TypeAlias = Callable[[int, str, str], None]
"""(position in the chunk, code, what is wrong)."""
Parser: TypeAlias = Callable[[str, Cells, Note], npt.NDArray[Any]]
"""(column, cells, note) -> [len(cells)]; anything where a cell was noted."""


@dataclass(slots=True)
class Table:
    """Columns of n rows, all of the file's. Rows in `refused` are not to be used, whatever their columns hold."""

    source: str
    columns: dict[str, npt.NDArray[Any]]
    refused: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Row from 0 -> (code, text); the first reason stays."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def refuse(self, wrong: npt.NDArray[np.bool_], code: str, text: Callable[[int], str]) -> None:
        """Leave out the rows where `wrong` holds."""
        for row in np.flatnonzero(wrong).tolist():
            self.refused.setdefault(row, (code, text(row)))

    def refuse_duplicates(self, column: str) -> None:
        """Leave out every row whose name an earlier row has."""
        names = self.columns[column].tolist()
        if len(set(names)) == len(names):
            return
        first: dict[str, int] = {}
        for row, name in enumerate(names):
            if first.setdefault(name, row) != row:
                self.refused.setdefault(
                    row, ("duplicate-id", f"{column} {shown(name)} is row {first[name] + 1}'s already")
                )

    def kept(self) -> IntArray:
        """Rows from 0 that may be used."""
        keep = np.ones(len(self), np.bool_)
        keep[list(self.refused)] = False
        return np.flatnonzero(keep).astype(np.int64)

    def left_out(self, names: str | None) -> tuple[LeftOut, ...]:
        """The refused rows in order of row, named by the column `names`."""
        column = None if names is None else self.columns[names]
        return tuple(
            LeftOut(row=row + 1, name="" if column is None else str(column[row])[:80], code=code, text=text)
            for row, (code, text) in sorted(self.refused.items())
        )


def read_table(path: Path, required: Mapping[str, Parser], optional: Mapping[str, Parser]) -> Table:
    """The columns named, of those that are there. `.gz` is read as what it holds.

    Raises NotFound and DataError: not a file, empty, not UTF-8, no CSV, a column missing or there twice.
    """
    source = path.name
    try:
        with _opened(path) as text:
            return _read(source, csv.reader(text), required, optional)
    except FileNotFoundError:
        raise NotFound(f"{path} is not there", code="trace-not-found") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a directory", todo="name the CSV file", code="trace-unreadable") from None
    except PermissionError:
        raise DataError(f"{path} may not be read", code="trace-unreadable") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source} is not UTF-8 text", why=f"byte {error.start} of a block", code="trace-not-text"
        ) from None
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{source} is a broken gzip file", why=str(error), code="trace-unreadable") from None
    except csv.Error as error:
        raise DataError(f"{source} is not CSV", why=str(error), code="trace-not-text") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read", why=str(error.strerror), code="trace-unreadable") from None


@contextmanager
def _opened(path: Path) -> Iterator[io.TextIOWrapper]:
    with path.open("rb") as raw:
        packed = raw.peek(2)[:2] == b"\x1f\x8b"
        with io.TextIOWrapper(
            gzip.GzipFile(fileobj=raw) if packed else raw, "utf-8-sig", newline=""
        ) as content:
            yield content


def _read(
    source: str, rows: Iterator[list[str]], required: Mapping[str, Parser], optional: Mapping[str, Parser]
) -> Table:
    header = [name.strip() for name in next(rows, [])]
    if not any(header):
        raise DataError(f"{source} is empty", why="it has no header line", code="trace-empty")
    missing = [name for name in required if name not in header]
    if missing:
        raise DataError(
            f"{source} has no column {', '.join(map(repr, missing))}",
            why=f"its columns are {', '.join(map(shown, header[:20]))}",
            code="trace-column-missing",
        )
    parsers = {name: parse for name, parse in {**required, **optional}.items() if name in header}
    twice = [name for name in parsers if header.count(name) > 1]
    if twice:
        raise DataError(f"{source} has the column {twice[0]!r} twice", code="trace-column-twice")
    parts: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in parsers}
    table, count = Table(source, {}), 0
    filled = filter(None, rows)  # an empty line is no row
    while chunk := list(islice(filled, _CHUNK)):
        note = _noting(table.refused, count)
        cells = _columns(chunk, len(header), note)
        for column, parse in parsers.items():
            parts[column].append(parse(column, cells[header.index(column)], note))
        count += len(chunk)
    table.columns = {name: np.concatenate(found) if found else np.zeros(0) for name, found in parts.items()}
    return table


def _noting(refused: dict[int, tuple[str, str]], begun: int) -> Note:
    return lambda at, code, text: refused.setdefault(begun + at, (code, text)) and None


def _columns(chunk: list[list[str]], width: int, note: Note) -> list[Cells]:
    """The chunk by columns. A row of another width is noted, and stands with empty cells."""
    if any(len(row) != width for row in chunk):
        for at, row in enumerate(chunk):
            if len(row) != width:
                note(at, "row-width", f"has {len(row)} cells, the header {width}")
                chunk[at] = [""] * width
    return list(zip(*chunk, strict=True))


def text(column: str, cells: Cells, note: Note) -> npt.NDArray[Any]:
    """[n] object, as it stands."""
    found = np.empty(len(cells), object)
    found[:] = [cell.strip() for cell in cells]
    return found


def name(column: str, cells: Cells, note: Note) -> npt.NDArray[Any]:
    """[n] object; an empty name is noted."""
    found = text(column, cells, note)
    if "" in found:
        for at in np.flatnonzero(found == "").tolist():
            note(at, "no-name", f"{column} is empty")
    return found


def whole(column: str, cells: Cells, note: Note) -> IntArray:
    """[n] int64, 0..MOST; an empty cell, a fraction, a negative or a larger number is noted."""
    try:
        found = np.fromiter(map(int, cells), np.int64, len(cells))
        if not len(found) or (found.min() >= 0 and found.max() <= MOST):
            return found
    except (ValueError, OverflowError):
        pass
    return _each(column, cells, note, fraction=False).astype(np.int64)


def number(column: str, cells: Cells, note: Note) -> npt.NDArray[np.float64]:
    """[n] float64, 0..MOST; an empty cell, NaN, a negative or a larger number is noted."""
    try:
        found = np.fromiter(map(float, cells), np.float64, len(cells))
        if bool(((found >= 0) & (found <= MOST)).all()):
            return found
    except ValueError:
        pass
    return _each(column, cells, note, fraction=True)


def _each(column: str, cells: Cells, note: Note, *, fraction: bool) -> npt.NDArray[np.float64]:
    """Cell by cell; 0 where it was noted."""
    found = np.zeros(len(cells))
    for at, cell in enumerate(cells):
        try:
            value = float(cell)
        except ValueError:
            note(at, "not-a-number", f"{column} {shown(cell)} is not a number")
            continue
        if math.isnan(value):
            note(at, "not-a-number", f"{column} is NaN")
        elif value < 0:
            note(at, "negative", f"{column} {shown(cell)} is negative")
        elif value > MOST:
            note(at, "too-large", f"{column} {shown(cell)} is beyond 2^53")
        elif not fraction and value != int(value):
            note(at, "not-a-number", f"{column} {shown(cell)} is not a whole number")
        else:
            found[at] = value
    return found


def moment(column: str, cells: Cells, note: Note) -> IntArray:
    """[n] int64 nanoseconds: ISO dates and times (UTC unless they say otherwise), or seconds.

    Noted: what is neither, and what is not from 1970 to 2100: differences then stay far inside an int64.
    """
    try:
        if all(len(cell) == 19 for cell in cells):
            found = np.array(cells, "datetime64[s]").astype(np.int64)
            if not len(found) or (found.min() >= _FIRST_S and found.max() <= _LAST_S):
                return found * 10**9
    except ValueError:
        pass
    made = np.zeros(len(cells), np.int64)
    for at, cell in enumerate(cells):
        seconds = _seconds(cell.strip())
        if seconds is None:
            note(at, "not-a-time", f"{column} {shown(cell)} is not a time (2017-10-09 07:01:55, or seconds)")
        elif not _FIRST_S <= seconds <= _LAST_S:
            note(at, "out-of-range", f"{column} {shown(cell)} is not between 1970 and 2100")
        else:
            made[at] = round(seconds * 10**9)
    return made


_FIRST_S, _LAST_S = 0, 4_102_444_800


def _seconds(cell: str) -> float | None:
    try:
        value = float(cell)
        return None if math.isnan(value) else value
    except ValueError:
        pass
    try:
        stamp = datetime.fromisoformat(cell)
    except ValueError:
        return None
    return (stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)).timestamp()


def codes(values: Sequence[str]) -> tuple[IntArray, tuple[str, ...]]:
    """[n] rows into the distinct values, in order of first appearance."""
    rows: dict[str, int] = {}
    found = np.fromiter((rows.setdefault(value, len(rows)) for value in values), np.int64, len(values))
    return found, tuple(rows)


def shown(cell: str) -> str:
    """A cell as a message may show it: quoted, short, on one line."""
    return repr(cell if len(cell) <= 40 else cell[:37] + "...")
