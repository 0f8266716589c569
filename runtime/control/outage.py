"""What a database says when it cannot, as errors with a code: gone, busy, full, damaged.

Each of them leaves the transaction undone. Whoever was told so may try again; nothing was acknowledged.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError

from moorage.errors import MoorageError, Unavailable

BUSY_S = 5.0
"""How long a statement waits for a lock that somebody else holds on the database."""
_KEPT = "nothing acknowledged is lost; try again"


class Damaged(MoorageError):
    """The database's file is not one, or not any more."""

    code = "database-damaged"


@contextmanager
def reachable() -> Iterator[None]:
    """Unavailable (or Damaged) for what the database itself says; a bug in a statement stays what it is."""
    try:
        yield
    except DBAPIError as error:
        found = trouble(error)
        if found is None:
            raise
        raise found from error


def trouble(error: DBAPIError) -> MoorageError | None:
    """What `error` means to a user; None for a bug."""
    said = str(error.orig).strip().partition("\n")[0]
    if isinstance(error.orig, sqlite3.Error):
        return _of_sqlite(str(getattr(error.orig, "sqlite_errorname", "")), said)
    state = str(getattr(error.orig, "sqlstate", "") or "")
    # lock_not_available, query_canceled, deadlock_detected: PostgreSQL ends one of two that wait for each other, and it
    # is as likely ours as the other program's.
    if state in ("55P03", "57014", "40P01"):
        return _busy(said)
    if state.startswith("53"):  # insufficient resources: disk_full, out_of_memory, too_many_connections
        return _full(said) if state == "53100" else _gone(said)
    if error.connection_invalidated or state.startswith(("08", "57P")) or _never_connected(error):
        return _gone(said)
    return None


def _of_sqlite(name: str, said: str) -> MoorageError | None:
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return _busy(said)
    if name.startswith("SQLITE_FULL") or name in ("SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE"):
        return _full(said)
    if name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY")):
        return Unavailable(
            "the control plane's database cannot be written or read",
            why=f"{said} ({name})",
            todo=f"look at the disk; {_KEPT} then",
            code="database-io",
            retry_after_s=5,
        )
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return Damaged(
            "the control plane's database is damaged",
            why=f"{said} ({name})",
            todo="restore it from a copy, or begin a new one by moving control.db, -wal and -shm away",
        )
    return None


def _busy(said: str) -> Unavailable:
    return Unavailable(
        "another program holds a lock on the control plane's database",
        why=said,
        todo=_KEPT,
        code="database-busy",
        retry_after_s=2,
    )


def _full(said: str) -> Unavailable:
    return Unavailable(
        "there is no room on the disk of the control plane's database",
        why=said,
        todo=f"the pool's operator must free some; {_KEPT} then",
        code="database-full",
        retry_after_s=5,
    )


def _gone(said: str) -> Unavailable:
    return Unavailable(
        "the control plane's database cannot be reached",
        why=said,
        todo=f"{_KEPT} when it is back",
        code="database-unreachable",
    )


def _never_connected(error: DBAPIError) -> bool:
    """psycopg: a failed connect is an OperationalError without a statement and without a state of the server."""
    return error.statement is None and getattr(error.orig, "sqlstate", "") is None
