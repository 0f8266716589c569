"""S3: who gives up how many workers, against a plain reference; and that no less would have done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from running_pool import RunningPool, job, team

from moorage.scheduling.ledger import LeaseGranted, LeaseReleased, LeaseResized, Ledger, step
from moorage.scheduling.model import DeviceRule, JobRequest, Lease, Policy, Snapshot, TaskPlacement
from moorage.scheduling.planner import plan
from moorage.scheduling.queue import Queue
from moorage.scheduling.quota import Quotas
from moorage.scheduling.validate import check


@st.composite
def pools(draw: st.DrawFn) -> tuple[RunningPool, JobRequest]:
    """Elastic gangs hold a pool; one job waits."""
    devices = draw(st.sampled_from([[4], [4, 4], [2, 2, 4], [8]]))
    quotas = draw(st.sampled_from([(None, None), (4, 4), (1, 7), (8, 0), (2, 2)]))
    teams = [team(name, q) for name, q in zip("ab", quotas, strict=True)]
    keys: dict[str, int] = {}
    pool = RunningPool.of(devices, teams, policy=Policy(margin=draw(st.integers(0, 1))), keys=keys)
    for n in range(draw(st.integers(1, 5))):
        pool.submit(draw(requests(f"r{n}", keys)))
        pool.go()
        pool.waits.clear()
    return pool, draw(requests("asks", keys, least=True))


@st.composite
def requests(
    draw: st.DrawFn,
    name: str,
    keys: dict[str, int],
    least: bool = False,
    owner: str | None = None,
    sizes: Sequence[int] = (500, 1000, 1000, 2000),
) -> JobRequest:
    workers = draw(st.integers(1, 6))
    keys[name] = draw(st.integers(0, 2))
    return job(
        name,
        owner or draw(st.sampled_from("ab")),
        workers,
        draw(st.sampled_from(sizes)),
        min_workers=workers if least else draw(st.integers(1, workers)),
        priority=draw(st.integers(0, 2)) + least,
        preemptible=draw(st.sampled_from([True, True, True, False])),
    )


@st.composite
def borrowed(draw: st.DrawFn) -> tuple[RunningPool, JobRequest]:
    """One team holds more than its quota, much of it halves of devices; the other wants its own, or somewhat more."""
    devices, quotas = draw(st.sampled_from([[4, 4], [2, 2, 4], [8]])), draw(st.sampled_from([(4, 4), (3, 5)]))
    keys: dict[str, int] = {}
    pool = RunningPool.of(devices, [team(n, q) for n, q in zip("ab", quotas, strict=True)], keys=keys)
    for n in range(draw(st.integers(4, 7))):
        owner = draw(st.sampled_from("abb"))
        pool.submit(draw(requests(f"r{n}", keys, owner=owner, sizes=[500, 500, 500, 1000])))
        pool.go()
        pool.waits.clear()
    return pool, draw(requests("asks", keys, least=True, owner="a", sizes=[1000, 1000, 2000]))


def used_up() -> tuple[RunningPool, JobRequest]:
    """What b borrows was used up by a worker of r2, whose device is a's too; then r3 left, and two of r1 would do."""
    pool = RunningPool.of([4, 4], [team("a", 4), team("b", 4)], keys={})
    return holding(
        pool,
        job("r0", "a", 1, 500),
        job("r1", "b", 3, min_workers=1),
        job("r2", "b", 5, 500, min_workers=4),
        job("r3", "a", 1, 500),
    ), job("asks", "a", 3, priority=1)


def sheltered() -> tuple[RunningPool, JobRequest]:
    """b borrows one worker, and with that one given up it is in its quota: then nobody started. As a whole r0 left."""
    pool = RunningPool.of([8], [team("a", 4), team("b", 4)], keys={})
    runs = job("r0", "b", 5, 500, min_workers=1), job("r1", "b", 4, 500)
    return holding(pool, *runs), job("asks", "a", 4, priority=1)


def holding(pool: RunningPool, *runs: JobRequest) -> RunningPool:
    for run in runs:
        pool.keys[run.job] = 0
        pool.submit(run)
        pool.go()
    assert not pool.waits
    pool.keys["asks"] = 0
    return pool


