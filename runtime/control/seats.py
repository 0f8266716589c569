"""The leader's seat: a lock that ends with the process which holds it, named in the leader's row.

It only tells others that the leader has died: whoever finds a seat free must still win the row. Each seat has a name of
its own, so nobody waits for one.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import DBAPIError

_CLASS = 0x4D6F6F72
_PROGRAM = "moorage-"


class Seat(Protocol):
    """`name` is what others look for."""

    name: str

    def sit(self) -> None: ...

    def keep(self) -> None:
        """Sit again if the seat was lost, as when a server was restarted."""

    def free(self, name: str) -> bool:
        """Whether nobody sits on the seat of that name."""

    def evict(self, name: str) -> None:
        """End what a stalled leader, who sits on the seat of that name, may have begun and not ended."""

    def tidy(self) -> None:
        """Remove what earlier leaders left behind."""

    def leave(self) -> None: ...


class FileSeat:
    """A lock (flock) on a file beside the database's: the kernel frees it when the process is gone."""

    def __init__(self, database: Path) -> None:
        self.name = secrets.token_hex(8)
        self._prefix = f"{database}.seat-"
        self._file: int | None = None

    def sit(self) -> None:
        while self._file is None:
            file = os.open(self._prefix + self.name, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(file, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.fstat(file).st_ino == os.stat(self._prefix + self.name).st_ino:
                    self._file = file
                    return
            os.close(file)  # somebody tidied it away in between

    def keep(self) -> None:
        return

    def free(self, name: str) -> bool:
        try:
            file = os.open(self._prefix + name, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(file)
        return True

    def evict(self, name: str) -> None:
        return

    def tidy(self) -> None:
        prefix = Path(self._prefix)
        for path in prefix.parent.glob(f"{prefix.name}*"):
            name = path.name.removeprefix(prefix.name)
            if name != self.name and self.free(name):
                path.unlink(missing_ok=True)

    def leave(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


class ServerSeat:
    """An advisory lock of PostgreSQL, for as long as a connection of its own lives. The engine's sessions bear its
    name."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._number = secrets.randbelow(1 << 31)
        self.name = str(self._number)
        self._holder: Connection | None = None
        event.listen(engine, "do_connect", self._sign)

    def _sign(self, dialect: Any, record: Any, positional: Any, named: dict[str, Any]) -> None:
        """Each session of this control plane says whose it is."""
        named["application_name"] = _PROGRAM + self.name

    def sit(self) -> None:
        if self._holder is None:
            holder = self._engine.connect().execution_options(
                isolation_level="AUTOCOMMIT", moorage_write=True
            )
            holder.execute(
                text("SELECT pg_advisory_lock(:kind, :seat)"), {"kind": _CLASS, "seat": self._number}
            )
            self._holder = holder

    def keep(self) -> None:
        try:
            if self._holder is not None:
                self._holder.execute(text("SELECT 1"))
        except DBAPIError:
            self._drop()
            self.sit()

    def free(self, name: str) -> bool:
        """Asked of the table of locks: to try the lock would be to hold it for a moment."""
        if not name.isdecimal():
            return True
        with self._engine.connect() as db:
            held = db.execute(
                text(
                    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2"
                    " AND classid = :kind AND objid = :seat"
                    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
                ),
                {"kind": _CLASS, "seat": int(name)},
            ).scalar()
        return not held

    def evict(self, name: str) -> None:
        """A leader that was stopped inside a transaction holds up every writer: the server ends its sessions. Only its:
        another standby may have been faster, and lead by now."""
        with self._engine.connect() as db:
            db.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = :whose"
                    " AND xact_start IS NOT NULL AND pid <> pg_backend_pid() AND datname = current_database()"
                ),
                {"whose": _PROGRAM + name},
            )

    def tidy(self) -> None:
        return

    def leave(self) -> None:
        self._drop()

    def _drop(self) -> None:
        """Free the lock now, not when the server notices that the connection is gone."""
        holder, self._holder = self._holder, None
        if holder is not None:
            with suppress(DBAPIError):
                holder.execute(text("SELECT pg_advisory_unlock_all()"))
            with suppress(DBAPIError):
                holder.invalidate()
            holder.close()
