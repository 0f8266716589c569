"""S3: over many decisions, gangs grow into what nobody can use, stay within their bounds, and come to rest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from running_pool import RunningPool, job, team

from moorage.scheduling.ledger import LeaseGranted, LeaseResized, Ledger, step
from moorage.scheduling.model import DeviceRule, JobRequest, Lease, Plan, Policy, Snapshot
from moorage.scheduling.planner import plan
from moorage.scheduling.queue import Queue
from moorage.scheduling.quota import Quotas
from moorage.scheduling.validate import check

S = 10**9
SETTLE = 3 * S


@st.composite
def pools(draw: st.DrawFn) -> tuple[RunningPool, list[JobRequest]]:
    devices = draw(st.sampled_from([[4], [4, 4], [2, 2, 4], [8]]))
    quotas = draw(st.sampled_from([(None, None), (4, 4), (1, 7), (2, 2)]))
    limits = draw(st.sampled_from([(None, None), (None, 3), (5, None)]))
    lend = draw(st.sampled_from([(), (("*", 1000),)]))
    teams = [
        team(name, q, most, lend=lend, weight=w)
        for name, q, most, w in zip("ab", quotas, limits, (1, draw(st.integers(1, 3))), strict=True)
    ]
    jobs = []
    for n in range(draw(st.integers(1, 8))):
        workers = draw(st.integers(1, 6))
        jobs.append(
            job(
                f"j{n}",
                draw(st.sampled_from("ab")),
                workers,
                draw(st.sampled_from([500, 1000, 1000, 2000])),
                min_workers=draw(st.integers(1, workers)),
                priority=draw(st.integers(0, 2)),
                preemptible=draw(st.sampled_from([True, True, False])),
            )
        )
    policy = Policy(settle_ns=draw(st.sampled_from([0, SETTLE])), least_run_ns=draw(st.sampled_from([0, S])))
    return RunningPool.of(devices, teams, policy=policy), jobs


def after_growth(pool: RunningPool, decided: Plan) -> Ledger:
    """The ledger once the plan's growth is booked."""
    ledger = pool.ledger.copy()
    assert pool.snapshot is not None
    for name, more in decided.growth(pool.snapshot):
        lease = ledger.leases[name]
        step(ledger, LeaseResized(name, lease.epoch, ledger.last_epoch + 1, len(lease.tasks), more))
    return ledger


def kept(pool: RunningPool, decided: Plan) -> None:
    """What holds of any plan that grows somebody."""
    if not decided.grown:
        return
    assert not (decided.preempted or decided.shrunk or decided.moved)
    ledger, policy = after_growth(pool, decided), pool.policy
    check(ledger)
    for name in decided.grown:
        assert len(ledger.leases[name].tasks) <= pool.runs[name].workers
        for last in (pool.since[name], pool.grown.get(name), pool.shrunk.get(name)):
            assert last is None or pool.now - last >= policy.settle_ns
    for row in range(len(ledger.team_names)):
        assert ledger.used[row, 0] <= ledger.limit[row, 0]
    starts = ledger.copy()
    grant(pool, decided, starts)
    quotas, used = starts.quota[:, 0], starts.used[:, 0]
    for row, name in enumerate(starts.team_names if quotas.any() else ()):
        gangs = [pool.runs[gang] for gang in decided.grown if pool.runs[gang].team == name]
        if gangs and not any(gang.preemptible for gang in gangs):
            assert used[row] <= quotas[row], "who gives nothing back borrows nothing"
    if quotas.any():
        lent = np.minimum(np.maximum(quotas - used, 0), starts.lend[:, 0]).sum()
        spare = max(0, int(starts.capacity()[0] - quotas.sum()))
        assert np.maximum(used - quotas, 0).sum() <= lent + spare, "beyond quota only what others lend"
    # whoever waits has no use for what was taken: without the growth it waits, too
    waits = tuple(r for r in pool.waits.values() if r.job not in started(pool, decided))
    bare = pool.ledger.copy()
    grant(pool, decided, bare)
    snapshot = Snapshot(version=0, ledger=bare, pending=Queue.of(waits), device_rule=DeviceRule.FREE)
    assert not len(plan(snapshot, Policy(), pool.now).admitted)


def started(pool: RunningPool, decided: Plan) -> set[str]:
    return {request.job for request, _ in decided.admissions(pool.snapshot)}  # type: ignore[arg-type]


def grant(pool: RunningPool, decided: Plan, ledger: Ledger) -> None:
    for request, tasks in decided.admissions(pool.snapshot):  # type: ignore[arg-type]
        epoch = ledger.last_epoch + 1
        lease = Lease(lease=request.job, job=request.job, team=request.team, epoch=epoch, tasks=tasks)
        step(ledger, LeaseGranted(lease))


@given(
    pools(), st.lists(st.tuples(st.sampled_from(["submit", "end", "wait"]), st.integers(0, 4)), max_size=14)
)
@settings(deadline=None, max_examples=150)
def test_growth_stays_within_its_bounds(
    case: tuple[RunningPool, list[JobRequest]], steps: list[tuple[str, int]]
) -> None:
    """No gang below its minimum or above what it wants, no team beyond its bounds, nothing that somebody could use."""
    pool, jobs = case
    for what, seconds in steps:
        if what == "submit" and jobs:
            pool.submit(jobs.pop(0))
        elif what == "end" and pool.runs:
            pool.end(next(iter(pool.runs)))
        pool.now += seconds * S
        decided = pool.decide()
        kept(pool, decided)
        pool.apply(decided)
        for name, request in pool.runs.items():
            assert max(1, request.min_workers) <= pool.workers()[name] <= request.workers


@given(pools(), st.sampled_from([0, S]))
@settings(deadline=None, max_examples=100)
def test_with_nothing_new_nobody_grows_and_shrinks_in_turn(
    case: tuple[RunningPool, list[JobRequest]], after: int
) -> None:
    pool, jobs = case
    for request in jobs:
        pool.submit(request)
        pool.go(S)
    changed = []
    for _ in range(30):
        decided = pool.go(after)
        changed.append((decided.preempted, decided.shrunk, decided.grown))
    assert all(not any(what) for what in changed[15:]), changed


@given(pools())
@settings(deadline=None, max_examples=80)
def test_what_is_left_when_nobody_waits_is_of_no_use_to_any_gang(
    case: tuple[RunningPool, list[JobRequest]],
) -> None:
    """Against a plain reference: after growth no gang that wants more could be given one more worker."""
    pool, jobs = case
    for request in jobs:
        pool.submit(request)
        pool.go(S)
    pool.waits.clear()
    for _ in range(4):
        pool.go(SETTLE)
    for name, request in pool.runs.items():
        if pool.workers()[name] < request.workers:
            one = replace(request, job="one", workers=1, min_workers=1)
            snapshot = Snapshot(
                version=0, ledger=pool.ledger, pending=Queue.of((one,)), device_rule=DeviceRule.FREE
            )
            quotas, team_row = Quotas.of(pool.ledger), pool.ledger.team_row[request.team]
            room = int(quotas.room(team_row)[0])
            if pool.ledger.quota.any() and not request.preemptible:  # its own, and nothing that is lent
                room = min(room, int(quotas.own[team_row, 0] - quotas.used[team_row, 0]))
            assert room < one.worker.milli_gpu or not len(plan(snapshot, Policy(), 0).admitted), name