@dataclass(frozen=True)
class Unit:
    """A worker above the minimum (`rank` > 0), or the rest of a job."""

    name: str
    rank: int
    tasks: tuple[TaskPlacement, ...]

    def milli(self) -> int:
        return sum(task.milli_gpu for task in self.tasks)


def units(pool: RunningPool) -> list[Unit]:
    """In the order in which they are asked."""
    found = []
    for name, request in pool.runs.items():
        tasks, least = pool.ledger.leases[name].tasks, max(1, request.min_workers)
        found.append(Unit(name, 0, tasks[:least]))
        found += [Unit(name, 1 + i, (task,)) for i, task in enumerate(tasks[least:])]
    order = list(pool.runs)

    def key(unit: Unit) -> tuple[int, ...]:
        run = pool.runs[unit.name]
        whole = unit.rank == 0
        size = pool.ledger.leases[unit.name].milli_gpu if whole else unit.milli()
        return (whole, run.priority, -pool.keys[unit.name], size, order.index(unit.name), -unit.rank)

    return sorted(found, key=key)


def without(pool: RunningPool, gone: list[Unit]) -> Ledger:
    """The pool once these left."""
    ledger = pool.ledger.copy()
    for name in {unit.name for unit in gone}:
        lease, own = ledger.leases[name], [u for u in gone if u.name == name]
        kept = len(lease.tasks) - sum(len(u.tasks) for u in own)
        if kept:
            step(ledger, LeaseResized(name, lease.epoch, ledger.last_epoch + 1, kept))
        else:
            step(ledger, LeaseReleased(name, lease.epoch))
    return ledger


def placed(ledger: Ledger, asks: JobRequest) -> tuple[TaskPlacement, ...]:
    """Where it starts when nobody can be asked; () when it does not."""
    snapshot = Snapshot(
        version=ledger.version, ledger=ledger, pending=Queue.of((asks,)), device_rule=DeviceRule.FREE
    )
    return next((tasks for _, tasks in plan(snapshot, Policy(), 0).admissions(snapshot)), ())


def may_push(pool: RunningPool, ledger: Ledger, asks: JobRequest, unit: Unit, entitled: bool) -> bool:
    """As the three reasons have it, of teams without a tree."""
    run = pool.runs[unit.name]
    quotas, row = ledger.quota[:, 0], ledger.team_row[run.team]
    counted = bool(quotas.any())
    borrows = counted and ledger.used[row, 0] > quotas[row]
    if not run.preemptible:
        return False
    if entitled and run.team != asks.team and borrows:
        return True
    if run.team != asks.team and counted and not (borrows and not entitled):
        return False
    if run.priority != asks.priority:
        return run.priority < asks.priority
    return pool.keys[unit.name] - pool.policy.margin > pool.keys[asks.job]


def asked(pool: RunningPool, asks: JobRequest, entitled: bool) -> list[Unit] | None:
    """Who gives what. None: it does not fit whoever is asked."""
    each = in_turn(pool, asks, entitled)
    if each is not None and all(unit.rank for unit in each):
        return each
    gangs = [unit.name for unit in units(pool) if not unit.rank]
    for names in (set(gangs), *({name} for name in gangs)):
        given = workers(pool, asks, entitled, names)
        if given is not None and rightful(pool, asks, entitled, given):
            return given
    return gang_by_gang(pool, asks) if each is None and entitled else each


def in_turn(pool: RunningPool, asks: JobRequest, entitled: bool) -> list[Unit] | None:
    """Ask unit by unit until it fits, put back what was not needed."""
    gone: list[Unit] = []
    for unit in units(pool):
        later = [u for u in units(pool) if u.name == unit.name and u.rank > unit.rank]
        if not may_push(pool, without(pool, gone), asks, unit, entitled) or any(u not in gone for u in later):
            continue
        gone.append(unit)
        tasks = placed(without(pool, gone), asks)
        if tasks:
            return put_back(pool, asks, gone, tasks)
    return None


