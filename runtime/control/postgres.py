"""PostgreSQL behind the store: what it must be told to keep the promises that SQLite keeps in one file.

Reads see one snapshot, a commit is on disk when it returns, writers come one after the other. Who may write is a matter
of `leadership`.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url

from moorage.errors import InvalidRequest
from moorage.runtime.control.outage import BUSY_S

WRITES = 0x61676521
"""Key of the advisory lock that each write transaction holds."""
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
        # Whoever holds a lock on our tables must not hold our threads with it.
        connection.execute("SELECT set_config('lock_timeout', %s, false)", (f"{BUSY_S:g}s",))
        connection.commit()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if not connection.get_execution_options().get("moorage_write"):
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")

    return engine
