"""A pool for the planner's benchmarks: a ledger, who runs in it by columns, and how a plan is applied to it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from moorage.kernels.placing_scores import Scoring
from moorage.scheduling.ledger import LeaseGranted, LeaseReleased, Ledger, NodeUp, TeamSet, step
from moorage.scheduling.model import (
    DeviceRule,
    IntArray,
    Lease,
    NodeSpec,
    Plan,
    Policy,
    Role,
    Shape,
    Snapshot,
    TaskPlacement,
    TeamSpec,
    unmask,
)
from moorage.scheduling.planner import plan
from moorage.scheduling.queue import Queue, TaskClass
from moorage.scheduling.running import RunningJobs
from moorage.scheduling.workspace import Workspace

SECOND = 10**9
MODEL = "A100"


class _Names(Sequence[str]):
    """A job's name is its row, spelled when somebody asks: as columns, a queue costs no strings."""

    def __init__(self, rows: IntArray) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: Any) -> Any:
        return f"job-{self.rows[at]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Jobs:
    """Jobs by columns, int64[n] each: gangs of `workers` equal tasks."""

    teams: tuple[str, ...]
    classes: tuple[TaskClass, ...]
    team: IntArray
    klass: IntArray
    workers: IntArray
    priority: IntArray

    def __len__(self) -> int:
        return len(self.team)

    def milli(self) -> IntArray:
        """[n] milli-GPU of each gang."""
        each = np.array([c.shape.milli_gpu for c in self.classes], np.int64)
        return np.asarray(each[self.klass] * self.workers, np.int64)

    def queue(self, rows: IntArray, submitted_ns: IntArray) -> Queue:
        """Those at `rows`, as they wait."""
        return Queue(
            names=_Names(rows),
            teams=self.teams,
            classes=self.classes,
            team=self.team[rows],
            head=np.full(len(rows), -1, np.int64),
            worker=self.klass[rows],
            workers=self.workers[rows],
            min_workers=self.workers[rows],
            priority=self.priority[rows],
            submitted_ns=submitted_ns,
            rank=rows,
        )


