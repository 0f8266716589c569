"""Fairness: eight equal teams that always have more waiting than the pool holds, for an hour of simulated time.

Their jobs differ: gangs of 1 to 8 GPUs, of 1 to 20 minutes, team by team. Jain's index (Jain, Chiu, Hawe, 1984) of the
GPU-time the teams got for their weight, over the hour and over each five minutes; the GPU-time of runs that were cut
short is lost.
"""

from __future__ import annotations

import heapq
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from _frame import Figure, main
from _planner import SECOND, Fleet, Jobs, amount, classes, load, pool

from moorage.scheduling.model import IntArray, TeamSpec

TEAMS = 8
HOUR = 3600 * SECOND
WINDOW = 300 * SECOND
BACKLOG = 80
"""Jobs that each team keeps waiting: more than its share of the pool could start at once."""


@dataclass(slots=True)
class Hour:
    got: IntArray
    """[windows, TEAMS] milli-GPU ns"""
    lost: int = 0
    preempted: int = 0
    decisions: int = 0
    runs: dict[int, int] = field(default_factory=dict)
    """When each running job started."""

    def book(self, team: int, milli: int, begin: int, end: int) -> None:
        """Into each window its part."""
        for w in range(begin // WINDOW, min(-(-end // WINDOW), len(self.got))):
            part = min(end, (w + 1) * WINDOW) - max(begin, w * WINDOW)
            self.got[w, team] += milli * part


def jain(got: npt.NDArray[Any]) -> float:
    """1 when all got the same, 1/n when one got all."""
    x = got.astype(np.float64)
    return float(x.sum() ** 2 / (len(x) * (x * x).sum()))


def saturating(per_team: int, seed: int, *, alike: bool) -> tuple[Jobs, IntArray]:
    """(jobs, runtimes in ns); team t's are row t, t + 8, ...: the sizes and lengths that team t likes."""
    draw = np.random.default_rng(seed)
    team = np.tile(np.arange(TEAMS), per_team)
    gangs = draw.integers(0, 4, len(team)) if alike else np.minimum(3, team // 2)
    longest = np.full(len(team), 10) if alike else np.array([2, 5, 10, 20, 2, 5, 10, 20])[team]
    runtime = draw.integers(60 * SECOND, longest * 60 * SECOND)
    jobs = Jobs(
        teams=tuple(f"team-{t}" for t in range(TEAMS)),
        classes=classes(1000),
        team=team,
        klass=np.zeros(len(team), np.int64),
        workers=2**gangs,
        priority=np.zeros(len(team), np.int64),
    )
    return jobs, runtime.astype(np.int64)


def simulate(fleet: Fleet, runtime: IntArray, until_ns: int, *, alone_ns: int) -> Hour:
    """Events over the public plan() and step(). The last team has the pool to itself for `alone_ns` before the others
    come; what is booked begins with them."""
    until_ns += alone_ns
    jobs, hour = fleet.jobs, Hour(got=np.zeros((until_ns // WINDOW, TEAMS), np.int64))
    milli = jobs.milli()
    queues = [list(np.flatnonzero(jobs.team == t)[::-1]) for t in range(TEAMS)]
    finishing: list[tuple[int, int, int]] = []
    waiting, now = np.zeros(0, np.int64), 0

    def decide(rows: IntArray) -> IntArray:
        """Those that still wait."""
        decided = fleet.decide(jobs.queue(rows, rows), now, fleet.running())
        hour.decisions += 1
        out = fleet.apply(decided, rows)
        for row in out:
            begun = hour.runs.pop(row)
            hour.book(int(jobs.team[row]), int(milli[row]), begun, now)
            hour.lost += int(milli[row]) * (now - begun)
            hour.preempted += 1
        for row in rows[decided.admitted].tolist():
            hour.runs[row] = now
            heapq.heappush(finishing, (now + int(runtime[row]), now, row))
        keep = np.ones(len(rows), np.bool_)
        keep[decided.admitted] = False
        return np.concatenate((rows[keep], np.array(out, np.int64)))

    while now < until_ns:
        here, counts = range(TEAMS), np.bincount(jobs.team[waiting], minlength=TEAMS)
        if now < alone_ns:
            here = range(TEAMS - 1, TEAMS)
        more = [queues[t].pop() for t in here for _ in range(BACKLOG - int(counts[t]))]
        waiting = decide(np.sort(np.concatenate((waiting, np.array(more, np.int64)))))
        ends = finishing[0][0]
        now = alone_ns if now < alone_ns < ends else ends
        while finishing and finishing[0][0] <= now:
            _, begun, row = heapq.heappop(finishing)
            if hour.runs.get(row) == begun:  # else it was pushed out since
                del hour.runs[row]
                fleet.release(row)
                hour.book(int(jobs.team[row]), int(milli[row]), begun, min(now, until_ns))
    for row, begun in hour.runs.items():
        hour.book(int(jobs.team[row]), int(milli[row]), begun, until_ns)
    hour.got = hour.got[alone_ns // WINDOW :]
    return hour


def measure(quick: bool) -> list[Figure]:
    nodes, until = (9, HOUR // 6) if quick else (60, HOUR)  # no whole number of the largest gangs to a team
    gpus = 8 * nodes
    owned = [TeamSpec(name=f"team-{t}", quota=amount(gpus / TEAMS)) for t in range(TEAMS)]
    lent = [
        TeamSpec(name="lender", quota=amount(gpus)),
        *(TeamSpec(name=f"team-{t}") for t in range(TEAMS)),
    ]
    none = lent[1:]
    weighted = [TeamSpec(name=f"team-{t}", weight=1 + t % 4) for t in range(TEAMS)]
    worlds = (
        ("equal quotas, equal jobs", owned, True, 0),
        ("equal quotas, unequal jobs", owned, False, 0),
        ("all borrow, equal jobs", lent, True, 0),
        ("all borrow, unequal jobs", lent, False, 0),
        ("no quota anywhere, equal jobs", none, True, 0),
        ("no quota anywhere, unequal jobs", none, False, 0),
        ("no quota, weights 1 to 4, unequal jobs", weighted, False, 0),
        ("equal quotas, unequal jobs, one team had it all for 10 minutes", owned, False, 2 * WINDOW),
    )
    figures = []
    for what, teams, alike, alone in worlds:
        per_team = 6 * gpus * (until // (60 * SECOND)) // 60 + 8 * gpus
        jobs, runtime = saturating(per_team, 7, alike=alike)
        hour = simulate(Fleet(pool(nodes, teams), jobs), runtime, until, alone_ns=alone)
        weights = np.array([team.weight for team in teams if team.name != "lender"])
        used = hour.got.sum() / (gpus * 1000 * until)
        about = f"{100 * used:.1f}% of the pool in use; {hour.decisions:,} decisions; {load()}"
        print(f"{what}: {hour.preempted} preempted, {about}", file=sys.stderr)
        lost = 100 * hour.lost / float(hour.got.sum())
        minutes = until // (60 * SECOND)
        figures += [
            Figure(
                metric=f"{what}: Jain of GPU-time over {minutes} minutes",
                ours=jain(hour.got.sum(axis=0) / weights),
                better="higher",
                target=0.99,
                peer_name=about,
            ),
            Figure(
                metric=f"{what}: Jain, the worst five minutes",
                ours=min(jain(window / weights) for window in hour.got),
                better="higher",
                target=0.95,
            ),
            Figure(
                metric=f"{what}: GPU-time lost to preemption %",
                ours=lost,
                better="lower",
                target=None if alone else 1.0,
                peer_name=f"{hour.preempted} preempted",
            ),
        ]
    return figures


if __name__ == "__main__":
    raise SystemExit(main(measure, "fairness: eight saturated equal teams"))
