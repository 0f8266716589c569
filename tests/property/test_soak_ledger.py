"""S2-S4: long random histories of the real planner and ledger. A slice in every test run, the rest in `make soak`."""

from __future__ import annotations

import random

import pytest

from moorage.scheduling.ledger import LeaseGranted, LeaseReleased, Ledger, NodeDown, NodeUp, TeamSet, step
from moorage.scheduling.model import JobRequest, Lease, NodeSpec, Policy, Shape, Snapshot, TeamSpec
from moorage.scheduling.planner import plan
from moorage.scheduling.validate import check

NODES, TEAMS = 6, 4


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
        snapshot = Snapshot(version=ledger.version, ledger=ledger, pending=tuple(pending))
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
def test_a_million_events() -> None:
    assert churn(1_000_000, seed=2) >= 1_000_000
