"""Table schemas with expectations: what a good row is, and what is said of a bad one.

A `TableSchema` checks a block of rows. Rows that fail leave with every reason they failed for; nothing is
dropped and nothing is repaired. What is wrong with the whole table (a column missing) is an error, not a
quarantine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moorage.errors import DataError

Mask = NDArray[np.bool_]
REASON, RAW, ROW = "quarantine_reason", "quarantine_raw", "source_row"
_NULLS = pa.array(["", "NA"], pa.string())
_ARROW: dict[str, pa.DataType] = {"int": pa.int64(), "float": pa.float64(), "string": pa.string()}
_WORD = {"int": "an integer", "float": "a finite number", "string": "text"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One column: its type and the expectations on each value. `low` and `high` are inclusive."""

    name: str
    type: Literal["int", "float", "string"]
    nullable: bool = False
    low: float | None = None
    high: float | None = None
    one_of: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """An expectation over a whole row. `holds` maps a typed block to a boolean per row; nulls do not fail."""

    name: str
    holds: Callable[[pa.Table], Mask]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSchema:
    """The columns a table must have, in order, and the rules its rows must satisfy."""

    name: str
    fields: tuple[Field, ...]
    rules: tuple[Rule, ...] = ()

    @property
    def arrow(self) -> pa.Schema:
        return pa.schema([pa.field(f.name, _ARROW[f.type]) for f in self.fields])

    def check(self, block: pa.Table, *, where: str = "") -> pa.Table:
        """The block typed, with `quarantine_reason` (null for a good row) and `quarantine_raw` (JSON of a bad one).

        Columns that the schema does not name are left out, `source_row` is kept. A value that cannot be read
        is null in the typed column. Raises DataError when a column is missing.
        """
        missing = [f.name for f in self.fields if f.name not in block.column_names]
        if missing:
            raise DataError(
                f"{where or self.name} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}",
                why=f"it has {', '.join(block.column_names) or 'none'}",
                todo=f"give a file that matches the schema {self.name!r}",
                code="data-schema",
            )
        findings: list[tuple[Mask, str]] = []
        columns: dict[str, pa.ChunkedArray | pa.Array] = {}
        if ROW in block.column_names:
            columns[ROW] = block[ROW]
        for field in self.fields:
            columns[field.name] = _typed(field, block[field.name].combine_chunks(), findings)
        typed = pa.table(columns)
        earlier = _earlier_reasons(block)
        sound = np.ones(block.num_rows, dtype=bool)
        for mask, _ in [*findings, *earlier]:
            sound &= ~mask
        for rule in self.rules:
            broken = sound & ~np.asarray(rule.holds(typed), dtype=bool)
            findings.append((broken, rule.name))
        return _with_reasons(typed, block, _merged(earlier, findings))


def split(checked: pa.Table) -> tuple[pa.Table, pa.Table]:
    """(good rows without the two quarantine columns, bad rows as source_row, reason, raw)."""
    good = pc.is_null(checked[REASON])
    bad = checked.filter(pc.invert(good))
    rows = bad[ROW] if ROW in bad.column_names else pa.nulls(bad.num_rows, pa.int64())
    return (
        checked.filter(good).drop_columns([REASON, RAW]),
        pa.table({ROW: rows, "reason": bad[REASON], "raw": bad[RAW]}),
    )


def _typed(field: Field, column: pa.Array, findings: list[tuple[Mask, str]]) -> pa.Array:
    """The column in the field's type, unreadable values null; what is wrong with it is added to `findings`."""
    target = _ARROW[field.type]
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pc.if_else(pc.is_in(column, _NULLS.cast(column.type)), None, column)
    given = np.asarray(column.is_valid())
    try:
        typed = column.cast(target)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        typed = pa.array([_parse(field.type, v) for v in column.to_pylist()], target)
    if field.type == "float":
        typed = pc.if_else(pc.is_finite(typed), typed, None)
    valid = np.asarray(typed.is_valid())
    _note(findings, given & ~valid, f"{field.name}: not {_WORD[field.type]}")
    if not field.nullable:
        _note(findings, ~given, f"{field.name}: missing")
    if field.low is not None or field.high is not None:
        low = -np.inf if field.low is None else field.low
        high = np.inf if field.high is None else field.high
        values = typed.cast(pa.float64()).to_numpy(zero_copy_only=False)
        _note(
            findings,
            valid & ~((values >= low) & (values <= high)),
            f"{field.name}: outside {low:g}..{high:g}",
        )
    if field.one_of is not None:
        known = np.asarray(pc.is_in(typed, pa.array(field.one_of, target)))
        _note(findings, valid & ~known, f"{field.name}: not one of {', '.join(field.one_of)}")
    return typed


def _parse(kind: str, value: Any) -> Any:
    """The value in the column's type, None where it is not one: the slow way, for blocks that hold such a value."""
    try:
        scalar = pa.scalar(value)
        return None if value is None else scalar.cast(_ARROW[kind]).as_py()
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return None


def _note(findings: list[tuple[Mask, str]], mask: Mask, reason: str) -> None:
    if mask.any():
        findings.append((mask, reason))


def _earlier_reasons(block: pa.Table) -> list[tuple[Mask, str]]:
    """Reasons the reader already gave (a line that is no row), as findings."""
    if REASON not in block.column_names:
        return []
    reasons = block[REASON].combine_chunks()
    return [
        (np.asarray(pc.equal(reasons, r).fill_null(False)), r.as_py()) for r in reasons.unique() if r.is_valid
    ]


def _merged(earlier: list[tuple[Mask, str]], findings: list[tuple[Mask, str]]) -> list[tuple[Mask, str]]:
    """A line that is no row gets the reader's reason alone: that its cells are missing says nothing more."""
    if not earlier:
        return findings
    unread = np.logical_or.reduce([mask for mask, _ in earlier])
    return [*earlier, *((mask & ~unread, reason) for mask, reason in findings)]


def _with_reasons(typed: pa.Table, block: pa.Table, findings: Sequence[tuple[Mask, str]]) -> pa.Table:
    bad = np.zeros(block.num_rows, dtype=bool)
    for mask, _ in findings:
        bad |= mask
    reasons: list[str | None] = [None] * block.num_rows
    raws: list[str | None] = [None] * block.num_rows
    at = np.flatnonzero(bad)
    given = RAW in block.column_names
    for i, row in zip(at.tolist(), block.take(pa.array(at)).to_pylist(), strict=True):
        reasons[i] = "; ".join(reason for mask, reason in findings if mask[i])
        kept = row.pop(RAW) if given else None
        raws[i] = (
            kept
            if kept is not None
            else json.dumps({k: v for k, v in row.items() if k not in (ROW, REASON)}, default=str)
        )
    return typed.append_column(REASON, pa.array(reasons, pa.string())).append_column(
        RAW, pa.array(raws, pa.string())
    )
