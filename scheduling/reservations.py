"""Reservations: when and where a job that lacks only room can start, and who may start before it without delaying it.

Running jobs give their devices back by their known ends at the latest. The first jobs that lack room (one: EASY
backfill, Lifka, JSSPP 1995; all: conservative backfill, Mu'alem and Feitelson, TPDS 2001) are each given the earliest
time at which they fit, and nodes. A later job starts now if it ends before the first reservation begins, or if all
reservations can still be kept at their times with it in place, on other nodes if need be. So within a plan no
reservation gets later; and as the next plan looks at the same jobs in the same order, with ends that are no later, it
finds the first one a time that is no later, as long as nobody comes in front (also not one who was there, held back by
its team's limit or quota alone) and nobody is pushed out. So it does the others, unless a job ended before its time:
then somebody in front may start sooner, and be in the way of a promise behind it (Graham's anomalies).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from moorage.kernels import admission, future
from moorage.kernels.gang import Pool, place_within
from moorage.kernels.placing import take
from moorage.kernels.preemption import Running
from moorage.kernels.teams import Teams, room
from moorage.scheduling.layout import NEVER_REFUSED
from moorage.scheduling.model import UNLIMITED, IntArray, Policy, Reservation

Columns = tuple[IntArray, IntArray, IntArray]
"""(node, mask, MiB) of tasks being placed: views into the plan under construction."""


@dataclass(slots=True)
class Reservations:
    """Of one decision. `pool`, `teams` and `running` are its working copies; `state` is the admission loop's."""

    pool: Pool
    spare: future.Spare
    teams: Teams
    running: Running
    ends: IntArray
    """[V]; UNLIMITED = not known."""
    rows: admission.Rows
    policy: Policy
    now: int
    columns: admission.Promises
    stale: bool = False
    """Somebody was pushed out or moved since: the future is another one."""
    _made: future.Promises = field(default_factory=lambda: future.promises_of(1, 0))
    _known: future.Book = field(default_factory=lambda: future.book_of(0))
    """What running jobs, and those this plan starts, give back."""
    _seen: int = -1
    """Tasks of this plan that are in it; -1 = nothing is."""
    _book: future.Book = field(default_factory=lambda: future.book_of(0))
    """With what promises take and give; of use while `_current`."""
    _current: bool = False

    def reserve(self, row: int, out: admission.Out, state: IntArray) -> None:
        """Reserve for a row that lacks room, or note that no known end makes any."""
        self._refresh(out, state)
        if not self._promise(row):
            self.columns.promised[self.rows.kind == self.rows.kind[row]] = admission.NO_PROMISE
            return
        self.columns.promised[row] = admission.PROMISED
        state[admission.LEFT] -= 1
        self._tell(state)

    def overtake(self, row: int, first: bool, out: admission.Out, state: IntArray) -> int:
        """Place a row that fits now, but may take what is reserved; WAITS_DELAYS where it would."""
        self._refresh(out, state)
        rows, at = self.rows, int(state[admission.TASKS])
        columns = out.task_node[at:], out.task_mask[at:], out.task_mem[at:]
        head, worker, least = int(rows.head[row]), int(rows.worker[row]), int(rows.min_workers[row])
        within = self._within(row, first)
        if within[0] >= rows.least[row]:
            sizes = dict.fromkeys((int(rows.workers[row]), self._fewest(row)))
            for workers in sizes:
                placed = place_within(
                    self.pool, head, worker, workers, least, within, within.copy(), *columns
                )
                if placed >= 0 and self._kept(row, placed, columns):
                    return int(placed)
                self._take(row, placed, columns, 1)
            placed = self._beside(row, within, columns)
            if placed >= 0:
                return placed
        kind = rows.kind[row]
        self.columns.refused[kind] = min(self.columns.refused[kind], rows.ends[row])
        return admission.WAITS_DELAYS

    def result(self, out: admission.Out, state: IntArray) -> tuple[Reservation, ...]:
        """For the plan, in order."""
        if self.stale:
            self._refresh(out, state)
        made = self._made
        first, node = made.first.tolist(), made.node.tolist()
        return tuple(
            Reservation(
                row=int(made.row[p]), start_ns=int(made.start[p]), nodes=tuple(node[first[p] : first[p + 1]])
            )
            for p in range(int(made.size[0]))
        )

    def _tell(self, state: IntArray) -> None:
        made = self._made
        starts = made.start[: made.size[0]]
        at = int(starts.argmin()) if len(starts) else -1
        state[admission.FIRST] = UNLIMITED if at < 0 else starts[at]
        state[admission.OF] = -1 if at < 0 else made.row[at]

    def _refresh(self, out: admission.Out, state: IntArray) -> None:
        """Know what the plan has started since; after somebody was pushed out or moved, make all reservations anew."""
        if self._seen < 0 or self.stale:
            self._begin()
        count = int(state[admission.TASKS])
        if count > self._seen:
            tasks = slice(self._seen, count)
            ends = self.rows.ends[out.admitted[out.task_admission[tasks]]]
            self._known = _with_room(self._known, count - self._seen)
            future.enter(self._known, ends, out.task_node[tasks], out.task_mask[tasks], out.task_class[tasks])
            self._seen, self._current = count, False
        if not self.stale:
            return
        self.stale = False
        self.columns.refused[:] = NEVER_REFUSED
        made = self._made
        rows = made.row[: made.size[0]].tolist()
        made.size[0] = 0
        for row in rows:
            if not self._promise(row):
                self.columns.promised[row] = admission.NO_PROMISE
        self._tell(state)

    def _begin(self) -> None:
        """What the jobs that run give back."""
        running = self.running
        of = np.repeat(np.arange(len(self.ends)), np.diff(running.first))
        ends = np.maximum(self.ends[of], self.now)
        there = np.flatnonzero(~running.taken[of] & (ends < UNLIMITED))
        there = there[np.argsort(ends[there], kind="stable")]
        known = future.book_of(2 * len(there) + 64)
        count = len(there)
        known.at[:count], known.sign[:count], known.size[0] = ends[there], 1, count
        known.node[:count], known.mask[:count] = running.node[there], running.mask[there]
        known.klass[:count] = running.klass[there]
        self._known, self._seen, self._current = known, 0, False

    def _promise(self, row: int) -> bool:
        """The earliest time at which a row fits beside all that is promised, and where."""
        rows, workers = self.rows, self._fewest(row)
        head, worker = int(rows.head[row]), int(rows.worker[row])
        size = (head >= 0) + (workers if worker >= 0 else 0)
        made = self._made = _with_room_for(self._made, size)
        book, p = self._taken(2 * size), int(made.size[0])
        made.row[p], made.head[p], made.worker[p], made.workers[p] = row, head, worker, workers
        made.first[p + 1] = made.first[p] + size
        run, state = int(rows.ends[row]) - self.now, np.zeros(3, np.int64)
        span = self.now, run, self.policy.window_ns
        while (
            at := future.next_time(self.pool, self.spare, book, (head, worker, workers), span, state)
        ) >= 0:
            if self._place(made, p):
                made.start[p], made.end[p] = at, min(at + run, UNLIMITED)
                made.size[0] = p + 1
                future.enter_promise(book, made, p)
                return True
        return False

    def _place(self, made: future.Promises, p: int) -> bool:
        """Place the least gang of a promise in the spare pool."""
        team, models = int(self.rows.team[made.row[p]]), self.teams.own.shape[1]
        within, left = np.full((2, models), UNLIMITED, np.int64)
        if not self.teams.free[team]:
            room(self.teams, team, within)
        begin, workers = int(made.first[p]), int(made.workers[p])
        columns = made.node[begin:], made.mask[begin:], np.empty(workers + 1, np.int64)
        head, worker = int(made.head[p]), int(made.worker[p])
        pool = self.spare.pool
        return int(place_within(pool, head, worker, workers, workers, within, left, *columns)) >= 0

    def _taken(self, more: int) -> future.Book:
        """What is given back, and what promises take; with room for some events more."""
        made = self._made
        if not self._current:
            self._book = _with_room(self._known, 2 * int(made.first[made.size[0]]) + more, copy=True)
            for p in range(int(made.size[0])):
                future.enter_promise(self._book, made, p)
            self._current = True
        self._book = _with_room(self._book, more)
        return self._book

    def _fewest(self, row: int) -> int:
        """Workers it starts with at least."""
        alone = 1 if self.rows.head[row] < 0 else 0
        return int(min(self.rows.workers[row], max(self.rows.min_workers[row], alone)))

    def _classes(self, row: int, workers: int) -> IntArray:
        """The class of each task of a gang, head first."""
        head, worker = int(self.rows.head[row]), int(self.rows.worker[row])
        return np.array([head] * (head >= 0) + [worker] * (workers if worker >= 0 else 0), np.int64)

    def _within(self, row: int, first: bool) -> IntArray:
        """[M] milli-GPU its team may take now, were every reserved job there already, though it ends before they start:
        a job that waits within its quota would else become one that borrows, and lose its turn."""
        teams, team = self.teams, int(self.rows.team[row])
        within = np.full(teams.own.shape[1], UNLIMITED, np.int64)
        if teams.free[team]:
            return within
        used, total = teams.used.copy(), teams.total.copy()
        nodes, classes = self.pool.nodes, self.pool.classes
        made = self._made
        for p in range(int(made.size[0])):
            of, tasks = int(self.rows.team[made.row[p]]), slice(int(made.first[p]), int(made.first[p + 1]))
            milli = classes.milli[self._classes(int(made.row[p]), int(made.workers[p]))]
            charge = np.zeros(used.shape[1], np.int64)
            np.add.at(charge, nodes.model[made.node[tasks]], milli)
            charge[0] = int(milli.sum())
            used[of] += charge
            while of >= 0:
                total[of] += charge
                of = int(teams.parent[of])
        then = teams._replace(
            used=used,
            total=total,
            idle=np.minimum(np.maximum(teams.own - used, 0), teams.lend).sum(axis=0),
            over=np.maximum(used - teams.own, 0).sum(axis=0),
        )
        room(then, team, within)
        if first and self.rows.least[row] > 0:
            own = np.maximum(teams.own[team] - used[team], 0)
            within = np.minimum(within, np.where(teams.counted > 0, own, UNLIMITED))
        return within

    def _kept(self, row: int, placed: int, columns: Columns) -> bool:
        """Whether all reservations can be kept at their times with the row placed; they then may have other nodes."""
        klass, made = self._classes(row, placed), self._made
        count, tasks = len(klass), int(made.first[made.size[0]])
        if not future.meets(made, columns[0], count):
            return True
        book = _with_room(self._known, count + 2 * tasks, copy=True)
        future.enter(book, np.full(count, self.rows.ends[row]), columns[0][:count], columns[1][:count], klass)
        again = future.promises_of(len(made.row), len(made.node))
        for name in ("row", "head", "worker", "workers", "start", "end", "first"):
            getattr(again, name)[:] = getattr(made, name)
        for p in range(int(made.size[0])):
            gang = int(made.head[p]), int(made.worker[p]), int(made.workers[p])
            start, end = int(made.start[p]), int(made.end[p])
            if not future.at_time(self.pool, self.spare, book, gang, start, end) or not self._place(again, p):
                return False
            again.size[0] = p + 1
            future.enter_promise(book, again, p)
        self._made, self._current = again, False
        return True

    def _beside(self, row: int, within: IntArray, columns: Columns) -> int:
        """Place a row on nodes that no reservation uses before it ends: that delays nobody. -1 = it does not fit."""
        rows, spare = self.rows, self.spare
        head, worker, end = int(rows.head[row]), int(rows.worker[row]), int(rows.ends[row])
        future.without(self.pool, spare, self._made, end, head, worker)
        workers, least = int(rows.workers[row]), int(rows.min_workers[row])
        placed = int(place_within(spare.pool, head, worker, workers, least, within, within.copy(), *columns))
        self._take(row, placed, columns, -1)
        return placed

    def _take(self, row: int, placed: int, columns: Columns, sign: int) -> None:
        """Take (-1) or give back (1) what was placed."""
        if placed < 0:
            return
        for t, c in enumerate(self._classes(row, placed).tolist()):
            take(self.pool.nodes, self.pool.classes, self.pool.scores, c, columns[0][t], columns[1][t], sign)


def _with_room(book: future.Book, more: int, copy: bool = False) -> future.Book:
    """The same book with room for `more` events; with `copy` another one."""
    count = int(book.size[0])
    if count + more <= len(book.at) and not copy:
        return book
    longer = future.book_of(max(count + more, 2 * count))
    for old, new in zip(book, longer, strict=True):
        new[: min(count, len(new))] = old[: min(count, len(new))]
    longer.size[0] = count
    return longer


def _with_room_for(made: future.Promises, tasks: int) -> future.Promises:
    """The same promises with room for one more, of so many tasks."""
    count = int(made.size[0])
    held = int(made.first[count])
    if count < len(made.row) and held + tasks <= len(made.node):
        return made
    longer = future.promises_of(2 * count + 1, 2 * held + tasks)
    for name, old, new in zip(made._fields, made, longer, strict=True):
        size = held if name in ("node", "mask") else count + (name == "first")
        if name != "size":
            new[:size] = old[:size]
    longer.size[0] = count
    return longer
