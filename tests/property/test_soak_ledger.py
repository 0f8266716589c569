"""S2-S4: long random histories of the real ledger and planner. A slice in every test run, the rest in `make soak`."""

from __future__ import annotations

import random

import pytest
from ledger_events import Storm, attempt, differences, image, rebuilt, replay

from moorage.scheduling.ledger import (
    LeaseGranted,
    LeaseReleased,
    Ledger,
    NodeDown,
    NodeUp,
    TeamSet,
    step,
)
from moorage.scheduling.model import JobRequest, Lease, NodeSpec, Policy, Shape, Snapshot, TeamSpec
from moorage.scheduling.planner import plan
from moorage.scheduling.queue import Queue
from moorage.scheduling.validate import Auditor, check, violations

NODES, TEAMS = 6, 4


def storm(events: int, seed: int) -> tuple[int, int]:
    """Try random events until that many applied; after each, every invariant it may have touched is checked.

    Now and then all of them are, and the ledger is lost and built again: from its last copy and the events since,
    byte for byte the same, and from its figures alone. Returns how many events were tried, and how often it was lost.
    """
    weather, rng = Storm(seed), random.Random(seed)
    ledger, since = Ledger(), weather.start()
    base, applied, tried, crashes = Ledger(), 0, 0, 0
    replay(since, ledger)
    auditor = Auditor(ledger)
    while applied < events:
        tried += 1
        event = weather.next(ledger)
        if done := attempt(ledger, event):
            since.append(event)
        applied += done
        found = auditor.after(event, done)
        assert not found, f"event {tried}, {event}: {found}"
        if rng.random() < 0.001:
            assert violations(ledger) == []
            again = replay(since, base.copy())
            assert image(again) == image(ledger)
            assert differences(ledger, rebuilt(ledger)) == []
            base, ledger, since = again.copy(), again, []
            auditor, crashes = Auditor(ledger), crashes + 1
    assert violations(ledger) == []
    return tried, crashes


def test_a_storm_of_events_breaks_nothing() -> None:
    tried, crashes = storm(10_000, seed=3)
    assert 12_000 < tried < 30_000, "both what applies and what is refused must be drawn"
    assert crashes > 5


@pytest.mark.soak
def test_a_million_events_each_checked() -> None:
    tried, crashes = storm(1_000_000, seed=4)
    print(f"1000000 of {tried} events applied, {crashes} crashes")
    assert crashes > 500


@pytest.mark.parametrize(
    "kind", ["milli_free", "mem_free", "cpu_free", "mib_free", "used", "held", "last_epoch", "leases"]
)
def test_the_auditor_sees_what_an_event_spoils(kind: str) -> None:
    """It must: 0 violations in a million events say nothing of a validator that sees none."""
    weather, ledger = Storm(seed=5), Ledger()
    replay(weather.start(), ledger)
    auditor, missed = Auditor(ledger), 0
    for _ in range(300):
        event = weather.next(ledger)
        done = attempt(ledger, event)
        if done and isinstance(event, LeaseGranted) and event.lease.milli_gpu:
            row = ledger.node_row[next(t.node for t in event.lease.tasks if t.milli_gpu)]
            spoil(ledger, kind, row, event)
            missed = len(auditor.after(event)) == 0
            break
        assert auditor.after(event, done) == []
    else:
        pytest.fail("no lease was granted")
    assert not missed


def spoil(ledger: Ledger, kind: str, row: int, event: LeaseGranted) -> None:
    if kind == "last_epoch":
        ledger.last_epoch += 1
    elif kind == "leases":
        del ledger.leases[event.lease.lease]
    else:
        array = getattr(ledger, kind)
        array[ledger.team_row[event.lease.team] if kind in ("used", "held") else row] += 1


def churn(events: int, seed: int) -> int:
    """Apply at least `events` random ledger events, checking every invariant after each plan and each release.

    Returns how many were applied. Half of the pool's nodes leave and return, quotas change, jobs come and go.
    """
    rng = random.Random(seed)
    ledger, pending, applied, count = Ledger(), [], 0, 0
    down: set[int] = set()

    def node(n: int) -> NodeSpec:
        return NodeSpec(
            name=f"n{n}", gpu_model="AB"[n % 2], devices=4, device_mib=24000, milli_cpu=32000, mib=64000
        )

    def team(t: int) -> TeamSpec:
        quota = rng.randrange(0, 9) * 1000
        lend = (("*", rng.randrange(0, 5) * 1000),)
        return TeamSpec(
            name=f"t{t}", quota=(("*", quota),), limit=(("*", quota + rng.randrange(0, 9) * 1000),), lend=lend
        )

    for n in range(NODES):
        step(ledger, NodeUp(node(n)))
    for t in range(TEAMS):
        step(ledger, TeamSet(team(t)))
    while applied < events:
        for _ in range(rng.randrange(1, 5)):
            count += 1
            workers = rng.choice((1, 1, 1, 2, 4, 8))
            shape = Shape(
                milli_gpu=rng.choice((100, 180, 500, 600, 1000, 2000)), gpu_mib=rng.choice((0, 3000))
            )
            pending.append(
                JobRequest(
                    job=f"j{count}",
                    team=f"t{rng.randrange(TEAMS)}",
                    submitted_ns=count,
                    priority=rng.randrange(3),
                    worker=shape,
                    workers=workers,
                    min_workers=rng.randrange(1, workers + 1),
                )
            )
        snapshot = Snapshot(version=ledger.version, ledger=ledger, pending=Queue.of(pending))
        started = set()
        for request, tasks in list(plan(snapshot, Policy(), count).admissions(snapshot)):
            epoch = ledger.last_epoch + 1
            step(
                ledger,
                LeaseGranted(
                    Lease(lease=f"l{epoch}", job=request.job, team=request.team, epoch=epoch, tasks=tasks)
                ),
            )
            started.add(request.job)
            applied += 1
        check(ledger)
        pending = [r for r in pending if r.job not in started][-30:]
        for lease in rng.sample(list(ledger.leases.values()), len(ledger.leases) // 3):
            step(ledger, LeaseReleased(lease.lease, lease.epoch))
            applied += 1
        n = rng.randrange(NODES)
        step(ledger, NodeUp(node(n)) if n in down else NodeDown(f"n{n}"))
        down ^= {n}
        step(ledger, TeamSet(team(rng.randrange(TEAMS))))
        check(ledger)
        applied += 2
    return applied


def test_churn_slice() -> None:
    assert churn(4_000, seed=1) >= 4_000


@pytest.mark.soak
def test_a_million_events_of_the_planner() -> None:
    assert churn(1_000_000, seed=2) >= 1_000_000
