"""The waiting jobs, by columns: what `plan()` reads of them.

A queue of a hundred thousand jobs is a dozen integer arrays and a few hundred distinct task shapes, so that a decision
costs array work and not a walk over objects. Rows keep the order in which they were given; `plan()` orders them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from moorage.scheduling.constraints import ANYWHERE, Constraints
from moorage.scheduling.model import IntArray, JobRequest, Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskClass:
    """What is equal for many tasks: their shape, and on which nodes they may run."""

    shape: Shape
    gpu_models: tuple[str, ...] = ()
    """Allowed GPU models; empty = any."""
    constraints: Constraints = ANYWHERE
    strict: bool = False
    """Without the nodes that are only a last resort."""

    @classmethod
    def of(cls, request: JobRequest, shape: Shape) -> TaskClass:
        """The class of a task of that shape of a job."""
        return cls(shape=shape, gpu_models=request.gpu_models, constraints=request.constraints)


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """R waiting jobs. Every array is int64[R]."""

    requests: tuple[JobRequest, ...] = ()
    """The jobs as people read them, by row. Empty where the caller keeps its own records (the simulator)."""
    names: Sequence[str] = ()
    teams: tuple[str, ...] = ()
    """The distinct team names that `team` points into."""
    classes: tuple[TaskClass, ...] = ()
    """The distinct task classes that `head` and `worker` point into."""
    team: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    head: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Class of the entrypoint's task, -1 when it needs no placement."""
    worker: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Class of the workers, -1 when there are none."""
    workers: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    min_workers: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    priority: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    submitted_ns: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    key: IntArray | None = None
    """A queueing policy's index: lower goes first at equal priority; None = in order of submission."""
    rank: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Breaks the last tie: the rank of the job's id."""
    limit_ns: IntArray | None = None
    """How long each may run at the most, 0 where it may for ever; None = nobody has a limit."""
    deadline_ns: IntArray | None = None
    """When each must have ended, 0 = it need not; None = nobody need."""

    def __len__(self) -> int:
        return len(self.team)

    @classmethod
    def of(cls, requests: Sequence[JobRequest]) -> Queue:
        """The columns of some requests. A worker without any need takes no place, and there are none of it."""
        classes: dict[TaskClass, int] = {}
        teams: dict[str, int] = {}
        rows = np.zeros((len(requests), 9), np.int64)
        for i, request in enumerate(requests):
            head, worker = _class(request, request.head, classes), _class(request, request.worker, classes)
            rows[i] = (
                teams.setdefault(request.team, len(teams)),
                head,
                worker,
                0 if worker < 0 else request.workers,
                0 if worker < 0 else request.min_workers,
                request.priority,
                request.submitted_ns,
                request.max_runtime_ns,
                request.deadline_ns,
            )
        names = tuple(request.job for request in requests)
        rank = np.empty(len(names), np.int64)
        rank[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
        columns = (np.ascontiguousarray(c) for c in rows.T)
        team, head_, worker_, workers, least, priority, submitted, limit, deadline = columns
        return cls(
            requests=tuple(requests),
            names=names,
            teams=tuple(teams),
            classes=tuple(classes),
            team=team,
            head=head_,
            worker=worker_,
            workers=workers,
            min_workers=least,
            priority=priority,
            submitted_ns=submitted,
            rank=rank,
            limit_ns=limit if limit.any() else None,
            deadline_ns=deadline if deadline.any() else None,
        )

    def milli(self) -> IntArray:
        """[C] milli-GPU of one task of each class."""
        return np.array([c.shape.milli_gpu for c in self.classes], np.int64)

    def least(self) -> IntArray:
        """[R] milli-GPU of the smallest gang that may start: the head and `min_workers`."""
        milli = np.append(self.milli(), 0)  # class -1 reads the last entry
        least: IntArray = milli[self.head] + self.min_workers * milli[self.worker]
        return least


def _class(request: JobRequest, shape: Shape, classes: dict[TaskClass, int]) -> int:
    if shape.empty:
        return -1
    return classes.setdefault(TaskClass.of(request, shape), len(classes))
