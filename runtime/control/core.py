"""What the parts of the control plane share: the store, the book, the settings, and how a change is made.

`Core.change()` is the only way to write: one transaction under the store's lock, book updated after the commit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from sqlalchemy import Connection, select

from moorage.configs.pool import PoolSettings
from moorage.configs.teams import stored_teams
from moorage.errors import Unavailable
from moorage.runtime.control import failpoints
from moorage.runtime.control.book import Book
from moorage.runtime.control.clock import Now
from moorage.runtime.control.packing import Packing
from moorage.runtime.control.spending import Spending
from moorage.runtime.control.store import Store
from moorage.runtime.control.tables import team_versions
from moorage.scheduling.ledger import LeaseReleased
from moorage.scheduling.model import DeviceRule, JobRequest, Policy, Snapshot
from moorage.scheduling.queue import Queue
from moorage.scheduling.running import Gang, Leaver, RunningJobs


@dataclass(slots=True)
class Change:
    """One open transaction. `after` runs on the book once it is durable."""

    db: Connection
    now: Now
    after: list[Callable[[], None]] = field(default_factory=list)
    touched_book: bool = False
    """The book was changed before the commit: a failure must reload it."""


@dataclass(slots=True)
class Core:
    """Shared by the facade (many threads) and the loop (one)."""

    store: Store
    book: Book
    settings: PoolSettings
    device_rule: DeviceRule
    packing: Packing
    spending: Spending
    policy: Policy = field(default_factory=Policy)
    """What every decision here goes by."""
    changed: threading.Condition = field(default_factory=threading.Condition)
    """Notified after every change: `grow` waits on it."""
    wake: threading.Event = field(default_factory=threading.Event)
    """Set when the loop has something to do before its next tick."""
    generation: int = 0
    steps: int = 0
    """How far the loop got: counted up by its thread with each part of a round and each effect."""
    stale: bool = False
    """The book may differ from the store (the database went away in between): reload before it is used again."""

    @contextmanager
    def change(self, failpoint: str = "") -> Iterator[Change]:
        """One transaction; `failpoint` names a pair `<failpoint>.before-commit` and `.after-commit`."""
        with self.store.lock:
            self.refresh()
            change: Change | None = None
            try:
                with self.store.write() as db:
                    change = Change(db, self.store.clock.now())
                    yield change
                    failpoints.hit("commit.before")
                    if failpoint:
                        failpoints.hit(f"{failpoint}.before-commit")
                failpoints.hit("commit.after")
                if failpoint:
                    failpoints.hit(f"{failpoint}.after-commit")
                for act in change.after:
                    act()
            except BaseException:
                # Also for what was to come after the commit: a broken connection does not say whether it was done.
                if change is not None and (change.touched_book or change.after):
                    self.stale = True
                    with suppress(Unavailable):
                        self.refresh()
                raise
        self.notify()

    def reload(self) -> None:
        with self.store.lock, self.store.read() as db:
            newest = select(team_versions.c.content).order_by(team_versions.c.version.desc()).limit(1)
            content = db.execute(newest).scalar()
            if content is not None and (teams := stored_teams(content)) != self.book.teams:
                # Put in force by a commit whose answer was lost.
                self.book.teams = teams
                self.spending.of(teams)
            self.book.reload(db)
            self.stale = False

    def refresh(self) -> None:
        """Reload if the book may differ from the store. Unavailable while the database does not answer."""
        if self.stale:
            self.reload()

    def snapshot(
        self,
        pending: tuple[JobRequest, ...],
        ends: Mapping[str, int],
        leavers: Mapping[str, Leaver] | None = None,
        gangs: Mapping[str, Gang] | None = None,
    ) -> Snapshot:
        """A copy of the pool with these jobs waiting: what the loop plans on, and what is explained. `ends`: control
        time by which each lease will have ended, where that is known. `leavers`: who may be told to leave. `gangs`:
        which leases may be resized. Who was told has left or shrunk in it, and who was promised a place has it."""
        book = self.book
        moving = book.leaving or book.promises or book.shrinking
        known = ends or leavers or gangs
        ledger = book.coming(self.store.clock.now().control_ns) if moving else book.ledger.copy()
        return Snapshot(
            version=book.ledger.version,
            ledger=ledger,
            running=RunningJobs.holding(ledger, ends or None, leavers, gangs) if known else None,
            pending=Queue.of(pending),
            device_rule=self.device_rule,
            accounts=self.spending.accounts(),
            scoring=self.packing.scoring(self.book.ledger, self.store.clock.now().control_ns),
            drained=tuple(sorted(book.alive & book.drained.keys())),
        )

    def notify(self) -> None:
        with self.changed:
            self.generation += 1
            self.changed.notify_all()

    def freed(self, change: Change, released: list[tuple[str, int]]) -> None:
        """Take released leases out of the ledger after the commit."""
        for lease_id, epoch in released:
            change.after.append(lambda a=lease_id, b=epoch: self.book.apply(LeaseReleased(a, b)))  # type: ignore[misc]
