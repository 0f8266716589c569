"""The database behind the control plane: one writer at a time, every commit durable, migrations at start.

SQLite runs in WAL mode with synchronous=FULL (WAL alone loses the last commits at power loss); PostgreSQL by its URL,
see `postgres`. Who may write: `leadership`. No network call but the database's own happens inside `write()`.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, func, insert, select

from moorage.errors import Conflict, Unavailable
from moorage.runtime.control import postgres, tables
from moorage.runtime.control.clock import Clock, Now
from moorage.runtime.control.head import Head
from moorage.runtime.control.leadership import Leadership, Standing
from moorage.runtime.control.outage import BUSY_S, reachable

EVENT_VERSION = 1
STILL_BUSY_S = 0.25


class Store:
    """Opens (and migrates) the database of `url`: `sqlite:////home/x/control.db`, `postgresql://user@host/name`.

    Raises Conflict (another control plane writes there, or it is newer) and Unavailable (it does not answer).
    """

    def __init__(self, url: str, clock: Clock, standing: Standing | None = None) -> None:
        self.clock = clock
        self.lock = threading.RLock()
        """Held by every writer, and by readers of the in-memory ledger: state and book change together."""
        if postgres.is_postgresql(url):
            self.engine = postgres.open_engine(url)
        else:
            self.engine = create_engine(url)
            _tune_sqlite(self.engine)
        self._beats = standing is not None
        self._was_busy = False
        """The last write found the database locked by somebody else: the next ones do not wait as long, as others wait
        behind them."""
        self._head = None if postgres.is_postgresql(url) else Head(Path(str(self.engine.url.database)))
        self.leader = Leadership(self.engine, clock, standing or Standing())
        try:
            self._lead()
            with self.write() as db:
                self.cluster_id = _fact(db, "cluster_id", lambda: f"c-{secrets.token_hex(6)}")
                last = db.execute(select(func.max(tables.events.c.control_ns))).scalar()
                if self._head is not None:
                    torn = self._head.missing(db, self.cluster_id)
                    if torn:
                        record(db, clock.now(), "store.torn", torn)
        except BaseException:
            self.leader.close()
            self.engine.dispose()
            raise
        clock.advance_to(last or 0)
        if self._head is not None:
            self.leader.on_beat = self._note_head

    def _lead(self) -> None:
        """Wait for the leadership, take it, bring the schema up to date. The tables of a new database come first."""
        while True:
            instead = self.leader.wait()
            if not instead.raw:
                self._migrate()
            if self.leader.take(instead):
                break
        if self._beats:  # from now on: what comes before the first round may take longer than a standby waits
            self.leader.start()
        self._migrate()

    def _migrate(self) -> None:
        with reachable():
            migrate(self.engine, self.leader.enter)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction that may change state; durable when the block ends, undone when it raises.

        Unavailable (its code says why) while the database cannot be written, `Fenced` when another one leads."""
        wait_s = STILL_BUSY_S if self._was_busy else BUSY_S
        options = {"moorage_write": True, "moorage_wait_s": wait_s}
        with (
            self.lock,
            self._marking_busy(),
            reachable(),
            self.engine.connect().execution_options(**options) as connection,
            connection.begin(),
        ):
            self.leader.enter(connection, wait_s)
            self._was_busy = False
            yield connection

    @contextmanager
    def _marking_busy(self) -> Iterator[None]:
        try:
            yield
        except Unavailable as error:
            self._was_busy = error.code == "database-busy"
            raise

    def _note_head(self) -> None:
        with self.read() as db:
            last = db.execute(select(func.max(tables.events.c.seq))).scalar()
        if self._head is not None:
            self._head.note(self.cluster_id, int(last or 0))

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent view; never blocks a writer."""
        with reachable(), self.engine.connect() as connection:
            yield connection

    def close(self) -> None:
        self.leader.close()
        self.engine.dispose()


def sqlite_url(path: Path) -> str:
    """The URL of a database file, which is created for its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    return f"sqlite:///{path.absolute()}"


def migrate(engine: Engine, enter: Callable[[Connection], None] = lambda db: None) -> None:
    """Bring the schema to the newest revision; Conflict when the database is newer than this program. `enter` is
    called first in the transaction."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.connect().execution_options(moorage_write=True) as connection, connection.begin():
        enter(connection)
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
        for pragma in (
            f"busy_timeout={BUSY_S * 1000:.0f}",
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        write = options.get("moorage_write")
        if write:
            wait_s = options.get("moorage_wait_s", BUSY_S)
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {wait_s * 1000:.0f}")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
