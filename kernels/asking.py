"""Whom to ask to leave so that a waiting gang can start (numba): what-if on the working copy, undone where it fails.

`kernels.preemption` says who may be asked, and who of them stays after all. Here is whom to try. In the order of least
harm, each piece that may be asked by then, workers of elastic gangs before any job: that is nearly always it.

But what a team borrows ends while it is asked, and may end with workers that make no room. Where a worker was passed
over for that, and a job would leave as a whole or nobody starts, the workers of all gangs that might be asked at the
outset are tried, then those of each gang alone. What is needed of them must be rightful in some order: the team still
borrows when the last of it is asked. To who takes back quota that is a gang: as a job it may be asked as a whole while
its team borrows, and to be elastic is no shelter from that. To who borrows itself it is a worker: what it takes from a
team's own quota it would have to give back.

Last, where nobody starts, quota is taken back gang by gang, as if none were elastic: who starts in a pool without
elastic gangs starts in one with them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moorage.kernels.jit import inner, outer
from moorage.kernels.pool import Pool
from moorage.kernels.preemption import Asker, Place, Running, forget, last, may_push, move, place, settle
from moorage.kernels.teams import Teams

I64 = npt.NDArray[np.int64]

EACH, WORKERS, GANGS = -1, -2, -3
"""Whom to ask: each piece in turn, workers only, gangs as a whole; from 0 on: the workers of the gang whose first piece
that is."""
ALONE = 64
"""How many gangs are tried alone."""
NO_WORKER, NO_JOB = 1, 2
"""Passed over: a piece whose team borrowed at the outset, and no longer does."""


@inner
def _has_its_turn(asker: Asker, whom: int, v: int, running: Running, teams: Teams) -> bool:
    """Whether piece `v` is to be asked next; for gangs and those alone: its gang."""
    if whom >= 0:
        return bool(whom == v)
    if whom == GANGS:
        return not running.extra[v] and may_push(asker, running, v, teams)
    if not running.may[v] or running.taken[v] or not last(running, v):
        return False
    return bool(running.extra[v]) if whom == WORKERS else may_push(asker, running, v, teams)


@inner
def _ask(
    asker: Asker, whom: int, free: int, running: Running, pool: Pool, teams: Teams, at: Place
) -> tuple[int, int, int]:
    """Ask until the asker fits: (its workers placed, how many pieces were asked, who was passed over until then). On -1
    nothing changed."""
    count, passed, asked = 0, 0, running.asked
    for v in running.order:
        if not _has_its_turn(asker, whom, v, running, teams):
            if running.may[v] and not running.taken[v]:
                passed |= NO_WORKER if running.extra[v] else NO_JOB
            continue
        low, high = v, v
        if whom >= 0 or whom == GANGS:
            low += 1 if whom >= 0 else 0
            while high + 1 < len(running.team) and running.extra[high + 1]:
                high += 1
        for w in range(high, low - 1, -1):
            if running.taken[w]:
                continue
            if not running.may[w]:
                break
            move(running, w, 1, pool, teams)
            asked[count] = w
            count += 1
            free += running.milli[w]
        if free < asker.milli:
            continue
        placed = place(asker, pool, teams, at)
        if placed >= 0:
            return placed, count, passed
    for i in range(count - 1, -1, -1):
        move(running, asked[i], -1, pool, teams)
    return -1, 0, passed


@inner
def _first(running: Running, v: int) -> int:
    """The piece that its gang keeps to the last."""
    while running.extra[v]:
        v -= 1
    return v


@inner
def _rightful(asker: Asker, count: int, running: Running, teams: Teams) -> bool:
    """Whether each team would still borrow when the last of it was asked, were that what gave the most."""
    asked, given = running.asked, running.given
    for i in range(count):
        given[_first(running, asked[i])] = 0
    for i in range(count):
        gang, milli = _first(running, asked[i]), running.milli[asked[i]]
        given[gang] = given[gang] + milli if asker.entitled else max(given[gang], milli)
    for i in range(count):
        team, most = running.team[asked[i]], np.int64(0)
        for j in range(count):
            if running.team[asked[j]] == team:
                most = max(most, given[_first(running, asked[j])])
        if team != asker.team and teams.used[team, 0] + most <= teams.own[team, 0]:
            return False
    return True


@inner
def _ask_workers(asker: Asker, free: int, running: Running, pool: Pool, teams: Teams, at: Place) -> int:
    """Make room with workers only, as far as that is rightful. As `make_room`."""
    tries = ALONE
    for i in range(-1, len(running.order)):
        whom = WORKERS
        if i >= 0:
            whom = running.order[i]
            after = whom + 1
            if running.extra[whom] or after == len(running.team) or not running.extra[after] or tries == 0:
                continue
            tries -= 1
        placed, count, _ = _ask(asker, whom, free, running, pool, teams, at)
        if placed >= 0:
            count = settle(asker, count, free, running, pool, teams, at)
            if _rightful(asker, count, running, teams):
                return placed
            forget(asker, count, running, pool, teams, at)
        elif i < 0:
            break  # nor will a part of them do
    return -1


@inner
def _leaves(count: int, running: Running) -> bool:
    """Whether one of those asked is more than a worker."""
    leaves = False
    for i in range(count):
        leaves |= not running.extra[running.asked[i]]
    return leaves


@outer
def make_room(
    asker: Asker,
    running: Running,
    pool: Pool,
    teams: Teams,
    within: I64,
    left: I64,
    node: I64,
    mask: I64,
    mem: I64,
    kept: I64,
) -> int:
    """Ask jobs to leave until the asker's smallest gang fits, and place it. As `place_within`; on -1 nothing changed.

    `within[M]`, `left[M]` and `kept[2, 1 + asker.least]` are scratch. `running.taken` marks who must leave; the
    placement holds once they have.
    """
    if len(running.order) == 0:
        return -1
    at = Place(node, mask, mem, kept, within, left)
    possible, free, nodes, elastic = np.int64(0), np.int64(0), pool.nodes, False
    for n in range(len(nodes.model)):
        for d in range(nodes.devices[n]):
            free += nodes.milli_free[n, d]
    for v in running.order:
        running.may[v] = may_push(asker, running, v, teams)
        if running.may[v]:
            possible += running.milli[v]
            elastic |= running.extra[v]
    if possible == 0 or free + possible < asker.milli:
        return -1
    placed, count, passed = _ask(asker, EACH, free, running, pool, teams, at)
    again = EACH if placed >= 0 else GANGS
    if placed >= 0:
        count = settle(asker, count, free, running, pool, teams, at)
        if not passed & NO_WORKER or not _leaves(count, running):
            return placed
        forget(asker, count, running, pool, teams, at)
    if passed & NO_WORKER:
        placed = _ask_workers(asker, free, running, pool, teams, at)
        if placed >= 0:
            return placed
    if again == GANGS and not (asker.entitled and elastic and passed):
        return -1
    placed, count, _ = _ask(asker, again, free, running, pool, teams, at)
    if placed >= 0:
        settle(asker, count, free, running, pool, teams, at)
    return placed
