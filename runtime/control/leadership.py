"""Who leads: one control plane writes and acts, others stand by and take over.

* The *seat* is a lock that ends with its holder's process: a free seat says at once that the leader has died.
* The *beat* is a row that the leader changes every second: no beat for `stall_s` says that it stalls, though it lives.
* The *generation* is a number that each new leader raises: every write transaction and every effect on the cluster is
  checked against it. Seat and beat only tell when to take over, only the generation excludes.

The row also says what time it is: control time goes on over a restart as the machine's monotonic clock did.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import Connection, Engine, inspect, text

from moorage.errors import Conflict, MoorageError, Unavailable
from moorage.runtime.control import failpoints, postgres
from moorage.runtime.control.clock import Clock, machine, time_since
from moorage.runtime.control.outage import BUSY_S, reachable
from moorage.runtime.control.seats import FileSeat, Seat, ServerSeat

log = logging.getLogger(__name__)
BEATS = 6
"""Beats in the time after which a leader that is silent counts as stalled."""
STALL_S = 6.0
POLL_S = 0.25
WAIT_S = 1.0
"""How long a beat, or a takeover, waits for a lock on a database file."""
GIVE_UP_S = {"sqlite": 0.0, "postgresql": 15.0}
"""How long a start that does not stand by waits for the seat of a control plane that has just died: the kernel frees a
file's lock at once, a server may notice later that a connection is gone."""


class Fenced(Unavailable):
    """Another control plane leads now: this one may not write or act any more."""

    code = "fenced"


class Interrupted(MoorageError):
    """A standby was told to end while it waited."""

    code = "interrupted"


@dataclass(slots=True)
class Standing:
    """How a control plane comes to lead. `door`: where its front door answers, for whoever asks a standby."""

    standby: bool = False
    stall_s: float = STALL_S
    door: str = ""
    ended: threading.Event = field(default_factory=threading.Event)
    """Set: do not wait any longer."""
    told: Callable[[Leader], None] = lambda leader: None
    """Called with the leader for whom this one stands by, when it is another one than before."""


@dataclass(frozen=True, slots=True)
class Leader:
    """The row as it was read: `raw` is the text itself, "" when nobody ever led."""

    raw: str = ""
    generation: int = 0
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """It left by itself."""
        return bool(self.about.get("ended"))


def leader_of(raw: str) -> Leader:
    """From the row's text: the generation, a space, JSON."""
    if not raw:
        return Leader()
    generation, _, about = raw.partition(" ")
    return Leader(raw, int(generation), json.loads(about))


