"""Reservations: when and where a job that lacks only room can start, and who may start before it without delaying it.

Running jobs give their devices back by their known ends at the latest. The first jobs that lack room (one: EASY
backfill, Lifka, JSSPP 1995; all: conservative backfill, Mu'alem and Feitelson, TPDS 2001) are each given the earliest
time at which they fit, and nodes. A later job starts now if it ends before the first reservation begins, or if all
reservations can still be kept at their times with it in place, on other nodes if need be. So within a plan no
reservation gets later; and as the next plan looks at the same jobs in the same order, with ends that are no later, it
finds each one a time that is no later, as long as nobody comes in front (also not one who was there, held back by its
team's limit or quota alone) and nobody is pushed out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from moorage.kernels import admission
from moorage.kernels.backfill import Events, Tasks, copied, count_fits, in_order, joined, least_free
from moorage.kernels.gang import Pool, place_within
from moorage.kernels.placing import fresh_scores, take
from moorage.kernels.placing_scores import Nodes
from moorage.kernels.preemption import Running
from moorage.kernels.teams import Teams, room
from moorage.scheduling.layout import NEVER_REFUSED
from moorage.scheduling.model import UNLIMITED, IntArray, Policy, Reservation


@dataclass(frozen=True, slots=True)
class _Promise:
    row: int
    start: int
    end: int
    node: IntArray
    mask: IntArray
    klass: IntArray

    def tasks(self) -> list[Tasks]:
        """Taken when it starts, given back when it ends."""
        count = len(self.node)
        begin = Tasks(np.full(count, self.start), np.full(count, -1), self.node, self.mask, self.klass)
        end = Tasks(np.full(count, self.end), np.ones(count, np.int64), self.node, self.mask, self.klass)
        return [begin, end] if self.end < UNLIMITED else [begin]


Columns = tuple[IntArray, IntArray, IntArray]
"""(node, mask, MiB) of tasks being placed: views into the plan under construction."""


@dataclass(slots=True)
class Reservations:
    """Of one decision. `pool`, `teams` and `running` are its working copies; `state` is the admission loop's."""

    pool: Pool
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
    _made: list[_Promise] = field(default_factory=list)

    def reserve(self, row: int, out: admission.Out, state: IntArray) -> None:
        """Reserve for a row that lacks room, or note that no known end makes any."""
        self._again(out, state)
        found = self._earliest(row, self._events(out, state), self._made)
        if found is None:
            self.columns.promised[self.rows.kind == self.rows.kind[row]] = admission.NO_PROMISE
            return
        self._made.append(found)
        self.columns.promised[row] = admission.PROMISED
        state[admission.LEFT] -= 1
        self._tell(state)

    def overtake(self, row: int, first: bool, out: admission.Out, state: IntArray) -> int:
        """Place a row that fits now, but may take what is reserved; WAITS_DELAYS where it would."""
        self._again(out, state)
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
                if placed >= 0 and self._kept(row, placed, columns, out, state):
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
        self._again(out, state)
        return tuple(
            Reservation(row=p.row, start_ns=p.start, nodes=tuple(p.node.tolist())) for p in self._made
        )

    def _tell(self, state: IntArray) -> None:
        soonest = min(self._made, key=lambda promise: promise.start, default=None)
        state[admission.FIRST] = UNLIMITED if soonest is None else soonest.start
        state[admission.OF] = -1 if soonest is None else soonest.row

    def _again(self, out: admission.Out, state: IntArray) -> None:
        """After somebody was pushed out or moved, make all reservations anew, in their order."""
        if not self.stale:
            return
        self.stale = False
        self.columns.refused[:] = NEVER_REFUSED
        old, self._made = self._made, []
        events = self._events(out, state)
        for promise in old:
            found = self._earliest(promise.row, events, self._made)
            if found is None:
                self.columns.promised[promise.row] = admission.NO_PROMISE
            else:
                self._made.append(found)
        self._tell(state)

    def _events(self, out: admission.Out, state: IntArray) -> Tasks:
        """What the jobs that run, and those this plan starts, give back."""
        running, rows = self.running, self.rows
        ends = np.maximum(np.repeat(self.ends, np.diff(running.first)), self.now)
        there = ~np.repeat(running.taken, np.diff(running.first)) & (ends < UNLIMITED)
        held = Tasks(ends, np.ones(len(ends), np.int64), running.node, running.mask, running.klass)
        tasks = slice(0, int(state[admission.TASKS]))
        ends = rows.ends[out.admitted[out.task_admission[tasks]]]
        node, mask, klass = out.task_node[tasks], out.task_mask[tasks], out.task_class[tasks]
        known = ends < UNLIMITED
        begun = Tasks(ends, np.ones(len(ends), np.int64), node, mask, klass)
        return joined([Tasks(*(c[there] for c in held)), Tasks(*(c[known] for c in begun))])

    def _ordered(self, tasks: Tasks, made: list[_Promise]) -> Events:
        parts = [tasks, *(part for promise in made for part in promise.tasks())]
        return in_order(joined(parts), self.pool.nodes, self.pool.classes)

    def _earliest(self, row: int, tasks: Tasks, made: list[_Promise]) -> _Promise | None:
        """The earliest time at which a row fits beside those in `made`, and where."""
        events, run = self._ordered(tasks, made), int(self.rows.ends[row]) - self.now
        times = np.unique(events.at[events.sign > 0])
        times = times[times - self.now <= self.policy.window_ns]
        at = 0 if made else self._first_enough(row, events, times, run)
        for time in times[at:].tolist():
            found = self._at(row, events, time, min(time + run, UNLIMITED))
            if found is not None:
                return found
        return None

    def _first_enough(self, row: int, events: Events, times: IntArray, run: int) -> int:
        """The first time at which there is enough in sum. Without reservations room only grows: it is bisected."""
        low, high = 0, len(times)
        while low < high:
            middle = (low + high) // 2
            at = int(times[middle])
            if self._enough(row, least_free(events, self.pool.nodes, at, at + 1)):
                high = middle
            else:
                low = middle + 1
        return low

    def _enough(self, row: int, nodes: Nodes) -> bool:
        rows, classes = self.rows, self.pool.classes
        head, worker = int(rows.head[row]), int(rows.worker[row])
        if head >= 0 and not count_fits(nodes, classes, head):
            return False
        return worker < 0 or count_fits(nodes, classes, worker) >= self._fewest(row)

    def _at(self, row: int, events: Events, start: int, end: int) -> _Promise | None:
        """Its least gang on what is free all through [start, end); None when it does not fit."""
        nodes = least_free(events, self.pool.nodes, start, end)
        if not self._enough(row, nodes):
            return None
        rows, team = self.rows, int(self.rows.team[row])
        scores = fresh_scores(nodes, self.pool.classes, self.pool.scoring)
        within, left = np.full((2, self.teams.own.shape[1]), UNLIMITED, np.int64)
        if not self.teams.free[team]:
            room(self.teams, team, within)
        head, worker, least = int(rows.head[row]), int(rows.worker[row]), int(rows.min_workers[row])
        workers = self._fewest(row)
        klass = self._classes(row, workers)
        node, mask, mem = np.zeros((3, len(klass)), np.int64)
        pool = self.pool._replace(nodes=nodes, scores=scores)
        placed = place_within(pool, head, worker, workers, least, within, left, node, mask, mem)
        return None if placed < 0 else _Promise(row, start, end, node, mask, klass)

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
        for promise in self._made:
            of = int(self.rows.team[promise.row])
            charge = np.zeros(used.shape[1], np.int64)
            np.add.at(charge, nodes.model[promise.node], classes.milli[promise.klass])
            charge[0] = int(classes.milli[promise.klass].sum())
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

    def _kept(self, row: int, placed: int, columns: Columns, out: admission.Out, state: IntArray) -> bool:
        """Whether all reservations can be kept at their times with the row placed; they then may have other nodes."""
        klass = self._classes(row, placed)
        count, end = len(klass), int(self.rows.ends[row])
        node, mask = columns[0][:count], columns[1][:count]
        if not set(node.tolist()) & {n for promise in self._made for n in promise.node.tolist()}:
            return True
        tasks = self._events(out, state)
        if end < UNLIMITED:
            tasks = joined([tasks, Tasks(np.full(count, end), np.ones(count, np.int64), node, mask, klass)])
        made: list[_Promise] = []
        for promise in self._made:
            found = self._at(promise.row, self._ordered(tasks, made), promise.start, promise.end)
            if found is None:
                return False
            made.append(found)
        self._made = made
        return True

    def _beside(self, row: int, within: IntArray, columns: Columns) -> int:
        """Place a row on nodes that no reservation uses before it ends: that delays nobody. -1 = it does not fit."""
        rows, pool, used = self.rows, self.pool, np.zeros(len(self.pool.nodes.model), np.bool_)
        for promise in self._made:
            if promise.start < rows.ends[row]:
                used[promise.node] = True
        nodes, classes = copied(pool.nodes), pool.classes._replace(allowed=pool.classes.allowed & ~used)
        scores = fresh_scores(nodes, classes, pool.scoring)
        apart = pool._replace(nodes=nodes, classes=classes, scores=scores)
        head, worker, least = int(rows.head[row]), int(rows.worker[row]), int(rows.min_workers[row])
        workers = int(rows.workers[row])
        placed = int(place_within(apart, head, worker, workers, least, within, within.copy(), *columns))
        self._take(row, placed, columns, -1)
        return placed

    def _take(self, row: int, placed: int, columns: Columns, sign: int) -> None:
        """Take (-1) or give back (1) what was placed."""
        if placed < 0:
            return
        for t, c in enumerate(self._classes(row, placed).tolist()):
            take(self.pool.nodes, self.pool.classes, self.pool.scores, c, columns[0][t], columns[1][t], sign)
