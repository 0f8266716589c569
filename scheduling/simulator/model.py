"""What a simulation reads and what it answers, by columns: one row per job, integers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from moorage.scheduling.constraints import ANYWHERE, Constraints
from moorage.scheduling.model import WHOLE, IntArray, NodeSpec

BoolArray = npt.NDArray[np.bool_]

JOB_CLASSES = ("cpu", "share", "1 GPU", "2 GPU", "4 GPU", "8 GPU", "other")
"""Rows of `Workload.job_class()`: what acceptance is shown by."""


class NotSimulated(ValueError):
    """A policy or an option that the simulator does not have, or not together."""


class Kind(StrEnum):
    """What the rows of a workload are."""

    ARRIVALS = "arrivals"
    """Jobs that never end (FGD's protocol): only the order counts, the times are 0."""
    JOBS = "jobs"
    """Jobs with a time of submission and a duration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """n jobs, sorted by `submit_ns` (ties keep the trace's order). Every IntArray is [n] int64.

    A job is a gang of `min_workers..workers` equal tasks of `milli_gpu` each (0, a fraction below 1000, or whole
    devices), `gpu_mib` per device (0 = the proportional share), `milli_cpu` and `mib` per task.
    """

    submit_ns: IntArray
    """From the first job's submission, which is 0."""
    duration_ns: IntArray
    """The truth, at `workers` workers. No policy but an oracle may read it. 0 in arrivals: they never end."""
    team: IntArray
    """Row in `teams`."""
    workers: IntArray
    min_workers: IntArray
    milli_gpu: IntArray
    gpu_mib: IntArray
    milli_cpu: IntArray
    mib: IntArray
    models: IntArray
    """Row in `model_sets`."""
    deadline_ns: IntArray
    """On the clock of `submit_ns`; 0 = none."""
    priority: IntArray
    names: tuple[str, ...] | None
    """None: nothing in the trace names a job; `name()` then says its row."""
    teams: tuple[str, ...]
    model_sets: tuple[tuple[str, ...], ...]
    """Allowed GPU models; row 0 is () = any."""
    kind: Kind
    places: tuple[Constraints, ...] = ()
    """What else the jobs of each row of `model_sets` want of the nodes; () = nothing."""

    def __len__(self) -> int:
        return len(self.submit_ns)

    def name(self, row: int) -> str:
        return f"job-{row}" if self.names is None else self.names[row]

    def place(self, row: int) -> Constraints:
        """Of row `row` of `model_sets`."""
        return self.places[row] if self.places else ANYWHERE

    def gpus(self) -> IntArray:
        """[n] milli-GPU of each job at all its workers."""
        return self.workers * self.milli_gpu

    def job_class(self) -> IntArray:
        """[n] row in JOB_CLASSES, by the GPUs of the whole job."""
        total = self.gpus()
        found = np.full(len(self), len(JOB_CLASSES) - 1, np.int64)
        found[total == 0] = 0
        found[(total > 0) & (total < WHOLE)] = 1
        for row, count in ((2, 1), (3, 2), (4, 4), (5, 8)):
            found[total == count * WHOLE] = row
        return found

    def take(self, rows: IntArray) -> Workload:
        """The jobs at `rows` in that order; a row may come twice. The order by `submit_ns` is the caller's care."""
        columns = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name in COLUMNS}
        names = None if self.names is None else tuple(self.names[row] for row in rows.tolist())
        return replace(self, names=names, **columns)


_NOT_COLUMNS = ("names", "teams", "model_sets", "kind", "places")
COLUMNS = tuple(f.name for f in fields(Workload) if f.name not in _NOT_COLUMNS)
"""The integer columns of a workload, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A row of the trace that is not simulated. `row` counts the file's data rows from 1; `code` is stable."""

    row: int
    name: str
    code: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalsResult:
    """One seed of the openb protocol under one policy. m arrivals, in order of arrival."""

    seed: int
    order: IntArray
    """[m] row of the workload."""
    accepted: BoolArray
    """[m] it got its place when it came. Nothing ever leaves."""
    allocation: npt.NDArray[np.float64]
    """[D + 1] percent of the GPUs held, at 0..D percent of demand: `openb.curve`."""
    elapsed_s: float
    """Seconds inside `plan()` alone, by the stopwatch given; 0.0 without one."""
    moves: int = 0
    """Tasks moved by defragmentation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsResult:
    """One policy over jobs that end. Every array is [n], by the workload's rows."""

    start_ns: IntArray
    """First start; -1 = never."""
    finish_ns: IntArray
    """-1 = never."""
    preemptions: IntArray
    longest_stint_ns: IntArray
    """The longest time the job was queued without a break: before its first start, or after a preemption."""
    lost_ns: IntArray
    """Run time lost to preemption."""
    elapsed_s: float
    """Seconds inside `plan()` alone, by the stopwatch given; 0.0 without one."""
    decisions: int = 0
    """Calls of `plan()`."""
    resizes: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    """How often each gang took workers or gave some up."""


def fits(workload: Workload, nodes: Sequence[NodeSpec]) -> BoolArray:
    """[n] whether the idle nodes could hold each job's minimum at once.

    Exact: the tasks of a gang are equal, so each node holds as many as its scarcest resource allows.
    """
    kinds: dict[tuple[str, int, int, int, int], int] = {}
    for node in nodes:
        key = (node.gpu_model, node.devices, node.device_mib, node.milli_cpu, node.mib)
        kinds[key] = kinds.get(key, 0) + 1
    first, which = shapes(workload)
    distinct = np.column_stack([getattr(workload, name)[first] for name in _SHAPE])
    held = np.zeros(len(distinct), np.int64)
    for row, (milli, gpu_mib, cpu, mib, models) in enumerate(distinct.tolist()):
        allowed = workload.model_sets[models]
        for (model, devices, device_mib, node_cpu, node_mib), count in kinds.items():
            if milli and allowed and model not in allowed:
                continue
            each = _tasks_on(milli, gpu_mib, cpu, mib, devices, device_mib, node_cpu, node_mib)
            held[row] += count * min(each, _MANY)
    return np.asarray(held[which] >= np.maximum(workload.min_workers, 1), np.bool_)


_MANY = 2**32
"""Tasks on one node: no more are counted, so that no sum overflows."""
_SHAPE = ("milli_gpu", "gpu_mib", "milli_cpu", "mib", "models")


def shapes(workload: Workload) -> tuple[IntArray, IntArray]:
    """(a row of each distinct task, [n] which of them each job has). Column by column: sorting whole rows is slow."""
    first, which = np.zeros(min(len(workload), 1), np.int64), np.zeros(len(workload), np.int64)
    for name in _SHAPE:
        values, at = np.unique(getattr(workload, name), return_inverse=True)
        _, first, which = np.unique(which * len(values) + at, return_index=True, return_inverse=True)
    return first, which


def _tasks_on(
    milli: int, gpu_mib: int, cpu: int, mib: int, devices: int, device_mib: int, node_cpu: int, node_mib: int
) -> int:
    """How many equal tasks one idle node holds; a task that asks for nothing counts as one."""
    bounds = [have // ask for ask, have in ((cpu, node_cpu), (mib, node_mib)) if ask]
    if milli >= WHOLE:
        bounds.append(devices // (milli // WHOLE) if gpu_mib <= device_mib else 0)
    elif milli:
        each = min(WHOLE // milli, device_mib // gpu_mib if gpu_mib else WHOLE)
        bounds.append(devices * each)
    return min(bounds, default=1)
