"""Speed with everything on: a tree of teams with quotas, borrowing and weights, gangs, fractions, priorities.

Placements are tasks that got their devices through the public `plan()`. Bulk: one decision over a queue of 130% of the
pool. Single arrivals: a pool that is nearly full, one job, one decision, with every running job a possible victim.
"""

from __future__ import annotations

import sys

import numpy as np
from _frame import Figure, main, percentile
from _planner import Fleet, Jobs, amount, classes, load, pool, took

from moorage.scheduling.ledger import Ledger
from moorage.scheduling.model import IntArray, TeamSpec
from moorage.scheduling.packing.named import scoring
from moorage.scheduling.packing.scorings import POTENTIAL

SIZES = (1213, 500, 1000, 2000, 4000, 12_500)
SHAPES = (250, 500, 1000, 2000, 8000)
"""Milli-GPU of one worker."""
KINDS = ((0, 1), (1, 1), (2, 1), (2, 2), (2, 4), (3, 4), (2, 8), (2, 16), (4, 1), (4, 2))
"""(row of SHAPES, workers)"""
OFTEN = (0.2, 0.15, 0.3, 0.1, 0.08, 0.03, 0.05, 0.02, 0.05, 0.02)
DEPARTMENTS, TEAMS = 4, 8


def tree(gpus: int) -> list[TeamSpec]:
    """Four departments of eight teams. Quotas cover 70% of the pool; the rest, and what is idle, is borrowed."""
    teams = []
    each = 0.7 * gpus / DEPARTMENTS / TEAMS
    for d in range(DEPARTMENTS):
        teams.append(
            TeamSpec(name=f"dept-{d}", quota=amount(0.7 * gpus / DEPARTMENTS), limit=amount(gpus / 2))
        )
        for t in range(TEAMS):
            teams.append(
                TeamSpec(
                    name=f"team-{d}-{t}",
                    parent=f"dept-{d}",
                    quota=amount(int(each)),
                    borrow=amount(3 * each),
                    lend=amount(each),
                    weight=1 + t % 4,
                )
            )
    return teams


def demand(gpus: float, seed: int) -> Jobs:
    """Jobs drawn until they ask for so many GPUs."""
    draw = np.random.default_rng(seed)
    kinds = np.array(KINDS, np.int64)
    mean = float((np.array(OFTEN) * np.array(SHAPES)[kinds[:, 0]] * kinds[:, 1]).sum() / 1000)
    count = round(gpus / mean)
    kind = draw.choice(len(KINDS), count, p=OFTEN)
    return Jobs(
        teams=tuple(f"team-{d}-{t}" for d in range(DEPARTMENTS) for t in range(TEAMS)),
        classes=classes(*SHAPES),
        team=draw.integers(0, DEPARTMENTS * TEAMS, count),
        klass=kinds[kind, 0],
        workers=kinds[kind, 1],
        priority=draw.choice(np.array([0, 0, 0, 1]), count),
    )


def moored(nodes: int, jobs: Jobs) -> Fleet:
    """An idle pool that places by the prices of what a node can still hold, made for these jobs: as the packing
    figures do. The tables are made once, outside the decisions."""
    ledger = pool(nodes, tree(8 * nodes))
    count = np.bincount(jobs.klass, weights=jobs.workers, minlength=len(jobs.classes)).astype(np.int64)
    return Fleet(ledger, jobs, scoring(POTENTIAL, ledger, jobs.classes, count))


def arrive(count: int) -> IntArray:
    """One a second."""
    return np.arange(count, dtype=np.int64) * 10**9


def bulk(nodes: int, rounds: int) -> tuple[int, int, float, float]:
    """(tasks placed, jobs started, wall s, processor s) of one decision: the least of some rounds, after a warm one."""
    fleet = moored(nodes, demand(1.3 * 8 * nodes, nodes))
    rows = np.arange(len(fleet.jobs))
    queue, made = fleet.jobs.queue(rows, arrive(len(rows))), []
    times = [
        took(lambda: made.append(fleet.decide(queue, len(rows) * 10**9, None))) for _ in range(rounds + 1)
    ]
    wall, cpu = (min(column) for column in zip(*times[1:], strict=True))
    return len(made[0].task_node), len(made[0].admitted), wall, cpu