def classes(*milli: int) -> tuple[TaskClass, ...]:
    """Task classes of so many milli-GPU, with 4 CPUs and 16 GiB to a whole GPU."""
    return tuple(
        TaskClass(shape=Shape(milli_gpu=m, milli_cpu=4 * m, mib=16_384 * m // 1000), gpu_models=())
        for m in milli
    )


def amount(gpus: float) -> tuple[tuple[str, int], ...]:
    """GPUs of all models together, as a team's figure."""
    return (("*", round(gpus * 1000)),)


def pool(nodes: int, teams: Sequence[TeamSpec], gpus: int = 8) -> Ledger:
    """Equal nodes of `gpus` devices with room to spare of CPU and memory."""
    ledger = Ledger()
    for team in teams:
        step(ledger, TeamSet(team))
    for i in range(nodes):
        spec = NodeSpec(
            name=f"n{i:05d}",
            gpu_model=MODEL,
            devices=gpus,
            device_mib=81_920,
            milli_cpu=6000 * gpus,
            mib=24_576 * gpus,
        )
        step(ledger, NodeUp(spec))
    return ledger


@dataclass(slots=True)
class Fleet:
    """The jobs that run in a ledger. Every change goes through `step()`."""

    ledger: Ledger
    jobs: Jobs
    scoring: Scoring | None = None
    """None = best fit."""
    leases: dict[int, Lease] = field(default_factory=dict)
    """By row of `jobs`, in order of start."""
    tasks: dict[int, tuple[IntArray, IntArray]] = field(default_factory=dict)
    """(node rows, device masks) of each."""
    workspace: Workspace = field(default_factory=Workspace)
    """As the control plane keeps one."""
    rows: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Of the last `running()`: what a preempted name points into."""

    def running(self, fixed: Callable[[IntArray], IntArray] | None = None) -> RunningJobs:
        """Who may be asked to leave, the latest started first among equals; `fixed(rows)`: 1 = may not."""
        rows = np.fromiter(self.leases, np.int64, len(self.leases))
        self.rows, jobs, none = rows, self.jobs, np.zeros(0, np.int64)
        held = [self.tasks[row] for row in rows.tolist()]
        sizes = jobs.workers[rows]
        return RunningJobs(
            leases=tuple(map(str, rows.tolist())),
            teams=jobs.teams,
            team=jobs.team[rows],
            priority=jobs.priority[rows],
            key=np.zeros(len(rows), np.int64),
            fixed=np.zeros(len(rows), np.int64) if fixed is None else fixed(rows),
            lost=np.arange(len(rows), 0, -1, dtype=np.int64),
            classes=jobs.classes,
            first=np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes))),
            task_node=np.concatenate([node for node, _ in held]) if held else none,
            task_mask=np.concatenate([mask for _, mask in held]) if held else none,
            task_class=np.repeat(jobs.klass[rows], sizes),
        )

    def decide(
        self, queue: Queue, now_ns: int, running: RunningJobs | None, policy: Policy | None = None
    ) -> Plan:
        """One public `plan()`."""
        snapshot = Snapshot(
            version=self.ledger.version,
            ledger=self.ledger,
            pending=queue,
            running=running,
            device_rule=DeviceRule.FREE,
            scoring=self.scoring,
        )
        return plan(snapshot, policy or Policy(), now_ns, self.workspace)

    def apply(self, decided: Plan, waiting: IntArray) -> list[int]:
        """Release whom the plan pushes out, move whom it moves, start whom it admits; the rows that were pushed out."""
        out = [int(name) for name in decided.preempted]
        for row in out:
            self.release(row)
        moved = 0
        bounds = np.searchsorted(decided.task_admission, np.arange(len(decided.admitted) + 1)).tolist()
        node, mask = decided.task_node, decided.task_devices
        names, each = self.ledger.node_names, zip(node.tolist(), mask.tolist(), strict=True)
        tasks = list(each)
        shapes = [(c.shape.milli_gpu, c.shape.milli_cpu, c.shape.mib) for c in self.jobs.classes]
        mem = decided.task_gpu_mib.tolist()
        for a, at in enumerate(decided.admitted.tolist()):
            while moved < len(decided.moved) and decided.moved_after[moved] <= a:
                self._move(decided, moved)
                moved += 1
            row, begin, end = int(waiting[at]), bounds[a], bounds[a + 1]
            milli, cpu, mib = shapes[int(self.jobs.klass[row])]
            placed = tuple(
                TaskPlacement(
                    role=Role.WORKER,
                    index=t - begin,
                    node=names[tasks[t][0]],
                    devices=unmask(tasks[t][1]),
                    milli_gpu=milli,
                    gpu_mib=mem[t],
                    milli_cpu=cpu,
                    mib=mib,
                )
                for t in range(begin, end)
            )
            lease = Lease(
                lease=str(row),
                job=str(row),
                team=self.jobs.teams[int(self.jobs.team[row])],
                epoch=self.ledger.last_epoch + 1,
                tasks=placed,
            )
            step(self.ledger, LeaseGranted(lease))
            self.leases[row], self.tasks[row] = lease, (node[begin:end], mask[begin:end])
        return out

    def _move(self, decided: Plan, at: int) -> None:
        """Release one job and start it where the plan says: the ledger refuses it when it does not fit."""
        row = int(decided.moved[at])
        held = self.leases[row]
        self.release(row)
        node, mask = decided.moved_node[at : at + 1], decided.moved_devices[at : at + 1]
        place = {"node": self.ledger.node_names[int(node[0])], "devices": unmask(int(mask[0]))}
        task = replace(held.tasks[0], **place, gpu_mib=int(decided.moved_gpu_mib[at]))
        lease = replace(held, epoch=self.ledger.last_epoch + 1, tasks=(task,))
        step(self.ledger, LeaseGranted(lease))
        self.leases[row], self.tasks[row] = lease, (node, mask)

    def release(self, row: int) -> None:
        lease = self.leases.pop(row)
        del self.tasks[row]
        step(self.ledger, LeaseReleased(lease.lease, lease.epoch))


def took(work: Callable[[], object]) -> tuple[float, float]:
    """(wall, processor) seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def load() -> str:
    """How busy the machine is: what a wall time means little without."""
    return f"load {os.getloadavg()[0]:.1f}"