def spare(pool: RunningPool, asks: JobRequest, entitled: bool, names: set[str]) -> list[Unit]:
    """The workers that these gangs might be asked for when nobody has been."""
    ledger = pool.ledger
    found = [unit for unit in units(pool) if unit.rank and unit.name in names]
    return [unit for unit in found if may_push(pool, ledger, asks, unit, entitled)]


def workers(pool: RunningPool, asks: JobRequest, entitled: bool, names: set[str]) -> list[Unit] | None:
    """Those that do, one gang's at once, those of several in turn."""
    found = spare(pool, asks, entitled, names)
    for count in range(len(found) if len(names) == 1 else 1, len(found) + 1):
        tasks = placed(without(pool, found[:count]), asks)
        if tasks:
            return put_back(pool, asks, found[:count], tasks)
    return None


def rightful(pool: RunningPool, asks: JobRequest, entitled: bool, gone: list[Unit]) -> bool:
    """Whether each team still borrows when the last of it is asked: its largest gang by who is entitled, else its
    largest worker."""
    ledger = pool.ledger
    for name in {pool.runs[unit.name].team for unit in gone} - {asks.team}:
        row, own = ledger.team_row[name], [u for u in gone if pool.runs[u.name].team == name]
        sizes = [[u.milli() for u in own if u.name == gang] for gang in {u.name for u in own}]
        last = max(sum(of) if entitled else max(of) for of in sizes)
        held = int(ledger.used[row, 0]) - sum(u.milli() for u in own)
        if ledger.quota[:, 0].any() and held + last <= ledger.quota[row, 0]:
            return False
    return True


def gang_by_gang(pool: RunningPool, asks: JobRequest) -> list[Unit] | None:
    """Take quota back as if no gang were elastic; what is not needed of a gang stays."""
    gone: list[Unit] = []
    for gang in [unit for unit in units(pool) if not unit.rank]:
        if may_push(pool, without(pool, gone), asks, gang, True):
            gone += [unit for unit in units(pool) if unit.name == gang.name]
            tasks = placed(without(pool, gone), asks)
            if tasks:
                return put_back(pool, asks, gone, tasks)
    return None


def put_back(
    pool: RunningPool, asks: JobRequest, gone: list[Unit], tasks: tuple[TaskPlacement, ...]
) -> list[Unit]:
    """The dearest first, each where it stood, if the starter's tasks leave that free and its team may hold it."""
    left = list(gone)
    for unit in reversed(gone):
        if any(u.name == unit.name and u.rank < unit.rank for u in left):
            continue
        stays = [u for u in left if u != unit]
        ledger = without(pool, stays)
        try:
            grant(ledger, asks, tasks)
        except ValueError:
            continue
        before = without(pool, left)
        grant(before, asks, tasks)
        room = Quotas.of(before).room(before.team_row[pool.runs[unit.name].team])
        if min(int(r) for r in room) >= unit.milli():
            left = stays
    for unit in reversed(gone):  # or it stays, and the starter finds another place
        if unit in left and not any(u.name == unit.name and u.rank < unit.rank for u in left):
            stays = [u for u in left if u != unit]
            ledger = without(pool, left)
            room = Quotas.of(ledger).room(ledger.team_row[pool.runs[unit.name].team])
            if min(int(r) for r in room) >= unit.milli() and placed(without(pool, stays), asks):
                left = stays
    return left


def grant(ledger: Ledger, request: JobRequest, tasks: tuple[TaskPlacement, ...]) -> None:
    lease = Lease(lease="new", job="new", team=request.team, epoch=ledger.last_epoch + 1, tasks=tasks)
    step(ledger, LeaseGranted(lease))


def in_quota(pool: RunningPool, asks: JobRequest) -> bool:
    """It fits its team's own quota; where nobody has one, that holds nobody back."""
    quotas, row = pool.ledger.quota[:, 0], pool.ledger.team_row[asks.team]
    return not quotas.any() or asks.milli_gpu() <= max(0, int(quotas[row] - pool.ledger.used[row, 0]))


def reference(pool: RunningPool, asks: JobRequest) -> list[Unit] | None:
    """Within its own quota it reclaims; else it asks as one that borrows. None: it waits."""
    if placed(pool.ledger, asks):
        return []
    return asked(pool, asks, in_quota(pool, asks))


