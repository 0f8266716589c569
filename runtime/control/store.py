"""The database behind the control plane: one writer at a time, every commit durable, migrations at start.

SQLite runs in WAL mode with synchronous=FULL (WAL alone loses the last commits at power loss); PostgreSQL works by
its URL. No network call happens inside `write()`.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, func, insert, select

from moorage.errors import Conflict
from moorage.runtime.control import tables
from moorage.runtime.control.clock import Clock, Now

EVENT_VERSION = 1


class Store:
    """Opens (and migrates) the database of `url`, e.g. `sqlite:////home/x/control.db`."""

    def __init__(self, url: str, clock: Clock) -> None:
        self.clock = clock
        self.lock = threading.RLock()
        """Held by every writer, and by readers of the in-memory ledger: state and book change together."""
        self.engine = create_engine(url)
        if self.engine.dialect.name == "sqlite":
            _tune_sqlite(self.engine)
        migrate(self.engine)
        with self.write() as db:
            self.cluster_id = _fact(db, "cluster_id", lambda: f"c-{secrets.token_hex(6)}")
            last = db.execute(select(func.max(tables.events.c.control_ns))).scalar()
        clock.advance_to(last or 0)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction that may change state; durable when the block ends, undone when it raises."""
        with (
            self.lock,
            self.engine.connect().execution_options(moorage_write=True) as connection,
            connection.begin(),
        ):
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent view; never blocks a writer."""
        with self.engine.connect() as connection:
            yield connection

    def close(self) -> None:
        self.engine.dispose()


def sqlite_url(path: Path) -> str:
    """The URL of a database file, which is created for its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    return f"sqlite:///{path.absolute()}"


def migrate(engine: Engine) -> None:
    """Bring the schema to the newest revision; Conflict when the database is newer than this program."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except Exception as error:
            if "Can't locate revision" in str(error):
                raise Conflict(
                    "the database was written by a newer Moorage",
                    todo="start that version, or restore a backup",
                    code="database-too-new",
                ) from error
            raise


def record(
    db: Connection,
    now: Now,
    kind: str,
    payload: dict[str, Any] | None = None,
    *,
    principal: str = "",
    team: str = "",
    job_id: str = "",
    lease_id: str = "",
) -> None:
    """Append one audit event in the caller's own transaction. No secrets in `payload`."""
    db.execute(
        insert(tables.events).values(
            kind=kind,
            version=EVENT_VERSION,
            wall_ns=now.wall_ns,
            control_ns=now.control_ns,
            principal=principal,
            team=team,
            job_id=job_id,
            lease_id=lease_id,
            payload=payload or {},
        )
    )


def _fact(db: Connection, key: str, make: Any) -> str:
    found = db.execute(select(tables.facts.c.value).where(tables.facts.c.key == key)).scalar()
    if found is None:
        found = make()
        db.execute(insert(tables.facts).values(key=key, value=found))
    return str(found)


def _tune_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the driver
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=15000"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("moorage_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
