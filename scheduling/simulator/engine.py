"""Discrete events over the public `plan()` and `step()`: jobs arrive, run, are preempted and end.

Between two events nothing changes, so a decision is made when something arrived or ended, and, for disciplines whose
index moves with time, at every tick while jobs wait. A preempted job keeps its progress but for what was lost since its
last checkpoint, and waits again.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from moorage.kernels.placing_scores import Scoring
from moorage.scheduling.accounts import Meter
from moorage.scheduling.ledger import LeaseGranted, LeaseReleased, LeaseResized, Ledger, NodeUp, TeamSet, step
from moorage.scheduling.model import (
    UNLIMITED,
    DeviceRule,
    IntArray,
    Lease,
    NodeSpec,
    Plan,
    Policy,
    Snapshot,
    TeamSpec,
)
from moorage.scheduling.packing.named import scoring
from moorage.scheduling.packing.scorings import BEST_FIT
from moorage.scheduling.planner import plan
from moorage.scheduling.running import RunningJobs
from moorage.scheduling.simulator import partition
from moorage.scheduling.simulator.disciplines import DISCIPLINES, Discipline, Rank, Ranks
from moorage.scheduling.simulator.disciplines import Jobs as Seen
from moorage.scheduling.simulator.elastic import Elastic, Gangs
from moorage.scheduling.simulator.model import JobsResult, NotSimulated, Workload
from moorage.scheduling.simulator.placed import Placed, placements
from moorage.scheduling.simulator.queueing import Jobs
from moorage.scheduling.workspace import Workspace

STATIC = "static"
_INSIDE = "las"
"""What each static partition runs: the discipline that `fair` runs, so that only the sharing differs."""
POLICIES: dict[str, str] = {name: found.text for name, found in DISCIPLINES.items()} | {
    STATIC: "each team alone on its share of the GPU-time, rounded up to whole nodes; las in each"
}
"""Queueing policy -> what it does. The first is the default."""

SECOND = 10**9
LOST_NS = 60 * SECOND
"""Run time that a preemption costs."""
SHARING = frozenset((STATIC, *(name for name, found in DISCIPLINES.items() if found.shares)))
"""Policies under which a job must fit its own team's partition."""

Progress = Callable[[int, int], None]
"""(jobs that ended, all jobs), now and then."""

_REPORTS = 1000
"""How often progress is told, about."""
MANY_JOBS = 250_000
PERIOD_NS = 60 * SECOND
"""How often is decided at the most when there are more jobs than that, unless said."""


def simulate(
    nodes: Sequence[NodeSpec],
    workload: Workload,
    *,
    policy: str,
    quotas: Sequence[TeamSpec] | None = None,
    rule: DeviceRule = DeviceRule.FREE,
    packing: str = BEST_FIT,
    lost_ns: int = LOST_NS,
    period_ns: int = 0,
    elastic: Elastic | None = None,
    stopwatch: Callable[[], float] | None = None,
    progress: Progress | None = None,
) -> JobsResult:
    """Run every job to its end under one policy. Raises NotSimulated.

    `quotas`: the teams' figures, parents first; None = no quotas. Every job must fit the idle pool and its quotas, or
    under `SHARING` policies its team's partition (`partition.fit_partition`).
    `packing`: a rule of `packing.named`, its tables made of the whole workload; partitions pack by best fit.
    `period_ns`: decide at its multiples alone, as schedulers with a cycle do; 0 = whenever a job comes or ends.
    `elastic`: gangs grow and shrink between `min_workers` and `workers`; None = each keeps what it started with, and
    runs as long as at all its workers.
    """
    if policy not in POLICIES:
        raise NotSimulated(f"there is no policy {policy!r}; there are {', '.join(POLICIES)}")
    if policy == STATIC:
        if elastic:
            raise NotSimulated("static partitions are simulated without elastic gangs")
        return _partitions(nodes, workload, rule, lost_ns, period_ns, stopwatch, progress)
    run = _Run.of(nodes, workload, DISCIPLINES[policy], quotas, lost_ns, stopwatch)
    run.rule, run.period_ns = rule, period_ns
    if packing != BEST_FIT:
        tasks = np.bincount(run.jobs.klass, workload.workers, len(run.jobs.classes)).astype(np.int64)
        run.scoring = scoring(packing, run.ledger, run.jobs.classes, tasks)
    run.gangs = Gangs(workload, elastic) if elastic else None
    run.to_the_end(progress)
    return run.result()