def taken(pool: RunningPool, gone: list[Unit]) -> tuple[set[str], dict[str, int]]:
    """(jobs that leave, tasks that a gang keeps)."""
    leave = {unit.name for unit in gone if unit.rank == 0}
    names = {unit.name for unit in gone} - leave
    kept = {
        name: len(pool.ledger.leases[name].tasks) - sum(unit.name == name for unit in gone) for name in names
    }
    return leave, kept


@given(pools() | borrowed())
@example(used_up())
@example(sheltered())
@settings(deadline=None, max_examples=300)
def test_who_gives_what_is_what_a_plain_reference_says(case: tuple[RunningPool, JobRequest]) -> None:
    pool, asks = case
    expected = reference(pool, asks)
    pool.submit(asks)
    decided = pool.decide()
    assert len(decided.admitted) == (expected is not None)
    leave, kept = taken(pool, expected or [])
    assert set(decided.preempted) == leave
    assert dict(zip(decided.shrunk, decided.shrunk_tasks.tolist(), strict=True)) == kept
    assert decided.shrunk_for == ((0,),) * len(kept), "the one who asks"
    assert set(decided.shrunk_by) <= {"reclaim", "priority", "index"} and len(decided.shrunk_by) == len(kept)
    pool.apply(decided)
    check(pool.ledger)


@given(pools() | borrowed())
@example(used_up())
@example(sheltered())
@settings(deadline=None, max_examples=300)
def test_no_gang_below_its_minimum_and_nobody_needlessly(case: tuple[RunningPool, JobRequest]) -> None:
    """Without any one of those that leave, and with any one worker more kept, the starter has no place."""
    pool, asks = case
    pool.submit(asks)
    decided = pool.decide()
    kept = dict(zip(decided.shrunk, decided.shrunk_tasks.tolist(), strict=True))
    assert not set(kept) & set(decided.preempted)
    for name, tasks in kept.items():
        assert max(1, pool.runs[name].min_workers) <= tasks < len(pool.ledger.leases[name].tasks)
    gone = [
        unit
        for unit in units(pool)
        if unit.name in decided.preempted
        or (unit.name in kept and unit.rank > kept[unit.name] - len(first(pool, unit)))
    ]
    for unit in gone:
        if any(u.name == unit.name and u.rank < unit.rank for u in gone):
            continue  # only the first of those given up could have stayed
        assert not placed(without(pool, [u for u in gone if u != unit]), asks), unit


def first(pool: RunningPool, unit: Unit) -> tuple[TaskPlacement, ...]:
    return pool.ledger.leases[unit.name].tasks[: max(1, pool.runs[unit.name].min_workers)]


@given(pools() | borrowed())
@example(used_up())
@settings(deadline=None, max_examples=100)
def test_no_job_leaves_where_workers_that_may_be_asked_make_room(
    case: tuple[RunningPool, JobRequest],
) -> None:
    """Those of any one gang, or of all in their turn, as many as may rightfully be taken."""
    pool, asks = case
    entitled = in_quota(pool, asks)
    pool.submit(asks)
    decided = pool.decide()
    if not decided.preempted:
        return
    for names in (set(pool.runs), *({name} for name in pool.runs)):
        found = spare(pool, asks, entitled, names)
        for count in range(1, len(found) + 1):
            if rightful(pool, asks, entitled, found[:count]):
                assert not placed(without(pool, found[:count]), asks), found[:count]


@given(pools() | borrowed())
@example(sheltered())
@settings(deadline=None, max_examples=100)
def test_who_starts_among_rigid_gangs_starts_among_elastic_ones(case: tuple[RunningPool, JobRequest]) -> None:
    """But who borrows: from gangs that can be asked for a part it takes no more than what their team borrows."""
    pool, asks = case
    entitled, shared = in_quota(pool, asks), bool(pool.ledger.quota.any())
    pool.submit(asks)
    decided = pool.decide()
    rigid = pool.decide(least_tasks=np.diff(pool.running().first))
    assert not rigid.shrunk
    if entitled:
        assert set(rigid.admitted.tolist()) <= set(decided.admitted.tolist())
    if not shared:
        assert rigid.admitted.tolist() == decided.admitted.tolist()
