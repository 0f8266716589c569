"""The database behind the control plane: one writer at a time, every commit durable, migrations at start.

SQLite runs in WAL mode with synchronous=FULL (WAL alone loses the last commits at power loss); PostgreSQL by its URL,
see `postgres`. No network call but the database's own happens inside `write()`.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, func, insert, select
from sqlalchemy.exc import DBAPIError

from moorage.errors import Conflict, Unavailable
from moorage.runtime.control import postgres, tables
from moorage.runtime.control.clock import Clock, Now

EVENT_VERSION = 1


class Store:
    """Opens (and migrates) the database of `url`: `sqlite:////home/x/control.db`, `postgresql://user@host/name`.

    Raises Conflict (another control plane writes there, or it is newer) and Unavailable (it does not answer).
    """

    def __init__(self, url: str, clock: Clock) -> None:
        self.clock = clock
        self.lock = threading.RLock()
        """Held by every writer, and by readers of the in-memory ledger: state and book change together."""
        self._writer: postgres.OnlyWriter | None = None
        if postgres.is_postgresql(url):
            self.engine = postgres.open_engine(url)
            with _reachable():
                self._writer = postgres.OnlyWriter(self.engine)
        else:
            self.engine = create_engine(url)
            _tune_sqlite(self.engine)
        migrate(self.engine)
        with self.write() as db:
            if self._writer is not None:
                self._writer.take(db)
            self.cluster_id = _fact(db, "cluster_id", lambda: f"c-{secrets.token_hex(6)}")
            last = db.execute(select(func.max(tables.events.c.control_ns))).scalar()
        clock.advance_to(last or 0)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction that may change state; durable when the block ends, undone when it raises."""
        with (
            self.lock,
            _reachable(),
            self.engine.connect().execution_options(moorage_write=True) as connection,
            connection.begin(),
        ):
            if self._writer is not None:
                self._writer.begin(connection)
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent view; never blocks a writer."""
        with _reachable(), self.engine.connect() as connection:
            yield connection

    def close(self) -> None:
        if self._writer is not None:
            with suppress(DBAPIError):  # a server that is gone holds no lock of ours
                self._writer.close()
        self.engine.dispose()


@contextmanager
def _reachable() -> Iterator[None]:
    """Unavailable when the database server does not answer or the connection broke."""
    try:
        yield
    except DBAPIError as error:
        if not (error.connection_invalidated or _never_connected(error)):
            raise
        raise Unavailable(
            "the control plane's database cannot be reached",
            why=str(error.orig).strip().partition("\n")[0],
            todo="nothing acknowledged is lost; try again when it is back",
            code="database-unreachable",
        ) from error


def _never_connected(error: DBAPIError) -> bool:
    """psycopg: a failed connect is an OperationalError without a statement and without a state of the server."""
    return error.statement is None and getattr(error.orig, "sqlstate", "") is None


def sqlite_url(path: Path) -> str:
    """The URL of a database file, which is created for its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    return f"sqlite:///{path.absolute()}"


def migrate(engine: Engine) -> None:
    """Bring the schema to the newest revision; Conflict when the database is newer than this program."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.connect().execution_options(moorage_write=True) as connection, connection.begin():
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
