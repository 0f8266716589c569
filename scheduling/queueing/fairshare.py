"""Shares between teams.

`Shadow`: each team beside a partition of its own, as big as its guarantee, that it would otherwise have had. The
partition is a fluid: it works at its full size as long as it has work. `lead` is the GPU-time the team got here beyond
what its partition would have done by now. Who is behind is owed its guarantee at once; who is ahead (it used what
others lent) competes by index alone until its partition would have done the same work. So lending costs a team
nothing, and borrowing is never punished beyond what was borrowed.

Rank by attained service where shares are on: a team's order then depends on its own jobs alone, and is that of its
partition. What is learned from all teams is the better index, but it shuffles a team's long jobs, and a team whose
mean hangs on twenty of them can lose a tenth by that alone.
The idea is that of fair queueing against a virtual processor-sharing system (Demers, Keshav and Shenker, 1989;
fair sojourn: Friedman and Henderson, SIGMETRICS 2003), here without knowing how long jobs are.

`shares`: dominant resource fairness by progressive filling over a tree of teams (Ghodsi et al., NSDI 2011).
`decayed`: usage that is forgotten by half-lives.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moorage.scheduling.queueing.jit import compiled

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

HOUR = 3600
KEEP = 6 * HOUR
"""A team that got this many seconds of its guarantee ahead loses the claim it had; below, it keeps it (hysteresis)."""
FORGET = 192 * HOUR
"""Nobody is further behind than this: a team whose gangs do not fill its guarantee is not owed the holes."""


class Shadow(NamedTuple):
    """[T] per team; part of what a snapshot remembers. Mutated in place by `advance`."""

    lead: I64
    """Milli-GPU seconds ahead of the partition; negative = behind."""
    claims: Bool
    """The team claims its guarantee."""


def shadow(teams: int) -> Shadow:
    """Nobody ahead, nobody behind."""
    return Shadow(np.zeros(teams, np.int64), np.ones(teams, np.bool_))


@compiled
def advance(state: Shadow, seconds: int, used: I64, asked: I64, guarantee: I64) -> None:
    """`seconds` went by in which team t held `used[t]` milli-GPU and asked for `asked[t]` (running and waiting jobs
    together). The partition worked at full size if it still had work (the team is ahead of it), else as asked."""
    for team in range(len(used)):
        size, lead, left = guarantee[team], state.lead[team], seconds
        if lead > 0 and used[team] < size:
            # The partition works at full size on what was done here already, until it is level.
            level = -(-lead // (size - used[team]))
            left = max(seconds - level, 0)
            lead = max(lead - (seconds - left) * (size - used[team]), 0)
            virtual = min(size, asked[team])
        else:
            virtual = size if lead > 0 else min(size, asked[team])
        lead += left * (used[team] - virtual)
        state.lead[team] = max(lead, -FORGET * size)
        if state.lead[team] <= 0:
            state.claims[team] = True
        elif state.lead[team] > KEEP * size:
            state.claims[team] = False


@compiled
def claims(state: Shadow, guarantee: I64) -> I64:
    """[T] milli-GPU each team may claim now, before anything is lent: its guarantee, or 0 while it is ahead.

    Who is behind may not claim more than its guarantee: measured, paying back in GPUs takes them from teams that
    are owed theirs, and small teams then wait longer than they would alone.
    """
    return np.where(state.claims, guarantee, 0)


@compiled
def entitled(order: I64, team: I64, milli: I64, claim: I64) -> Bool:
    """[R] rows that fit in their team's claim when each team serves its own in `order` (rows, best first; running
    and waiting together). A gang that does not fit is passed."""
    out = np.zeros(len(team), np.bool_)
    held = np.zeros(len(claim), np.int64)
    for row in order:
        if held[team[row]] + milli[row] <= claim[team[row]]:
            held[team[row]] += milli[row]
            out[row] = True
    return out


OWED = -(2**50)
"""Keys of entitled rows begin here: below every key of an index, above those of `oldest`."""


def keys(key: I64, inside: Bool) -> I64:
    """[R] keys with entitled rows first, by the index among themselves; the rest by the index.

    Guarantees may add up to more than the pool. Then the index decides between teams too: putting the team that is
    further behind first was measured, and small teams, which are never behind, waited for the large ones.
    """
    return np.where(inside, OWED + key, key)


def decayed(usage: int, elapsed_ns: int, half_life_ns: int) -> int:
    """Usage after `elapsed_ns` of forgetting, rounded down; linear within a half-life, so that it is exact in integers
    and never grows. Raises ValueError for a half-life that is not positive or a time that runs backwards."""
    if half_life_ns <= 0 or elapsed_ns < 0:
        raise ValueError(f"usage cannot decay over {elapsed_ns} ns with a half-life of {half_life_ns} ns")
    halvings, rest = divmod(elapsed_ns, half_life_ns)
    usage >>= min(halvings, 64)
    return usage * (2 * half_life_ns - rest) // (2 * half_life_ns)


def shares(parent: I64, weight: I64, demand: I64, capacity: I64) -> list[tuple[int, ...]]:
    """[T][R] what each team gets of each resource by DRF, rounded down, for its own demand and all below it.

    parent: [T], -1 at the root, parents before children. weight: [T] > 0. demand: [T, R] of the team's own jobs.
    capacity: [R]. All grow in dominant share, each along its own demand, until it has what it asked for or a resource
    it needs is gone. How fast: at each level of the tree by weight among those who still grow, a team's own jobs
    beside its children with the team's weight. So what a team does not ask for goes to its nearest kin first.
    """
    teams = range(len(parent))
    want = [[Fraction(int(x)) for x in row] for row in demand]
    full = [Fraction(int(x)) for x in capacity]
    dominant = [
        max((d / f for d, f in zip(row, full, strict=True) if f), default=Fraction(0)) for row in want
    ]
    part, left = [Fraction(0) for _ in teams], list(full)
    growing = {t for t in teams if dominant[t] > 0}
    while growing := {
        t for t in growing if part[t] < 1 and all(have or not d for have, d in _pairs(left, want[t]))
    }:
        speed = {t: pace / dominant[t] for t, pace in _paces(parent, weight, growing).items()}
        drain = [sum((speed[t] * want[t][r] for t in growing), Fraction(0)) for r in range(len(full))]
        ends = [(1 - part[t]) / speed[t] for t in growing]
        step = min(ends + [have / rate for have, rate in _pairs(left, drain) if rate > 0])
        for t in growing:
            part[t] += speed[t] * step
        left = [have - rate * step for have, rate in _pairs(left, drain)]
    got = [[part[t] * d for d in want[t]] for t in teams]
    for t in reversed(teams):
        if parent[t] >= 0:
            got[parent[t]] = [a + b for a, b in _pairs(got[parent[t]], got[t])]
    return [tuple(int(x) for x in row) for row in got]


def _paces(parent: I64, weight: I64, growing: set[int]) -> dict[int, Fraction]:
    """How fast the own jobs of each growing team grow: its part among its kin, times its parent's part, to the root."""
    alive = set(growing)
    for t in range(len(parent) - 1, -1, -1):
        if t in alive and parent[t] >= 0:
            alive.add(int(parent[t]))
    among: dict[int, int] = {t: int(weight[t]) for t in growing}
    for t in alive:
        among[int(parent[t])] = among.get(int(parent[t]), 0) + int(weight[t])
    pace: dict[int, Fraction] = {-1: Fraction(1)}
    for t in sorted(alive):
        pace[t] = pace[int(parent[t])] * int(weight[t]) / among[int(parent[t])]
    return {t: pace[t] * int(weight[t]) / among[t] for t in growing}


def _pairs(a: list[Fraction], b: list[Fraction]) -> list[tuple[Fraction, Fraction]]:
    return list(zip(a, b, strict=True))
