"""The jobs that hold leases, by columns: whom a plan may ask to leave, and what each one's index is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from moorage.kernels import preemption
from moorage.scheduling.ledger import Ledger
from moorage.scheduling.model import IntArray
from moorage.scheduling.queue import TaskClass


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
    lost: IntArray = field(default_factory=_none)
    """What would be lost if it left now (milli-GPU seconds since its last checkpoint): ties go to the least."""
    classes: tuple[TaskClass, ...] = ()
    first: IntArray = field(default_factory=lambda: np.zeros(1, np.int64))
    task_node: IntArray = field(default_factory=_none)
    task_mask: IntArray = field(default_factory=_none)
    task_class: IntArray = field(default_factory=_none)
    """Rows of `classes`."""

    def __len__(self) -> int:
        return len(self.team)

    def columns(self, ledger: Ledger, offset: int) -> preemption.Running:
        """For the admission loop. `offset`: where this table's classes begin in the decision's."""
        known = np.array([ledger.team_row.get(name, -1) for name in self.teams], np.int64)
        milli = np.array([c.shape.milli_gpu for c in self.classes], np.int64)
        ends = np.concatenate((np.zeros(1, np.int64), np.cumsum(milli[self.task_class])))
        return preemption.Running(
            team=known[self.team] if len(self) else self.team,
            priority=self.priority,
            key=self.key,
            fixed=self.fixed.astype(np.bool_),
            taken=np.zeros(len(self), np.bool_),
            asked=np.zeros(len(self), np.int64),
            order=np.lexsort((self.lost, -self.key, self.priority)),
            milli=ends[self.first[1:]] - ends[self.first[:-1]],
            first=self.first,
            node=self.task_node,
            mask=self.task_mask,
            klass=self.task_class + offset,
        )