def singles(nodes: int, count: int) -> tuple[list[float], list[float], float]:
    """(wall ms, processor ms) of each decision over one arrival, and the percent of the pool in use."""
    filled, few = demand(1.1 * 8 * nodes, nodes), demand(4.0 * count, nodes + 1)
    few_rows = np.arange(len(few))[:count]
    jobs = Jobs(
        teams=filled.teams,
        classes=filled.classes,
        team=np.concatenate((filled.team, few.team[few_rows])),
        klass=np.concatenate((filled.klass, few.klass[few_rows])),
        workers=np.concatenate((filled.workers, few.workers[few_rows])),
        priority=np.concatenate((filled.priority, few.priority[few_rows])),
    )
    fleet, draw = moored(nodes, jobs), np.random.default_rng(1)
    rows, submitted = np.arange(len(filled)), arrive(len(jobs))
    queue = jobs.queue(rows, submitted[rows])
    fleet.apply(fleet.decide(queue, int(submitted[-1]), None), rows)
    wall, cpu, running = [], [], fleet.running()
    for i in range(len(few_rows)):
        row = np.array([len(filled) + i])
        queue, made, now = jobs.queue(row, submitted[row]), [], int(submitted[row[0]])
        seconds = took(
            lambda queue=queue, made=made, running=running, now=now: made.append(
                fleet.decide(queue, now, running)
            )
        )
        wall.append(seconds[0] * 1e3)
        cpu.append(seconds[1] * 1e3)
        fleet.apply(made[0], row)
        if i % 2:  # as many end as come
            fleet.release(int(draw.choice(np.fromiter(fleet.leases, np.int64))))
        running = fleet.running()
    return wall, cpu, 100 * in_use(fleet.ledger)


def in_use(ledger: Ledger) -> float:
    """Of the GPUs."""
    return float(ledger.used[:, 0].sum()) / float(ledger.capacity()[0])


def measure(quick: bool) -> list[Figure]:
    sizes, rounds, count = ((100, 50, 200), 1, 50) if quick else (SIZES, 3, 1000)
    singles(16, 20)  # numba loads what it compiled
    figures, times = [], {}
    for nodes in sizes:
        tasks, jobs, wall, cpu = bulk(nodes, rounds)
        one, one_cpu, full = singles(nodes, count if nodes == sizes[0] else max(20, count // 10))
        times[nodes] = cpu / tasks, percentile(one_cpu, 50)
        first = nodes == sizes[0]
        about = f"{nodes:,} nodes x 8, {DEPARTMENTS * TEAMS} teams"
        note = f"{tasks / cpu:,.0f}/s of processor time; {jobs / wall:,.0f} jobs/s; {load()}"
        print(f"{about}: {tasks / wall:,.0f} placements/s wall, {note}", file=sys.stderr)
        figures.append(
            Figure(
                metric=f"bulk, {about}: placements/s",
                ours=tasks / wall,
                better="higher",
                target=20_000 if first else None,
                peer_name=note,
            )
        )
        for percent in (50, 99) if first else (50,):
            figures.append(
                Figure(
                    metric=f"one arrival, {about}: p{percent} ms",
                    ours=percentile(one, percent),
                    better="lower",
                    target=5.0 if percent == 99 else None,
                    peer_name=f"{percentile(one_cpu, percent):.2f} ms of processor; {full:.0f}% in use; {load()}",
                )
            )
    small, large = min(sizes), max(sizes)
    for i, what in enumerate(("per placement in bulk", "of one arrival")):
        more = times[large][i] / times[small][i]
        figures.append(
            Figure(
                metric=f"processor time {what}: {large:,} nodes over {small:,}",
                ours=more,
                better="lower",
                target=float(large / small),
                peer_name=f"linear would be {large / small:g}",
            )
        )
    return figures


if __name__ == "__main__":
    raise SystemExit(main(measure, "speed with quotas, fairness, gangs and preemption on"))