class Leadership:
    """The right to write to one database, from `take` until `close` or until another one takes it."""

    def __init__(self, engine: Engine, clock: Clock, standing: Standing) -> None:
        self._engine, self._clock, self._standing = engine, clock, standing
        self.generation = 0
        self.lost = threading.Event()
        """Set once another one was seen to lead. Never cleared."""
        self.on_lost: Callable[[], None] = lambda: None
        """May be called twice; set by `when_lost`."""
        self.on_beat: Callable[[], None] = lambda: None
        """Called after each beat, by its thread."""
        self._seat: Seat = self._new_seat()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._started = psutil.Process().create_time()
        self._file = engine.dialect.name == "sqlite"

    # -- waiting for it

    def wait(self) -> Leader:
        """The leader in whose place this one may try to `take`: none, dead, or stalled.

        Conflict (`already-up`) when there is one and this control plane does not stand by; Interrupted."""
        standing, seen, silence = self._standing, Leader(), 0.0
        told = False
        until = time.monotonic() + GIVE_UP_S[self._engine.dialect.name]
        looked = time.monotonic()
        while True:
            if standing.ended.is_set():  # also while each `take` finds the database held by somebody
                raise Interrupted("ended while it stood by")
            now = time.monotonic()
            # A standby that did not run itself has seen no silence in that time.
            gap, looked = min(now - looked, 2 * POLL_S), now
            try:
                found = self._read()
                with reachable():
                    dead = found.ended or not found.raw or self._seat.free(str(found.about.get("seat", "")))
            except Unavailable as error:
                if not standing.standby:
                    raise
                log.warning("standing by: %s", error)
                silence, dead, found = 0.0, False, seen
            same = found.raw == seen.raw
            silence = silence + gap if same else 0.0
            told = told and found.generation == seen.generation
            seen = found
            if dead and (
                self._file or not standing.standby or found.ended or not found.raw or silence >= self._quiet_s
            ):
                return found
            if standing.standby and silence >= standing.stall_s:
                log.warning("generation %d has been silent for %.1f s", found.generation, silence)
                return found
            if not standing.standby and now > until:
                raise _already_up(found)
            if not told:
                standing.told(found)
                told = True
            if standing.ended.wait(POLL_S):
                raise Interrupted("ended while it stood by")

    @property
    def _quiet_s(self) -> float:
        """A server that was restarted has forgotten the seats of those who live: they beat within this."""
        return 2 * self._standing.stall_s / BEATS

    def _read(self) -> Leader:
        with reachable(), self._engine.connect() as db:
            if not inspect(db).has_table("facts"):
                return Leader()
            return leader_of(str(db.execute(text(_READ), {"key": "leader"}).scalar() or ""))

    # -- taking it

    def take(self, instead: Leader) -> bool:
        """Become the next generation, if `instead` is still who leads; False when it is not, or holds the database."""
        try:
            with reachable():
                self._seat.sit()
                if instead.raw and not instead.ended:
                    self._seat.evict(str(instead.about.get("seat", "")))
            with reachable(), self._writing() as db:
                generation = self._succeed(db, instead)
                if not generation:
                    return False
                failpoints.hit("takeover.before-commit")
        except Unavailable as error:
            if error.code == "database-busy":
                _end_stopped(instead)
            elif not self._standing.standby:
                raise
            log.warning("could not take over: %s", error)
            return False
        self.generation = generation
        failpoints.hit("takeover.after-commit")
        self._seat.tidy()
        return True

    def _succeed(self, db: Connection, instead: Leader) -> int:
        """The generation that this one is once the transaction commits; 0 when somebody else was faster."""
        generation = int(db.execute(text(_READ), {"key": "generation"}).scalar() or 0)
        if generation != instead.generation and instead.raw:
            return 0
        since = time_since(instead.about, self._clock.wall_ns(), self._server_ns(db))
        if since is not None:
            self._clock.go_on(*since)
        row = self._row(db, generation + 1)
        if instead.raw:
            done = db.execute(text(_SWAP), {"value": row, "before": instead.raw}).rowcount
        else:
            done = db.execute(text(_FIRST), {"value": row}).rowcount
        if done != 1:
            return 0
        db.execute(text(_RAISE), {"value": str(generation + 1)})
        return generation + 1

    # -- having it

    def enter(self, db: Connection, wait_s: float = BUSY_S) -> None:
        """First in every write transaction: one at a time, in the order of their events, and only the last leader's."""
        self.lock(db, wait_s)
        if self.generation:
            self._check(db)

    def confirm(self) -> None:
        """Directly before an effect on the cluster: Fenced when another one leads, Unavailable when nobody can say."""
        with reachable(), self._engine.connect() as db:
            self._check(db)

    def _check(self, db: Connection) -> None:
        found = db.execute(text(_READ), {"key": "generation"}).scalar()
        if self.lost.is_set() or found != str(self.generation):
            raise self._fenced(found)

    def when_lost(self, act: Callable[[], None]) -> None:
        """Call `act` once another one was seen to lead, at once if that is so already."""
        self.on_lost = act
        if self.lost.is_set():
            act()

    def _fenced(self, found: Any) -> Fenced:
        if not self.lost.is_set():
            self.lost.set()
            self.on_lost()
        return Fenced(
            "another control plane has taken over this database",
            why=f"this one is generation {self.generation}, the last is {found}",
            todo="nothing acknowledged is lost; ask the one that leads",
        )

    def lock(self, db: Connection, wait_s: float = BUSY_S) -> None:
        if not self._file:
            if wait_s != BUSY_S:
                db.execute(text(f"SET LOCAL lock_timeout = '{wait_s:g}s'"))
            db.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": postgres.WRITES})

    def beat(self) -> None:
        """One sign of life. Fenced when another one leads."""
        with reachable():
            self._seat.keep()
        with reachable(), self._writing(locked=False) as db:
            row = {"value": self._row(db, self.generation), "mine": f"{self.generation} %"}
            if db.execute(text(_BEAT), row).rowcount != 1:
                raise self._fenced(
                    leader_of(str(db.execute(text(_READ), {"key": "leader"}).scalar())).generation
                )

    def start(self) -> None:
        """Beat in a thread of its own until `close`, or until another one leads."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="beat", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._ending.wait(self._standing.stall_s / BEATS):
            try:
                self.beat()
                self.on_beat()
            except Fenced:
                return
            except (MoorageError, OSError) as error:
                log.warning("no sign of life could be given, or noted: %s", error)
            except Exception:
                log.exception("no sign of life could be given")

    def close(self) -> None:
        """Leave, so that a standby need not wait to be sure. Quiet when the database is gone."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(10)
        if self.generation and not self.lost.is_set():
            try:
                with self._writing(locked=False) as db:
                    row = self._row(db, self.generation, ended=True)
                    db.execute(text(_BEAT), {"value": row, "mine": f"{self.generation} %"})
            except Exception as error:
                log.warning("could not say that this one ended: %s", error)
        self._seat.leave()

    # -- inside

    def _new_seat(self) -> Seat:
        if self._engine.dialect.name == "sqlite":
            return FileSeat(Path(str(self._engine.url.database)))
        return ServerSeat(self._engine)

    @contextmanager
    def _writing(self, locked: bool = True) -> Iterator[Connection]:
        connection = self._engine.connect().execution_options(moorage_write=True, moorage_wait_s=WAIT_S)
        with connection, connection.begin():
            if locked:
                self.lock(connection)
            yield connection

    def _server_ns(self, db: Connection) -> int | None:
        """The server's own clock: the one that control planes on several machines share."""
        if self._file:
            return None
        return (
            int(
                db.execute(
                    text("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
                ).scalar_one()
            )
            * 1000
        )

    def _row(self, db: Connection, generation: int, **more: Any) -> str:
        now = self._clock.now()
        about = {
            "seat": self._seat.name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": self._started,
            "door": self._standing.door,
            "beat": secrets.token_hex(4),
            "wall_ns": now.wall_ns,
            "control_ns": now.control_ns,
            "server_ns": self._server_ns(db),
            **machine(),
        }
        return f"{generation} {json.dumps(about | more)}"


_READ = "SELECT value FROM facts WHERE key = :key"
_SWAP = "UPDATE facts SET value = :value WHERE key = 'leader' AND value = :before"
_BEAT = "UPDATE facts SET value = :value WHERE key = 'leader' AND value LIKE :mine"
_FIRST = "INSERT INTO facts (key, value) VALUES ('leader', :value) ON CONFLICT (key) DO NOTHING"
_RAISE = (
    "INSERT INTO facts (key, value) VALUES ('generation', :value)"
    " ON CONFLICT (key) DO UPDATE SET value = excluded.value"
)


def _already_up(found: Leader) -> Conflict:
    where = found.about
    return Conflict(
        "another control plane writes to this database",
        why=f"generation {found.generation}, process {where.get('pid')} on {where.get('host')}",
        todo="moorage down stops it; start this one with --standby to wait for its end",
        code="already-up",
    )


def _end_stopped(leader: Leader) -> None:
    """A leader that was stopped (SIGSTOP) inside a transaction keeps a database file locked for everybody: it is ended.
    Only this machine's, and only one that does not run: whoever runs comes to the end of its transaction."""
    where = leader.about
    if where.get("host") != socket.gethostname() or where.get("boot") != machine()["boot"]:
        return
    try:
        process = psutil.Process(int(where["pid"]))
        same = process.create_time() == where["started"]  # and not another one that has its number now
        if same and process.status() == psutil.STATUS_STOPPED:
            log.warning("generation %d is stopped and holds the database: killing it", leader.generation)
            process.kill()
    except (psutil.Error, KeyError, ValueError):
        return
