"""A workload's jobs as the planner's queue: the columns are cut from the workload's, no job becomes an object."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moorage.scheduling.model import IntArray, Shape
from moorage.scheduling.queue import Queue, TaskClass
from moorage.scheduling.simulator.model import Workload, shapes


@dataclass(frozen=True, slots=True)
class Jobs:
    """The task classes of a workload, found once; queues of any of its rows are then array work."""

    workload: Workload
    classes: tuple[TaskClass, ...]
    klass: IntArray
    """[n] row in `classes`."""

    @classmethod
    def of(cls, workload: Workload) -> Jobs:
        first, klass = shapes(workload)
        columns = (workload.milli_gpu, workload.gpu_mib, workload.milli_cpu, workload.mib, workload.models)
        table = np.stack([column[first] for column in columns], axis=1)
        classes = tuple(
            TaskClass(
                shape=Shape(milli_gpu=milli, gpu_mib=gpu_mib, milli_cpu=cpu, mib=mib),
                gpu_models=workload.model_sets[models],
                constraints=workload.place(models),
            )
            for milli, gpu_mib, cpu, mib, models in table.tolist()
        )
        return cls(workload, classes, klass)

    def queue(
        self,
        rows: IntArray,
        *,
        key: IntArray | None = None,
        limit_ns: IntArray | None = None,
        arrival: bool = False,
    ) -> Queue:
        """The jobs at `rows` as they wait. With `arrival` they came in the order of `rows`, whatever their times."""
        workload, at = self.workload, np.arange(len(rows))
        deadline = workload.deadline_ns[rows]
        return Queue(
            teams=workload.teams,
            classes=self.classes,
            team=workload.team[rows],
            head=np.full(len(rows), -1, np.int64),
            worker=self.klass[rows],
            workers=workload.workers[rows],
            min_workers=workload.min_workers[rows],
            priority=workload.priority[rows],
            submitted_ns=at if arrival else workload.submit_ns[rows],
            key=key,
            rank=at if arrival else rows,
            limit_ns=limit_ns,
            deadline_ns=deadline if deadline.any() else None,
        )
