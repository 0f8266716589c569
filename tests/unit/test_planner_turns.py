"""S3: what was found out for one job is that job's, though whose turn it is changed meanwhile."""

from __future__ import annotations

from moorage.scheduling.ledger import LeaseGranted, Ledger, NodeUp, TeamSet, step
from moorage.scheduling.model import (
    JobRequest,
    Lease,
    NodeSpec,
    Policy,
    Role,
    Shape,
    Snapshot,
    TaskPlacement,
    TeamSpec,
)
from moorage.scheduling.planner import plan
from moorage.scheduling.queue import Queue
from moorage.scheduling.running import RunningJobs


def job(name: str, team: str, at: int, milli: int, priority: int = 0) -> JobRequest:
    return JobRequest(
        job=name,
        team=team,
        submitted_ns=at,
        priority=priority,
        worker=Shape(milli_gpu=milli),
        workers=1,
        min_workers=1,
        preemptible=True,
    )


def test_who_is_pushed_out_changes_the_turn_and_not_the_answer() -> None:
    """`few` holds less, so its job is next, and pushes out the two GPUs of `many`. Then `many` holds less: the place
    that was found, one GPU, is not for its job of two."""
    ledger = Ledger()
    for team in ("many", "few"):
        step(ledger, TeamSet(TeamSpec(name=team)))
    held = {"two": job("two", "many", 0, 2000), "one": job("one", "few", 0, 1000, priority=5)}
    for at, (name, request) in enumerate(held.items()):
        devices = tuple(range(request.worker.devices))
        step(ledger, NodeUp(NodeSpec(name=f"n{at}", gpu_model="A", devices=len(devices))))
        task = TaskPlacement(
            role=Role.WORKER,
            index=0,
            node=f"n{at}",
            devices=devices,
            milli_gpu=request.worker.milli_gpu,
            gpu_mib=0,
            milli_cpu=0,
            mib=0,
        )
        lease = Lease(lease=name, job=name, team=request.team, epoch=at + 1, tasks=(task,))
        step(ledger, LeaseGranted(lease))
    waits = (job("early", "many", 1, 2000, priority=1), job("late", "few", 2, 1000, priority=1))
    snapshot = Snapshot(
        version=ledger.version,
        ledger=ledger,
        pending=Queue.of(waits),
        running=RunningJobs.of(ledger, held),
    )
    decided = plan(snapshot, Policy(), 10)
    started = [(request.job, tasks[0].devices) for request, tasks in decided.admissions(snapshot)]
    assert started == [("late", (0,))]
    assert decided.preempted == ("two",)
