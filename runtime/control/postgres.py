"""PostgreSQL behind the store: what it must be told to keep the promises that SQLite keeps in one file.

One control plane at a time holds an advisory lock for as long as its connection lives. Lost connections do not
exclude a second one for certain, so every opening also takes the next generation number, and each write checks that its
generation is still the last: the older control plane can no longer write.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text

from moorage.errors import Conflict, InvalidRequest

_ONE, _WRITES = 0x4D6F6F72, 0x61676521
"""Keys of the two advisory locks: one control plane, one write transaction."""
GIVE_UP_S = 15.0
"""How long an opening waits for the lock of a control plane that has just died."""
_ALIVE = {"connect_timeout": 10, "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}


def is_postgresql(url: str) -> bool:
    return make_url(url).get_backend_name() == "postgresql"


def open_engine(url: str) -> Engine:
    """An engine whose reads each see one snapshot and whose commits are on disk when they return."""
    if importlib.util.find_spec("psycopg") is None:
        raise InvalidRequest(
            "a PostgreSQL database needs the package psycopg",
            todo="pip install 'moorage[postgres]'",
            code="extra-missing",
        )
    engine = create_engine(
        make_url(url).set(drivername="postgresql+psycopg"), pool_pre_ping=True, connect_args=dict(_ALIVE)
    )

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        # A server that answers before the commit is on disk would make "acknowledged" a lie.
        connection.execute(
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
        )
        connection.commit()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if not connection.get_execution_options().get("moorage_write"):
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")

    return engine


class OnlyWriter:
    """The right to write, from `__init__` (Conflict when another holds it) until `close`."""

    def __init__(self, engine: Engine) -> None:
        self._holder = engine.connect().execution_options(isolation_level="AUTOCOMMIT", moorage_write=True)
        deadline, idle = time.monotonic() + GIVE_UP_S, threading.Event()
        while not self._holder.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _ONE}).scalar():
            if time.monotonic() > deadline:
                self._holder.close()
                raise Conflict(
                    "another control plane writes to this database",
                    todo="stop it, or give this one a database of its own",
                    code="already-up",
                )
            idle.wait(0.1)
        self._generation: int | None = None

    def begin(self, db: Connection) -> None:
        """First in every write transaction: one at a time, in the order of their events, and only the last opener's."""
        db.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _WRITES})
        if self._generation is None:
            return
        found = db.execute(text("SELECT value FROM facts WHERE key = 'generation'")).scalar()
        if found != str(self._generation):
            raise Conflict(
                "another control plane has taken over this database",
                why=f"this one is generation {self._generation}, the last is {found}",
                todo="stop this one",
                code="fenced",
            )

    def take(self, db: Connection) -> None:
        """Become the newest generation, in the caller's transaction."""
        found = db.execute(text("SELECT value FROM facts WHERE key = 'generation'")).scalar()
        self._generation = int(found or 0) + 1
        db.execute(
            text(
                "INSERT INTO facts (key, value) VALUES ('generation', :value)"
                " ON CONFLICT (key) DO UPDATE SET value = excluded.value"
            ),
            {"value": str(self._generation)},
        )

    def close(self) -> None:
        """Free the lock now, not when the server notices that the connection is gone."""
        try:
            self._holder.execute(text("SELECT pg_advisory_unlock_all()"))
        finally:
            self._holder.invalidate()
            self._holder.close()
