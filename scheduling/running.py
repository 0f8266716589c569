"""The jobs that hold leases, by columns: whom a plan may ask to leave, and what each one's index is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from moorage.kernels import moving, preemption
from moorage.scheduling.ledger import Ledger
from moorage.scheduling.model import IntArray, JobRequest, Policy, Role
from moorage.scheduling.queue import TaskClass

_OPTIONAL = ("ran_ns", "least_run_ns", "movable")
"""Columns by job that may be left out."""


def _none() -> IntArray:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningJobs:
    """V running jobs. Arrays are int64[V] but for the task columns, whose rows `first[v]..first[v+1]` are job v's."""

    leases: Sequence[str] = ()
    """The lease of each job, as the plan will name it."""
    teams: tuple[str, ...] = ()
    team: IntArray = field(default_factory=_none)
    priority: IntArray = field(default_factory=_none)
    key: IntArray = field(default_factory=_none)
    """The same index as `Queue.key`."""
    fixed: IntArray = field(default_factory=_none)
    """1 = may not be asked to leave."""
    ran_ns: IntArray | None = None
    """How long each runs since it last started or resumed, held against `Policy.least_run_ns`; None = long enough."""
    least_run_ns: IntArray | None = None
    """How long each must run at least, where that is more than the policy's; None = nothing of its own."""
    movable: IntArray | None = None
    """1 = may be moved: stopped, and started again elsewhere at once; None = nobody."""
    lost: IntArray = field(default_factory=_none)
    """What would be lost if it left now (milli-GPU seconds since its last checkpoint): ties go to the least, then to
    the smallest job."""
    classes: tuple[TaskClass, ...] = ()
    first: IntArray = field(default_factory=lambda: np.zeros(1, np.int64))
    task_node: IntArray = field(default_factory=_none)
    task_mask: IntArray = field(default_factory=_none)
    task_class: IntArray = field(default_factory=_none)
    """Rows of `classes`."""

    @classmethod
    def of(cls, ledger: Ledger, jobs: Mapping[str, JobRequest]) -> RunningJobs:
        """The leases that `jobs` names (by lease id) as the ledger has them. What is not preemptible stays fixed."""
        leases = [ledger.leases[name] for name in jobs]
        classes: dict[TaskClass, int] = {}
        rows: list[tuple[int, int, int]] = []
        first = [0]
        for lease, request in zip(leases, jobs.values(), strict=True):
            for task in lease.tasks:
                shape = request.head if task.role is Role.HEAD else request.worker
                wanted = TaskClass.of(request, shape)
                mask = sum(1 << d for d in task.devices)
                rows.append((ledger.node_row[task.node], mask, classes.setdefault(wanted, len(classes))))
            first.append(len(rows))
        table = np.array(rows, np.int64).reshape(-1, 3)
        teams = tuple(dict.fromkeys(lease.team for lease in leases))
        none = np.zeros(len(leases), np.int64)
        return cls(
            leases=tuple(jobs),
            teams=teams,
            team=np.array([teams.index(lease.team) for lease in leases], np.int64),
            priority=np.array([request.priority for request in jobs.values()], np.int64),
            key=none,
            fixed=np.array([not request.preemptible for request in jobs.values()], np.int64),
            lost=none,
            classes=tuple(classes),
            first=np.array(first, np.int64),
            task_node=np.ascontiguousarray(table[:, 0]),
            task_mask=np.ascontiguousarray(table[:, 1]),
            task_class=np.ascontiguousarray(table[:, 2]),
        )

    def __len__(self) -> int:
        return len(self.team)

    def take(self, stays: npt.NDArray[np.bool_]) -> RunningJobs:
        """The jobs marked in `stays`."""
        counts = np.diff(self.first)
        tasks = np.repeat(stays, counts)
        of_jobs = ("team", "priority", "key", "fixed", "lost", *_OPTIONAL)
        columns = {name: getattr(self, name)[stays] for name in of_jobs if getattr(self, name) is not None}
        columns |= {name: getattr(self, name)[tasks] for name in ("task_node", "task_mask", "task_class")}
        return replace(
            self,
            leases=tuple(lease for lease, stay in zip(self.leases, stays, strict=True) if stay),
            first=np.concatenate((np.zeros(1, np.int64), np.cumsum(counts[stays]))),
            **columns,
        )

    def moves(self, budget: int, nodes: int) -> moving.Moves:
        """For moving jobs aside: at most `budget` of them in one plan."""
        count = len(self)
        return moving.Moves(
            may=np.zeros(count, np.bool_) if self.movable is None else self.movable.astype(np.bool_),
            moved=np.zeros(count, np.bool_),
            budget=np.array([budget], np.int64),
            old_node=np.full(count, -1, np.int64),
            old_mask=np.zeros(count, np.int64),
            elsewhere=np.ones(nodes, np.bool_),
            here=np.zeros(nodes, np.bool_),
            tried=np.zeros(nodes, np.bool_),
        )

    def young(self, policy: Policy) -> npt.NDArray[np.bool_]:
        """[V] has not run for its least time yet."""
        if self.ran_ns is None:
            return np.zeros(len(self), np.bool_)
        least = np.full(len(self), policy.least_run_ns)
        return self.ran_ns < (least if self.least_run_ns is None else np.maximum(least, self.least_run_ns))

    def columns(self, ledger: Ledger, at: IntArray, policy: Policy) -> preemption.Running:
        """For the admission loop. `at`: this table's classes as the decision counts them."""
        known = np.array([ledger.team_row.get(name, -1) for name in self.teams], np.int64)
        each = np.array([c.shape.milli_gpu for c in self.classes], np.int64)
        ends = np.concatenate((np.zeros(1, np.int64), np.cumsum(each[self.task_class])))
        milli = ends[self.first[1:]] - ends[self.first[:-1]]
        return preemption.Running(
            team=known[self.team] if len(self) else self.team,
            priority=self.priority,
            key=self.key,
            fixed=self.fixed.astype(np.bool_),
            young=self.young(policy),
            taken=np.zeros(len(self), np.bool_),
            asked=np.zeros(len(self), np.int64),
            order=np.lexsort((milli, self.lost, -self.key, self.priority)),
            milli=milli,
            first=self.first,
            node=self.task_node.copy(),
            mask=self.task_mask.copy(),
            klass=at[self.task_class],
        )
