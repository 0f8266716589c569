"""Compile the planner's kernels, or load them from the cache: half a minute once, half a second after that.

`python -m moorage.scheduling.warm` is part of the install; a control plane does it while it starts, so that its first
caller does not wait for a compiler.
"""

from __future__ import annotations

from moorage.scheduling.ledger import LeaseGranted, Ledger, NodeUp, TeamSet, step
from moorage.scheduling.model import JobRequest, Lease, NodeSpec, Plan, Policy, Shape, Snapshot, TeamSpec
from moorage.scheduling.planner import plan
from moorage.scheduling.queue import Queue
from moorage.scheduling.running import RunningJobs
from moorage.scheduling.workspace import Workspace


def warm_up() -> Plan:
    """Let an entitled job take back from a borrower the one device there is: all of the kernels have a part in it."""
    ledger = Ledger()
    step(ledger, NodeUp(NodeSpec(name="n", gpu_model="A", devices=1)))
    step(ledger, TeamSet(TeamSpec(name="lends", quota=(("*", 1000),))))
    step(ledger, TeamSet(TeamSpec(name="borrows")))
    held = _job("held", "borrows")
    decided = plan(Snapshot(version=ledger.version, ledger=ledger, pending=Queue.of((held,))), Policy(), 0)
    snapshot = Snapshot(version=ledger.version, ledger=ledger, pending=Queue.of((held,)))
    tasks = next(tasks for _, tasks in decided.admissions(snapshot))
    step(ledger, LeaseGranted(Lease(lease="l", job="held", team="borrows", epoch=1, tasks=tasks)))
    _reserve(ledger)
    _grow(ledger)
    running = RunningJobs.of(ledger, {"l": held})
    pending = Queue.of((_job("own", "lends"),))
    return plan(
        Snapshot(version=ledger.version, ledger=ledger, pending=pending, running=running), Policy(), 0
    )


def _reserve(ledger: Ledger) -> None:
    """A job that must wait for the end of who runs, twice over a kept workspace: as a pool's loop decides."""
    workspace, ends = Workspace(), RunningJobs.holding(ledger, {"l": 10**9})
    waits = Queue.of((_job("waits", "lends"), _job("behind", "lends")))
    snapshot = Snapshot(version=ledger.version, ledger=ledger, pending=waits, running=ends)
    for _ in range(2):
        plan(snapshot, Policy(), 0, workspace)


def _grow(ledger: Ledger) -> None:
    """A gang that wants another worker, and nobody waits."""
    running = RunningJobs.of(ledger, {"l": _job("held", "borrows", workers=2)})
    snapshot = Snapshot(version=ledger.version, ledger=ledger, pending=Queue.of(()), running=running)
    plan(snapshot, Policy(settle_ns=0), 0)


def _job(name: str, team: str, workers: int = 1) -> JobRequest:
    return JobRequest(
        job=name,
        team=team,
        submitted_ns=0,
        worker=Shape(milli_gpu=1000),
        workers=workers,
        min_workers=1,
        preemptible=True,
    )


if __name__ == "__main__":
    warm_up()
