"""The sets that the peers publish, through `plan()` and `step()`: KAI's scale tests, Kueue's performance set.

KAI-Scheduler: 500 nodes of 8 GPUs; the time of one decision. Kueue: the queues and workloads of its own generator files
(kubernetes-sigs/kueue, test/performance/scheduler/configs), replayed on a clock that advances by the measured processor
time of each decision, `step()` included: what falls due while one is made is seen by the next. A decision is one thread
without I/O, so that is its time on an idle core; the wall time is printed beside it. Theirs go through an API server,
ours do not.
"""

from __future__ import annotations

import heapq
import itertools
import math
import statistics
import sys
import time
from dataclasses import dataclass, replace

import numpy as np
from _frame import Figure, main
from _planner import SECOND, Fleet, Jobs, amount, classes, load, pool, took

from moorage.scheduling.model import IntArray, Policy, TeamSpec
from moorage.scheduling.queue import Queue
from moorage.scheduling.running import RunningJobs

_ALONE = "no peer can run here"


def note(text: str) -> None:
    """Progress: standard error, so that --json stays clean."""
    print(f"{text}; {load()}", file=sys.stderr)


# --- KAI ---


def table(*groups: tuple[int, int, int, int], teams: tuple[str, ...]) -> Jobs:
    """Jobs in groups of (count, team, class, workers); the classes are one GPU and eight."""
    count, team, klass, workers = (np.array(column, np.int64) for column in zip(*groups, strict=True))
    return Jobs(
        teams=teams,
        classes=classes(1000, 8000),
        team=np.repeat(team, count),
        klass=np.repeat(klass, count),
        workers=np.repeat(workers, count),
        priority=np.zeros(int(count.sum()), np.int64),
    )


def kai(nodes: int, rounds: int) -> list[tuple[str, float, float, float]]:
    """(what, median wall s, median processor s, goal s) of one `plan()`."""
    gpus = 8 * nodes
    teams = [TeamSpec(name=name, quota=amount(gpus / 2)) for name in ("lender", "borrower")]
    half, few = gpus // 2, max(1, nodes // 64)
    groups = ((gpus, 1, 0, 1), (1, 0, 0, 1), (half, 0, 0, 1), (1, 0, 0, half), (1, 0, 1, few), (1, 1, 0, 16))
    jobs = table(*groups, teams=tuple(team.name for team in teams))
    edge = np.cumsum([0, *(group[0] for group in groups)])
    many, one, singles, gang, nodewise, over = (np.arange(a, b) for a, b in itertools.pairwise(edge))
    empty = Fleet(pool(nodes, teams), jobs)
    full = Fleet(pool(nodes, teams), jobs)
    full.apply(full.decide(jobs.queue(many, many), 0, None), many)
    if len(full.leases) != gpus:
        raise RuntimeError(f"the pool was to be full: {len(full.leases)} of {gpus} started")
    everyone = full.running()
    # one job on each node stays: no node can be emptied, which is known only after trying
    node = np.array([full.tasks[row][0][0] for row in full.rows.tolist()], np.int64)
    pinned = np.zeros(len(node), np.int64)
    pinned[np.unique(node, return_index=True)[1]] = 1
    some = full.running(lambda _: pinned)
    runs = (
        (f"fill {gpus:,} one-GPU jobs", empty, many, None, 0.5, gpus, 0),
        ("reclaim 1 GPU", full, one, everyone, 0.02, 1, 1),
        (f"reclaim {half:,} GPUs, one-GPU jobs", full, singles, everyone, 1.0, half, half),
        (f"reclaim {half:,} GPUs, one gang", full, gang, everyone, 1.0, 1, half),
        ("unschedulable, over quota", full, over, everyone, 0.2, 0, 0),
        ("unschedulable, all victims tried in vain", full, nodewise, some, 0.2, 0, 0),
    )
    found = []
    for what, fleet, rows, running, goal, starts, leaves in runs:
        times = []
        for _ in range(rounds + 1):  # the first one is not counted
            decided = []

            def work(
                fleet: Fleet = fleet, rows: IntArray = rows, running: object = running, out: list = decided
            ) -> None:
                made = fleet.decide(jobs.queue(rows, np.zeros(len(rows), np.int64)), 0, running)
                out.append((made, made.reasons))

            times.append(took(work))
            made = decided[0][0]
            if (len(made.admitted), len(made.preempted)) != (starts, leaves):
                raise RuntimeError(
                    f"{what}: {len(made.admitted)} started and {len(made.preempted)} left, not {starts} and {leaves}"
                )
        wall, cpu = (statistics.median(column) for column in zip(*times[1:], strict=True))
        note(f"KAI, {nodes} nodes, {what}: {wall * 1e3:.1f} ms wall, {cpu * 1e3:.1f} ms processor")
        found.append((what, wall, cpu, goal))
    return found


