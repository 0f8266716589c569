"""S3: who gives up how many workers, against a plain reference; and that no less would have done."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from hypothesis import given, settings
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
def requests(draw: st.DrawFn, name: str, keys: dict[str, int], least: bool = False) -> JobRequest:
    workers = draw(st.integers(1, 6))
    keys[name] = draw(st.integers(0, 2))
    return job(
        name,
        draw(st.sampled_from("ab")),
        workers,
        draw(st.sampled_from([500, 1000, 1000, 2000])),
        min_workers=workers if least else draw(st.integers(1, workers)),
        priority=draw(st.integers(0, 2)) + least,
        preemptible=draw(st.sampled_from([True, True, True, False])),
    )


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
        return (whole, run.priority, -pool.keys[unit.name], unit.milli(), order.index(unit.name), -unit.rank)

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
    """Who gives what: ask until it fits, put back what was not needed. None: it does not fit whoever is asked."""
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


def reference(pool: RunningPool, asks: JobRequest) -> list[Unit] | None:
    """Within its own quota it reclaims; else it asks as one that borrows. None: it waits."""
    ledger = pool.ledger
    if placed(ledger, asks):
        return []
    quotas, row = ledger.quota[:, 0], ledger.team_row[asks.team]
    fits = not quotas.any() or asks.milli_gpu() <= max(0, int(quotas[row] - ledger.used[row, 0]))
    return asked(pool, asks, entitled=bool(fits))


def taken(pool: RunningPool, gone: list[Unit]) -> tuple[set[str], dict[str, int]]:
    """(jobs that leave, tasks that a gang keeps)."""
    leave = {unit.name for unit in gone if unit.rank == 0}
    names = {unit.name for unit in gone} - leave
    kept = {
        name: len(pool.ledger.leases[name].tasks) - sum(unit.name == name for unit in gone) for name in names
    }
    return leave, kept


@given(pools())
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
    pool.apply(decided)
    check(pool.ledger)


@given(pools())
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


@given(pools())
@settings(deadline=None, max_examples=100)
def test_elastic_gangs_never_leave_where_giving_up_workers_does(case: tuple[RunningPool, JobRequest]) -> None:
    pool, asks = case
    pool.submit(asks)
    rigid = replace(pool.running(), least_tasks=None)
    decided = pool.decide()
    if decided.preempted:
        spare = [u for u in units(pool) if u.rank and pool.runs[u.name].preemptible]
        spare = [u for u in spare if u.name in decided.preempted or u.name in decided.shrunk]
        assert not placed(without(pool, spare), asks)
    one = pool.decide(least_tasks=np.diff(rigid.first))
    assert one.shrunk == () and one.admitted.tolist() == decided.admitted.tolist()
