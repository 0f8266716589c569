"""A pool in which plans are applied one after the other, on a clock of its own: for tests of who leaves for whom."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from moorage.scheduling.ledger import LeaseGranted, LeaseReleased, LeaseResized, Ledger, NodeUp, TeamSet, step
from moorage.scheduling.model import (
    DeviceRule,
    IntArray,
    JobRequest,
    Lease,
    NodeSpec,
    Plan,
    Policy,
    Shape,
    Snapshot,
    TaskPlacement,
    TeamSpec,
)
from moorage.scheduling.planner import plan
from moorage.scheduling.queue import Queue
from moorage.scheduling.running import RunningJobs
from moorage.scheduling.validate import check


def team(name: str, quota: int | None = None, limit: int | None = None, **more: object) -> TeamSpec:
    """GPUs."""
    quotas = () if quota is None else (("*", quota * 1000),)
    limits = () if limit is None else (("*", limit * 1000),)
    return TeamSpec(name=name, quota=quotas, limit=limits, **more)  # type: ignore[arg-type]


def job(name: str, owner: str, workers: int, milli: int = 1000, **more: object) -> JobRequest:
    """Of so many workers, all of them its minimum unless told otherwise."""
    figures = {"preemptible": True, "min_workers": workers, "submitted_ns": 0, **more}
    return JobRequest(job=name, team=owner, worker=Shape(milli_gpu=milli), workers=workers, **figures)  # type: ignore[arg-type]


LONG_AGO = -(10**15)


@dataclass
class RunningPool:
    """`waits` and `runs` by job; `since[job]` is when it last started."""

    ledger: Ledger
    policy: Policy = field(default_factory=Policy)
    keys: dict[str, int] = field(default_factory=dict)
    """Job -> index; 0 where not named."""
    now: int = 0
    waits: dict[str, JobRequest] = field(default_factory=dict)
    runs: dict[str, JobRequest] = field(default_factory=dict)
    since: dict[str, int] = field(default_factory=dict)
    grown: dict[str, int] = field(default_factory=dict)
    """When each gang last took workers, and when it last gave some up."""
    shrunk: dict[str, int] = field(default_factory=dict)
    snapshot: Snapshot | None = None
    """Of the last plan."""

    @classmethod
    def of(cls, devices: Iterable[int], teams: Iterable[TeamSpec], **more: object) -> RunningPool:
        """Nodes n0, n1, ... with so many devices."""
        ledger = Ledger()
        for n, count in enumerate(devices):
            step(ledger, NodeUp(NodeSpec(name=f"n{n}", gpu_model="A", devices=count)))
        for spec in teams:
            step(ledger, TeamSet(spec))
        return cls(ledger, **more)  # type: ignore[arg-type]

    def submit(self, *requests: JobRequest) -> None:
        self.waits |= {request.job: replace(request, submitted_ns=self.now) for request in requests}

    def running(self) -> RunningJobs:
        found = RunningJobs.of(self.ledger, self.runs)
        return replace(
            found,
            key=np.array([self.keys.get(name, 0) for name in self.runs], np.int64),
            grown_ns=np.array([self.now - self.grown.get(name, LONG_AGO) for name in self.runs], np.int64),
            shrunk_ns=np.array([self.now - self.shrunk.get(name, LONG_AGO) for name in self.runs], np.int64),
            ran_ns=np.array([self.now - self.since[name] for name in self.runs], np.int64),
        )

    def decide(self, **columns: IntArray) -> Plan:
        """A plan, not applied. `columns` of the running jobs are given as they are."""
        queue = Queue.of(tuple(self.waits.values()))
        self.snapshot = Snapshot(
            version=self.ledger.version,
            ledger=self.ledger,
            pending=replace(queue, key=np.array([self.keys.get(name, 0) for name in self.waits], np.int64)),
            running=replace(self.running(), **columns),
            device_rule=DeviceRule.FREE,
        )
        return plan(self.snapshot, self.policy, self.now)

    def apply(self, decided: Plan) -> None:
        """As the order of a plan has it: who leaves, then who starts. LedgerError if it gives what is not there."""
        assert self.snapshot is not None
        for name in decided.preempted:
            self.end(name, again=True)
        for name, kept in zip(decided.shrunk, decided.shrunk_tasks.tolist(), strict=True):
            self.resize(name, kept)
        for name, more in decided.growth(self.snapshot):
            self.resize(name, len(self.ledger.leases[name].tasks), more)
        for request, tasks in decided.admissions(self.snapshot):
            self.start(request, tasks)
        check(self.ledger)

    def start(self, request: JobRequest, tasks: tuple[TaskPlacement, ...]) -> None:
        epoch = self.ledger.last_epoch + 1
        lease = Lease(lease=request.job, job=request.job, team=request.team, epoch=epoch, tasks=tasks)
        step(self.ledger, LeaseGranted(lease))
        self.runs[request.job] = self.waits.pop(request.job)
        self.since[request.job] = self.now

    def resize(self, name: str, kept: int, more: tuple[TaskPlacement, ...] = ()) -> None:
        epoch, granted = self.ledger.leases[name].epoch, self.ledger.last_epoch + 1
        step(self.ledger, LeaseResized(name, epoch, granted, kept, more))
        (self.grown if more else self.shrunk)[name] = self.now

    def end(self, name: str, *, again: bool = False) -> None:
        """Its lease is released; with `again`, it waits again."""
        step(self.ledger, LeaseReleased(name, self.ledger.leases[name].epoch))
        request = self.runs.pop(name)
        if again:
            self.waits[name] = request

    def go(self, after_ns: int = 0) -> Plan:
        """One decision, so much later, applied."""
        self.now += after_ns
        decided = self.decide()
        self.apply(decided)
        return decided

    def workers(self) -> dict[str, int]:
        """Of each running job."""
        return {name: self.ledger.leases[name].workers for name in self.runs}

    def holds(self, name: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """(node, devices) of each task of a running job."""
        return tuple((task.node, task.devices) for task in self.ledger.leases[name].tasks)
