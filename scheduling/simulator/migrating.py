"""Arrivals that never leave, with running jobs moved aside for those that would not fit: the openb protocol with a
migration budget.

Every decision is a public `plan()` over the next arrivals in their order; what it decides is carried out on the ledger
one event after another, moves and starts in the plan's order, so that the ledger itself checks that each fits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from moorage.kernels.placing_scores import Scoring
from moorage.scheduling.ledger import LeaseGranted, LeaseReleased, Ledger, step
from moorage.scheduling.model import (
    UNLIMITED,
    WHOLE,
    DeviceRule,
    IntArray,
    Lease,
    Plan,
    Policy,
    Role,
    Snapshot,
    TaskPlacement,
    unmask,
)
from moorage.scheduling.planner import plan
from moorage.scheduling.running import RunningJobs
from moorage.scheduling.simulator.model import BoolArray
from moorage.scheduling.simulator.queueing import Jobs
from moorage.scheduling.workspace import Workspace

BATCH = 128
"""Arrivals in one decision. Those that start in it cannot be moved in it."""


@dataclass(slots=True)
class Migrating:
    """One seed. `rows` are the arrivals, as rows of the workload."""

    ledger: Ledger
    jobs: Jobs
    rows: IntArray
    rule: DeviceRule
    scoring: Scoring
    share: float
    """Moves made, at any time, are at most this share of the tasks placed by then."""
    leases: dict[int, Lease] = field(default_factory=dict)
    """By arrival, in order of their first start."""
    place: dict[int, tuple[int, int]] = field(default_factory=dict)
    """By arrival: (node row, device mask)."""
    moves: int = 0

    def run(self, stopwatch: Callable[[], float] | None) -> tuple[BoolArray, float]:
        """(accepted by arrival, seconds inside `plan()`)."""
        accepted, elapsed = np.zeros(len(self.rows), np.bool_), 0.0
        workspace = Workspace()
        for first in range(0, len(self.rows), BATCH):
            snapshot = Snapshot(
                version=self.ledger.version,
                ledger=self.ledger,
                pending=self.jobs.queue(self.rows[first : first + BATCH], arrival=True),
                device_rule=self.rule,
                running=self._running(),
                scoring=self.scoring,
            )
            policy = self._policy(int(self.share * len(self.leases)))
            begun = stopwatch() if stopwatch else 0.0
            decided = plan(snapshot, policy, 0, workspace)
            elapsed += stopwatch() - begun if stopwatch else 0.0
            self._carry_out(decided, first)
            accepted[first + decided.admitted] = True
        return accepted, elapsed

    def _policy(self, allowed: int) -> Policy:
        """Half of the moves are for any job; the other half must bring a GPU each, one move for most of them."""
        return Policy(
            hold_after_ns=UNLIMITED,
            moves=allowed - self.moves,
            move_for_all=True,
            move_least=WHOLE if 2 * self.moves > allowed else 0,
        )

    def _running(self) -> RunningJobs:
        count = len(self.leases)
        at = np.fromiter(self.leases, np.int64, count)
        place = np.array([self.place[arrival] for arrival in self.leases], np.int64).reshape(-1, 2)
        none = np.zeros(count, np.int64)
        return RunningJobs(
            leases=tuple(map(str, at.tolist())),
            teams=self.jobs.workload.teams,
            team=self.jobs.workload.team[self.rows[at]],
            priority=none,
            key=none,
            fixed=none + 1,
            movable=none + 2,
            lost=none,
            classes=self.jobs.classes,
            first=np.arange(count + 1),
            task_node=np.ascontiguousarray(place[:, 0]),
            task_mask=np.ascontiguousarray(place[:, 1]),
            task_class=self.jobs.klass[self.rows[at]],
        )

    def _carry_out(self, decided: Plan, first: int) -> None:
        """Moves and starts in the order of the plan. Each job is one task."""
        at = 0
        for a, row in enumerate(decided.admitted.tolist()):
            while at < len(decided.moved) and decided.moved_after[at] <= a:
                self._move(decided, at)
                at += 1
            node, mask = int(decided.task_node[a]), int(decided.task_devices[a])
            self._grant(first + row, node, mask, int(decided.task_gpu_mib[a]))

    def _move(self, decided: Plan, at: int) -> None:
        arrival = int(decided.moved[at])
        lease = self.leases[arrival]
        step(self.ledger, LeaseReleased(lease.lease, lease.epoch))
        node, mask = int(decided.moved_node[at]), int(decided.moved_devices[at])
        self._grant(arrival, node, mask, int(decided.moved_gpu_mib[at]))
        self.moves += 1

    def _grant(self, arrival: int, node: int, mask: int, gpu_mib: int) -> None:
        row = int(self.rows[arrival])
        shape = self.jobs.classes[int(self.jobs.klass[row])].shape
        task = TaskPlacement(
            role=Role.WORKER,
            index=0,
            node=self.ledger.node_names[node],
            devices=unmask(mask),
            milli_gpu=shape.milli_gpu,
            gpu_mib=gpu_mib,
            milli_cpu=shape.milli_cpu,
            mib=shape.mib,
        )
        lease = Lease(
            lease=str(arrival),
            job=str(arrival),
            team=self.jobs.workload.teams[int(self.jobs.workload.team[row])],
            epoch=self.ledger.last_epoch + 1,
            tasks=(task,),
        )
        step(self.ledger, LeaseGranted(lease))
        self.leases[arrival], self.place[arrival] = lease, (node, mask)
