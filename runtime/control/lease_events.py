"""The events that say who held what and when, read in order: what cost, spending and usage are folded from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, select

from moorage.runtime.control.tables import events

_PAGE = 5000
_KINDS = ("lease.granted", "lease.resized", "lease.released")


def after(db: Connection, seq: int, *which: ColumnElement[bool]) -> Iterator[Row[Any]]:
    """Those with a greater sequence number, the oldest first; `which` narrows them further."""
    while True:
        rows = db.execute(
            select(events)
            .where(events.c.seq > seq, events.c.kind.in_(_KINDS), *which)
            .order_by(events.c.seq)
            .limit(_PAGE)
        ).all()
        yield from rows
        if len(rows) < _PAGE:
            return
        seq = rows[-1].seq