def consolidation(nodes: int, rounds: int) -> tuple[str, float, float, float]:
    """The same of KAI's consolidation test: of a pool full of one-GPU jobs, five have left on each node; then as many
    gangs of ten six-GPU workers as the free GPUs are enough for. A worker fits nowhere until a job has moved."""
    gone, size, workers = 5, 6, 10
    gangs = gone * nodes // (size * workers)
    count = np.array([8 * nodes, gangs])
    jobs = Jobs(
        teams=("ops",),
        classes=classes(1000, 1000 * size),
        team=np.zeros(int(count.sum()), np.int64),
        klass=np.repeat([0, 1], count),
        workers=np.repeat([1, workers], count),
        priority=np.zeros(int(count.sum()), np.int64),
    )
    singles, wanted = np.arange(count[0]), np.arange(count[0], count.sum())
    policy = Policy(moves=8 * nodes, move_for_all=True)
    times = []
    for _ in range(rounds + 1):  # the first one is not counted
        fleet = Fleet(pool(nodes, [TeamSpec(name="ops")]), jobs)
        fleet.apply(fleet.decide(jobs.queue(singles, singles), 0, None), singles)
        left = np.zeros(nodes, np.int64)
        for row in singles.tolist():
            node = int(fleet.tasks[row][0][0])
            if left[node] < gone:
                left[node] += 1
                fleet.release(row)
        running = fleet.running()
        running = replace(
            running, movable=np.ones(len(running), np.int64), fixed=np.ones(len(running), np.int64)
        )
        queue = jobs.queue(wanted, np.zeros(gangs, np.int64))
        decided = []

        def work(
            fleet: Fleet = fleet, out: list = decided, running: RunningJobs = running, queue: Queue = queue
        ) -> None:
            made = fleet.decide(queue, 0, running, policy)
            out.append((made, made.reasons))

        times.append(took(work))
        made = decided[0][0]
        if len(made.admitted) != gangs:
            raise RuntimeError(f"consolidation: {len(made.admitted)} of {gangs} gangs started")
        fleet.apply(made, wanted)  # the ledger checks every move and start in turn
    wall, cpu = (statistics.median(column) for column in zip(*times[1:], strict=True))
    what = f"consolidate for {gangs * workers} pods of {size} GPUs, {len(made.moved)} jobs move"
    note(f"KAI, {nodes} nodes, {what}: {wall * 1e3:.1f} ms wall, {cpu * 1e3:.1f} ms processor")
    return what, wall, cpu, 2.0


# --- Kueue ---


@dataclass(frozen=True, slots=True)
class Kind:
    """One class of workloads, `count` of them in every queue, one each `every_ms`."""

    count: int
    every_ms: int
    runtime_ms: int
    priority: int
    units: int


@dataclass(frozen=True, slots=True)
class KueueSet:
    """A generator file: cohorts of queues with a quota of `QUOTA` units each, which may borrow up to `BORROW` more."""

    name: str
    cohorts: int
    queues: int
    kinds: tuple[Kind, ...]
    published_s: float
    published_usage: float
    """Percent of the quotas in use, as their own CI measured it."""
    goal_s: float