def _partitions(
    nodes: Sequence[NodeSpec],
    workload: Workload,
    rule: DeviceRule,
    lost_ns: int,
    period_ns: int,
    stopwatch: Callable[[], float] | None,
    progress: Progress | None,
) -> JobsResult:
    """Each team alone in its partition."""
    parts: list[tuple[IntArray, JobsResult]] = []
    done = 0
    for team in range(len(workload.teams)):
        rows = np.flatnonzero(workload.team == team)
        if len(rows):
            own = partition.own_nodes(workload, nodes, team)
            run = _Run.of(own, workload.take(rows), DISCIPLINES[_INSIDE], None, lost_ns, stopwatch)
            run.rule, run.period_ns = rule, period_ns
            run.to_the_end(None)
            parts.append((rows, run.result()))
            done += len(rows)
            if progress is not None:
                progress(done, len(workload))
    return partition.merged(workload, parts)


@dataclass(slots=True)
class _Run:
    workload: Workload
    discipline: Discipline
    ledger: Ledger
    jobs: Jobs
    lost_ns: int
    stopwatch: Callable[[], float] | None
    seen: Seen
    rank: Rank
    placed: Placed
    rule: DeviceRule = DeviceRule.FREE
    scoring: Scoring | None = None
    now: int = 0
    period_ns: int = 0
    arrived: int = 0
    ended: int = 0
    epoch: int = 0
    elapsed_s: float = 0.0
    decisions: int = 0
    next_tick: int = 0
    workspace: Workspace = field(default_factory=Workspace)
    gangs: Gangs | None = None
    meter: Meter = field(default_factory=Meter)
    leases: dict[int, Lease] = field(default_factory=dict)
    """By row, in order of start."""
    finishing: list[tuple[int, int, int]] = field(default_factory=list)
    """(time, epoch, row): stale when the row's lease has another epoch."""
    waiting: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    left_ns: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    start_ns: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    finish_ns: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    preemptions: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    stint_ns: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def of(
        cls,
        nodes: Sequence[NodeSpec],
        workload: Workload,
        discipline: Discipline,
        quotas: Sequence[TeamSpec] | None,
        lost_ns: int,
        stopwatch: Callable[[], float] | None,
    ) -> _Run:
        ledger = Ledger()
        for spec in quotas or [TeamSpec(name=team) for team in workload.teams]:
            step(ledger, TeamSet(spec))
        for node in nodes:
            step(ledger, NodeUp(node))
        count = len(workload)
        guarantee = partition.shares(workload, nodes) if discipline.shares else np.zeros(0, np.int64)
        seen = Seen.of(workload, int(ledger.capacity()[0]), guarantee)
        return cls(
            workload=workload,
            discipline=discipline,
            ledger=ledger,
            jobs=Jobs.of(workload),
            lost_ns=lost_ns,
            stopwatch=stopwatch,
            seen=seen,
            rank=discipline.begin(seen),
            placed=Placed(count),
            meter=Meter(discipline.half_life_ns),
            left_ns=workload.duration_ns.copy(),
            start_ns=np.full(count, -1, np.int64),
            finish_ns=np.full(count, -1, np.int64),
            preemptions=np.zeros(count, np.int64),
            stint_ns=np.zeros(count, np.int64),
        )

    def to_the_end(self, progress: Progress | None) -> None:
        count, told = len(self.workload), 0
        while self.ended < count:
            if not self._advance():
                raise NotSimulated(f"{count - self.ended} jobs wait and nothing runs: they fit nowhere")
            self._decide()
            if progress is not None and self.ended >= told:
                progress(self.ended, count)
                told = self.ended + max(1, count // _REPORTS)

    def _advance(self) -> bool:
        """To the next time of a decision, and what happens until then. False when nothing will."""
        while self.finishing and not self._current(self.finishing[0]):
            heapq.heappop(self.finishing)
        times = [self.finishing[0][0]] if self.finishing else []
        submit = self.workload.submit_ns
        if self.arrived < len(submit):
            times.append(int(submit[self.arrived]))
        if self.discipline.tick_ns and len(self.waiting) and times:
            times.append(max(self.next_tick, self.now + 1))
        if self.gangs and self.leases:
            due = self.gangs.next_ns(self._rows(), self.seen.started_ns, self.now)
            times += [] if due is None else [due]
        if not times:
            return False
        until = min(times)
        if self.period_ns:
            until = -(-until // self.period_ns) * self.period_ns
        upto = int(np.searchsorted(submit, until, "right"))
        self.waiting = np.concatenate((self.waiting, np.arange(self.arrived, upto)))
        self.seen.queued_ns[self.arrived : upto] = submit[self.arrived : upto]
        self.arrived = upto
        while self.finishing and self.finishing[0][0] <= until:
            entry = heapq.heappop(self.finishing)
            if self._current(entry):
                self.now = entry[0]
                self._end(entry[2])
        self.now = until
        return True

    def _current(self, entry: tuple[int, int, int]) -> bool:
        lease = self.leases.get(entry[2])
        return lease is not None and lease.epoch == entry[1]

    def _decide(self) -> None:
        if self.discipline.tick_ns and self.now >= self.next_tick:
            self.next_tick = self.now + self.discipline.tick_ns
        running = self._rows()
        if not len(self.waiting) and not (self.gangs and len(self.gangs.short(running))):
            return
        self.seen.now_ns = self.now
        ranks = self.rank(self.seen, self.waiting, running)
        self.seen.stopped.clear()
        snapshot = Snapshot(
            version=self.ledger.version,
            ledger=self.ledger,
            pending=self.jobs.queue(
                self.waiting,
                key=ranks.waiting,
                limit_ns=self.left_ns[self.waiting] if self.discipline.reservations else None,
            ),
            running=self._running(running, ranks),
            device_rule=self.rule,
            scoring=self.scoring,
            accounts=self.meter.accounts({}, self.now) if self.discipline.half_life_ns else None,
        )
        begun = self.stopwatch() if self.stopwatch else 0.0
        policy = Policy(
            hold_after_ns=self.discipline.hold_after_ns,
            sharing=self.discipline.sharing,
            half_life_ns=self.discipline.half_life_ns,
            margin=ranks.margin,
            moves=ranks.moves,
            least_run_ns=ranks.least_run_ns,
            reclaim_waits=True,
            settle_ns=self.gangs.how.settle_ns if self.gangs else 0,
            start_small=self.gangs.how.start_small if self.gangs else False,
            reservations=self.discipline.reservations,
            window_ns=UNLIMITED,
        )
        decided = plan(snapshot, policy, self.now, self.workspace)
        self.elapsed_s += self.stopwatch() - begun if self.stopwatch else 0.0
        self.decisions += 1
        again = [self._preempt(int(running[int(name)])) for name in decided.preempted]
        self._resize(decided, running)
        self._move(decided, running)
        self._start(decided)
        keep = np.ones(len(self.waiting), np.bool_)
        keep[decided.admitted] = False
        self.waiting = np.concatenate((self.waiting[keep], np.array(again, np.int64)))

    def _rows(self) -> IntArray:
        """Of the jobs that run, in order of start."""
        return np.fromiter(self.leases, np.int64, len(self.leases))

    def _running(self, rows: IntArray, ranks: Ranks) -> RunningJobs | None:
        if not ranks.preempts and self.gangs is None:
            return None
        first, node, mask = self.placed.of(rows)
        none, all_ = np.zeros(len(rows), np.int64), np.ones(len(rows), np.int64)
        return RunningJobs(
            leases=range(len(rows)),  # type: ignore[arg-type]  # rows of this table: names would cost more
            teams=self.workload.teams,
            team=self.workload.team[rows],
            priority=self.workload.priority[rows],
            key=ranks.running if ranks.preempts else none,
            fixed=ranks.fixed if ranks.preempts else all_,
            ran_ns=self.seen.ran_ns(rows),
            ends_ns=self.seen.started_ns[rows] + self.left_ns[rows] if self.discipline.reservations else None,
            movable=ranks.movable if ranks.preempts else none,
            lost=none,
            classes=self.jobs.classes,
            first=first,
            task_node=node,
            task_mask=mask,
            task_class=np.repeat(self.jobs.klass[rows], np.diff(first)),
            **(self.gangs.columns(rows, self.now) if self.gangs else {}),
        )

    def _start(self, decided: Plan) -> None:
        bounds = np.searchsorted(decided.task_admission, np.arange(len(decided.admitted) + 1))
        for a, at in enumerate(decided.admitted.tolist()):
            row, span = int(self.waiting[at]), slice(int(bounds[a]), int(bounds[a + 1]))
            self._grant(
                row,
                decided.task_node[span],
                decided.task_devices[span],
                decided.task_gpu_mib[span],
            )
            if self.start_ns[row] < 0:
                self.start_ns[row] = self.now
            stint = self.now - int(self.seen.queued_ns[row])
            self.seen.waited_ns[row] += stint
            self.stint_ns[row] = max(self.stint_ns[row], stint)

    def _move(self, decided: Plan, running: IntArray) -> None:
        """Stop the moved jobs, all of them, then start each in its new place: a preemption without a wait."""
        held = [self.leases[int(running[int(name)])] for name in decided.moved]
        rows = [self._preempt(int(lease.job)) for lease in held]
        for row, lease, node, mask in zip(rows, held, decided.moved_node, decided.moved_devices, strict=True):
            mib = np.array([lease.tasks[0].gpu_mib], np.int64)
            self._grant(row, np.array([node]), np.array([mask]), mib)

    def _resize(self, decided: Plan, running: IntArray) -> None:
        none = np.zeros(0, np.int64)
        for name, kept in zip(decided.shrunk, decided.shrunk_tasks.tolist(), strict=True):
            self._resized(int(running[int(name)]), kept, none, none, none)
        for g, name in enumerate(decided.grown):
            row, new = int(running[int(name)]), decided.grown_of == g
            columns = decided.grown_node[new], decided.grown_devices[new], decided.grown_gpu_mib[new]
            self._resized(row, len(self.leases[row].tasks), *columns)

    def _resized(self, row: int, kept: int, node: IntArray, mask: IntArray, gpu_mib: IntArray) -> None:
        lease, gangs = self.leases[row], self.gangs
        if gangs is None:
            raise AssertionError(f"job {row} was resized in a simulation without elastic gangs")
        self.epoch += 1
        shape = self.jobs.classes[int(self.jobs.klass[row])].shape
        tasks = placements(shape, self.ledger.node_names, kept, node, mask, gpu_mib)
        step(self.ledger, LeaseResized(lease.lease, lease.epoch, self.epoch, kept, tasks))
        self.leases[row] = self.ledger.leases[lease.lease]
        self.meter.resized(lease.lease, self.leases[row].milli_gpu, self.now)
        _, had_node, had_mask = self.placed.of(np.array([row]))
        self.placed.drop(row)
        self.placed.put(row, np.append(had_node[:kept], node), np.append(had_mask[:kept], mask))
        gangs.resized(row, kept + len(node), self.now)
        heapq.heappush(
            self.finishing, (self.now + gangs.takes_ns(row, int(self.left_ns[row])), self.epoch, row)
        )

    def _grant(self, row: int, node: IntArray, mask: IntArray, gpu_mib: IntArray) -> None:
        self.epoch += 1
        shape = self.jobs.classes[int(self.jobs.klass[row])].shape
        tasks = placements(shape, self.ledger.node_names, 0, node, mask, gpu_mib)
        team = self.workload.teams[int(self.workload.team[row])]
        lease = Lease(lease=str(row), job=str(row), team=team, epoch=self.epoch, tasks=tasks)
        step(self.ledger, LeaseGranted(lease))
        self.leases[row] = lease
        if self.discipline.half_life_ns:
            self.meter.began(str(row), team, lease.milli_gpu, self.now)
        self.placed.put(row, node, mask)
        self.seen.started_ns[row] = self.now
        takes = int(self.left_ns[row])
        if self.gangs:
            self.gangs.begin(row, len(tasks), self.now)
            takes = self.gangs.takes_ns(row, takes)
        heapq.heappush(self.finishing, (self.now + takes, self.epoch, row))

    def _leave(self, row: int) -> int:
        """Release the lease; how long it ran, of an elastic gang as if at full size."""
        lease = self.leases.pop(row)
        self.placed.drop(row)
        step(self.ledger, LeaseReleased(lease.lease, lease.epoch))
        self.meter.ended(lease.lease, self.now)
        ran = self.now - int(self.seen.started_ns[row])
        if self.gangs:
            ran = self.gangs.useful_ns(row, self.now)
        self.seen.attained_ns[row] += ran
        self.seen.started_ns[row] = -1
        return ran

    def _end(self, row: int) -> None:
        self._leave(row)
        self.finish_ns[row] = self.now
        self.ended += 1
        self.seen.stopped.append((row, True))
        self.seen.ended_ns[row] = self.now

    def _preempt(self, row: int) -> int:
        ran = self._leave(row)
        self.left_ns[row] += self.lost_ns - ran
        self.seen.lost_ns[row] += self.lost_ns
        self.seen.stopped.append((row, False))
        self.preemptions[row] += 1
        self.seen.queued_ns[row] = self.now
        return row

    def result(self) -> JobsResult:
        return JobsResult(
            start_ns=self.start_ns,
            finish_ns=self.finish_ns,
            preemptions=self.preemptions,
            longest_stint_ns=self.stint_ns,
            lost_ns=self.seen.lost_ns,
            elapsed_s=self.elapsed_s,
            decisions=self.decisions,
            resizes=np.zeros(len(self.workload), np.int64) if self.gangs is None else self.gangs.resizes,
        )
