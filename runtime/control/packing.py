"""What a live pool packs by: the tables of the potential rule, made beside the loop from what the pool is asked for.

A decision reads tables that are there, and never waits for them: a linear programme takes a second. Until the pool has
seen enough tasks to know its mix, it packs by best fit.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

import numpy as np
from sqlalchemy import select

from moorage.configs.job import JobAsk
from moorage.configs.pool import PoolSettings
from moorage.errors import Unavailable
from moorage.kernels.placing_scores import BEST_FIT, Scoring
from moorage.runtime.control.book import request_of
from moorage.runtime.control.store import Store
from moorage.runtime.control.tables import jobs
from moorage.scheduling.ledger import Ledger
from moorage.scheduling.model import IntArray
from moorage.scheduling.packing.named import scoring
from moorage.scheduling.packing.scorings import POTENTIAL
from moorage.scheduling.queue import Queue, TaskClass

log = logging.getLogger(__name__)

LATEST_JOBS = 5000
"""The mix is that of so many jobs, the last that were submitted."""
FEWEST_TASKS = 200
"""Fewer say little about the mix."""
RENEW_NS = 600 * 10**9


@dataclass(frozen=True, slots=True)
class _Made:
    scoring: Scoring | None
    """None: the mix is not known, or holds no task of up to one GPU."""
    models: tuple[str, ...]
    width: int
    control_ns: int

    def serve(self, ledger: Ledger) -> bool:
        return self.models == tuple(ledger.models) and ledger.milli_free.shape[1] <= self.width


class Packing:
    """`scoring` is for whoever plans, under the store's lock; `renew` makes new tables, in a thread of its own."""

    def __init__(self, store: Store, settings: PoolSettings) -> None:
        self._store, self._settings = store, settings
        self._made = _Made(None, (), 0, 0)
        self._given: Scoring | None = None
        self._thread: threading.Thread | None = None

    def scoring(self, ledger: Ledger, control_ns: int) -> Scoring | None:
        """The tables for this pool as they are; None = best fit. Asks for new ones when these are old."""
        if self._settings.packing != POTENTIAL:
            return None
        made = self._made
        serves = made.serve(ledger)
        if not serves or control_ns - made.control_ns > RENEW_NS:
            self._ask(ledger, control_ns)
        if not serves or made.scoring is None:
            return None
        given, nodes = self._given, len(ledger.up)
        # the same object while nothing changed: a workspace keeps its scores for as long
        if given is None or given.value is not made.scoring.value or len(given.tie) != nodes:
            self._given = given = made.scoring._replace(tie=np.arange(nodes))
        return given

    def renew(self, ledger: Ledger, control_ns: int) -> None:
        """Make the tables for `ledger` (a copy of the caller's)."""
        classes, count = self._mix()
        found = None
        if count.sum() >= FEWEST_TASKS:
            found = scoring(POTENTIAL, ledger, classes, count)
        if found is not None and found.kind == BEST_FIT:
            found = None
        self._made = _Made(found, tuple(ledger.models), int(ledger.milli_free.shape[1]), control_ns)

    def close(self) -> None:
        """End with the tables in the making, if there are any."""
        if self._thread is not None:
            self._thread.join(30)

    def _ask(self, ledger: Ledger, control_ns: int) -> None:
        if self._thread is None or not self._thread.is_alive():
            arguments = (ledger.copy(), control_ns)
            self._thread = threading.Thread(target=self._try, args=arguments, name="packing", daemon=True)
            self._thread.start()

    def _try(self, ledger: Ledger, control_ns: int) -> None:
        try:
            self.renew(ledger, control_ns)
        except Unavailable as error:
            log.warning("the mix of jobs cannot be read, packing stays as it is: %s", error)
        except (
            Exception
        ):  # tables are a matter of how well, not of whether: the pool goes on with those it has
            log.exception("the packing tables could not be made")

    def _mix(self) -> tuple[tuple[TaskClass, ...], IntArray]:
        """The task classes of the latest jobs, and how many tasks of each there were."""
        latest = (
            select(jobs.c.id, jobs.c.team, jobs.c.ask).order_by(jobs.c.created_ns.desc()).limit(LATEST_JOBS)
        )
        with self._store.read() as db:
            rows = db.execute(latest).all()
        asks = ((row.id, row.team, JobAsk.model_validate(row.ask)) for row in rows)
        queue = Queue.of([request_of(job, team, ask, 0) for job, team, ask in asks])
        count = np.zeros(len(queue.classes) + 1, np.int64)  # the last entry is nobody's: class -1
        np.add.at(count, queue.head, 1)
        np.add.at(count, queue.worker, queue.workers)
        return queue.classes, count[:-1]