QUOTA, BORROW = 20, 100
BASELINE = KueueSet(
    "baseline",
    5,
    6,
    (Kind(350, 100, 200, 50, 1), Kind(100, 500, 500, 100, 5), Kind(50, 1200, 1000, 200, 20)),
    351.1,
    58.7,
    80,
)
LARGE = KueueSet(
    "large-scale",
    10,
    100,
    (Kind(35, 60, 150, 50, 1), Kind(11, 300, 350, 100, 5), Kind(4, 700, 700, 200, 20)),
    1179.4,
    38.64,
    120,
)


@dataclass(slots=True)
class Replay:
    """What a replay came to."""

    makespan_s: float = 0.0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    decisions: int = 0
    preempted: int = 0
    held: float = 0.0
    """Unit-seconds, those of runs that were cut short included."""
    lost: float = 0.0
    """Unit-seconds of those."""


def kueue_floor_s(given: KueueSet) -> float:
    """The work of a queue over its quota, or until its last workload could end if that is later."""
    work = sum(k.count * k.units * k.runtime_ms for k in given.kinds) / QUOTA / 1e3
    return max(work, *((k.every_ms * (k.count - 1) + k.runtime_ms) / 1e3 for k in given.kinds))


def kueue_pool(given: KueueSet) -> tuple[Fleet, IntArray, IntArray]:
    """The idle pool, and per workload the ns of its creation and its runtime. A unit is one GPU, a workload of n units
    a gang of n: they have no nodes to fill, and so nothing may be lost to how things are packed."""
    teams, count = [], given.cohorts * given.queues
    for c in range(given.cohorts):
        whole = amount(given.queues * QUOTA)
        teams.append(TeamSpec(name=f"cohort-{c}", quota=whole, limit=whole))
        for q in range(given.queues):
            name = f"cq-{c}-{q}"
            teams.append(
                TeamSpec(name=name, parent=f"cohort-{c}", quota=amount(QUOTA), borrow=amount(BORROW))
            )
    queues = tuple(team.name for team in teams if team.parent)
    columns = [
        (q, kind.units, kind.priority, i * kind.every_ms * 10**6, kind.runtime_ms * 10**6)
        for kind in given.kinds
        for i in range(kind.count)
        for q in range(count)
    ]
    columns.sort(key=lambda row: row[3])
    team, units, priority, created, runtime = (np.array(c, np.int64) for c in zip(*columns, strict=True))
    jobs = Jobs(
        teams=queues,
        classes=classes(1000),
        team=team,
        klass=np.zeros(len(team), np.int64),
        workers=units,
        priority=priority,
    )
    return Fleet(pool(-(-count * QUOTA // 8), teams), jobs), created, runtime


def kueue(given: KueueSet, *, by_wall: bool = False) -> Replay:
    """Replay on a clock that the measured decisions push on, by their processor time or by the wall's."""
    fleet, created, runtime = kueue_pool(given)
    found, units = Replay(), fleet.jobs.workers
    waiting = np.zeros(0, np.int64)
    finishing: list[tuple[int, int]] = []
    started: dict[int, int] = {}
    now = arrived = ended = 0
    said = time.monotonic()
    while ended < len(created):
        while finishing and started.get(finishing[0][1]) != finishing[0][0] - int(runtime[finishing[0][1]]):
            heapq.heappop(finishing)  # it was pushed out since
        if arrived < len(created) and not (finishing and finishing[0][0] <= created[arrived]):
            now = max(now, int(created[arrived]))
        elif finishing:
            now = max(now, finishing[0][0])
        else:
            raise RuntimeError(f"{len(waiting)} workloads wait and nothing runs")
        upto = int(np.searchsorted(created, now, "right"))
        waiting = np.concatenate((waiting, np.arange(arrived, upto)))
        arrived = upto
        done = []
        while finishing and finishing[0][0] <= now:
            at, row = heapq.heappop(finishing)
            if started.get(row) == at - int(runtime[row]):
                del started[row]
                done.append(row)
        ended += len(done)
        found.held += float((units[done] * runtime[done]).sum()) / SECOND
        wall, cpu = time.perf_counter(), time.process_time()
        for row in done:
            fleet.release(row)
        before, out = waiting, []
        if len(waiting):
            decided = fleet.decide(fleet.jobs.queue(waiting, created[waiting]), now, fleet.running())
            out = fleet.apply(decided, waiting)
            keep = np.ones(len(waiting), np.bool_)
            keep[decided.admitted] = False
            waiting = np.concatenate((waiting[keep], np.array(out, np.int64)))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        found.cpu_s += cpu
        found.wall_s += wall
        found.decisions += 1
        found.preempted += len(out)
        now += math.ceil((wall if by_wall else cpu) * SECOND)
        for row in out:
            cut = int(units[row]) * max(0, now - started.pop(row)) / SECOND
            found.held += cut
            found.lost += cut
        if len(before):
            for at in decided.admitted.tolist():
                row = int(before[at])
                started[row] = now
                heapq.heappush(finishing, (now + int(runtime[row]), row))
        if time.monotonic() - said > 10:
            said = time.monotonic()
            note(
                f"Kueue {given.name}: {ended:,} of {len(created):,} ended after {now / SECOND:.1f} s, "
                f"{len(waiting):,} wait, {len(started):,} run, {found.decisions:,} decisions took {found.cpu_s:.1f} s"
            )
    found.makespan_s = now / SECOND
    return found


def kueue_figures(given: KueueSet) -> list[Figure]:
    got, walled = kueue(given), kueue(given, by_wall=True)
    queues = given.cohorts * given.queues
    workloads = queues * sum(kind.count for kind in given.kinds)
    usage, lost = (100 * x / (queues * QUOTA * got.makespan_s) for x in (got.held, got.lost))
    theirs = f"Kueue's own CI, published, API server included; floor {kueue_floor_s(given):.0f} s; {load()}"
    what = f"Kueue {given.name}, {queues:,} queues, {workloads:,} workloads"
    note(f"{what}: {got}")
    return [
        Figure(
            metric=f"{what}: makespan s",
            ours=got.makespan_s,
            peer=given.published_s,
            peer_name=theirs,
            better="lower",
            target=None if math.isnan(given.published_s) else round(given.published_s / given.goal_s, 2),
        ),
        Figure(
            metric=f"{what}: makespan s, decisions by wall clock",
            ours=walled.makespan_s,
            peer=given.published_s,
            peer_name=f"on this machine as busy as it is; {load()}",
            better="lower",
        ),
        Figure(
            metric=f"{what}: quota in use %",
            ours=usage,
            peer=given.published_usage,
            peer_name=f"Kueue's own CI, published; ours with {lost:.1f} points in runs that were cut short",
            better="higher",
        ),
        Figure(
            metric=f"{what}: processor s of {got.decisions:,} decisions, step() included",
            ours=got.cpu_s,
            better="lower",
            peer_name=f"{got.wall_s:.1f} s of wall; {got.preempted:,} preempted",
        ),
    ]


def measure(quick: bool) -> list[Figure]:
    nodes, rounds = (16, 1) if quick else (500, 5)
    figures = [
        Figure(
            metric=f"KAI at {nodes} x 8, {what}: ms",
            ours=wall * 1e3,
            better="lower",
            target=goal * 1e3,
            peer_name=f"{_ALONE}; {cpu * 1e3:.1f} ms of processor, {load()}",
        )
        for what, wall, cpu, goal in (*kai(nodes, rounds), consolidation(nodes, rounds))
    ]
    sets = (BASELINE, LARGE)
    if quick:
        small = tuple(replace(kind, count=max(1, kind.count // 25)) for kind in BASELINE.kinds)
        sets = (KueueSet("in little", 2, 3, small, math.nan, math.nan, math.nan),)
    for given in sets:
        figures += kueue_figures(given)
    return figures


if __name__ == "__main__":
    raise SystemExit(main(measure, "the sets that the peers publish, through plan() and step()"))
