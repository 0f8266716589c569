"""The words of the core: what is asked, what is held, and what was decided. Why something waits: `reasons`.

Units everywhere: milli-GPU (1000 = one device), MiB, milli-CPU, nanoseconds. All integers.
Records here are what people read and pass on; what is many lives in integer arrays (`ledger`, `Plan`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moorage.scheduling.amounts import ANY_MODEL as ANY_MODEL
from moorage.scheduling.amounts import UNLIMITED as UNLIMITED
from moorage.scheduling.amounts import WHOLE as WHOLE
from moorage.scheduling.amounts import gpus as gpus
from moorage.scheduling.constraints import ANYWHERE, NO_POWER, NO_TRAITS, Constraints, Power, Traits
from moorage.scheduling.reasons import Reason as Reason
from moorage.scheduling.reasons import ReasonCode as ReasonCode

if TYPE_CHECKING:
    from moorage.kernels.placing_scores import Scoring
    from moorage.scheduling.accounts import Accounts
    from moorage.scheduling.ledger import Ledger
    from moorage.scheduling.queue import Queue
    from moorage.scheduling.running import RunningJobs
    from moorage.scheduling.words import Words

MAX_DEVICES = 62
"""Devices per node: a task's devices are one int64 bit mask."""

DAY_NS = 24 * 3600 * 10**9

IntArray = npt.NDArray[np.int64]


class DeviceRule(StrEnum):
    """Who picks the device on a node."""

    RAYLET = "raylet"
    """Ray's raylet: whole GPUs take the lowest free indexes, a fraction the smallest sufficient remainder,
    ties to the lowest index. A plan may only contain starts which that rule realises."""
    FREE = "free"
    """The planner picks any device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What one task takes. `milli_gpu` is 0, a fraction below 1000, or whole devices (a multiple of 1000).

    `gpu_mib` is per device touched; 0 means the proportional share for a fraction. A whole device is always
    held with all its memory.
    """

    milli_gpu: int = 0
    gpu_mib: int = 0
    milli_cpu: int = 0
    mib: int = 0

    def __post_init__(self) -> None:
        if min(self.milli_gpu, self.gpu_mib, self.milli_cpu, self.mib) < 0:
            raise ValueError(f"a shape cannot be negative: {self}")
        if self.milli_gpu > WHOLE and self.milli_gpu % WHOLE:
            raise ValueError(f"more than one GPU must be whole devices, got {self.milli_gpu} milli-GPU")
        if self.milli_gpu > MAX_DEVICES * WHOLE:
            raise ValueError(f"a task can hold at most {MAX_DEVICES} devices, got {self.milli_gpu} milli-GPU")

    @property
    def empty(self) -> bool:
        return not (self.milli_gpu or self.milli_cpu or self.mib)

    @property
    def devices(self) -> int:
        """How many devices the task touches."""
        return -(-self.milli_gpu // WHOLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """What the planner knows of a waiting job: a gang of `min_workers..workers` equal tasks plus a head.

    The head is the entrypoint (driver); an empty head needs no placement. `submitted_ns` is control time.
    A sublease (growth of a running job) is the same request with `parent` set to the holding job.
    """

    job: str
    team: str
    submitted_ns: int
    priority: int = 0
    head: Shape = field(default_factory=Shape)
    worker: Shape = field(default_factory=Shape)
    workers: int = 0
    min_workers: int = 0
    gpu_models: tuple[str, ...] = ()
    """GPU models its tasks may run on; empty = any."""
    constraints: Constraints = ANYWHERE
    """What else it wants of the nodes."""
    preemptible: bool = False
    max_runtime_ns: int = 0
    """It is stopped when it has run so long; 0 = never. Also the estimate of its run time: nobody knows better."""
    deadline_ns: int = 0
    """Control time by which it should have ended; 0 = none. An order, not a promise."""
    parent: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.min_workers <= self.workers:
            raise ValueError(f"need 0 <= min_workers <= workers, got {self.min_workers} and {self.workers}")

    def milli_gpu(self, workers: int | None = None) -> int:
        """Milli-GPU of the whole gang at `workers` (all of them when None)."""
        count = self.workers if workers is None else workers
        return self.head.milli_gpu + count * self.worker.milli_gpu


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """A machine as the core sees it. `name` is stable over restarts (Ray's node ids are not)."""

    name: str
    gpu_model: str = ""
    devices: int = 0
    device_mib: int = 0
    milli_cpu: int = 0
    mib: int = 0
    traits: Traits = NO_TRAITS

    def __post_init__(self) -> None:
        if not 0 <= self.devices <= MAX_DEVICES:
            raise ValueError(f"node {self.name}: 0..{MAX_DEVICES} devices, got {self.devices}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamSpec:
    """A tenant. Amounts are milli-GPU by GPU model; `ANY_MODEL` counts all models together.

    `quota` is guaranteed, `limit` a hard cap (absent = no cap), `lend` how much of an idle quota others may
    use (absent = all of it), `borrow` how much beyond its quota the team may take (absent = all there is).
    """

    name: str
    parent: str = ""
    quota: tuple[tuple[str, int], ...] = ()
    limit: tuple[tuple[str, int], ...] = ()
    lend: tuple[tuple[str, int], ...] = ()
    borrow: tuple[tuple[str, int], ...] = ()
    weight: int = 1


class Role(StrEnum):
    HEAD = "head"
    WORKER = "worker"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPlacement:
    """Where one task of a gang runs and what it holds there. `gpu_mib` is per device held."""

    role: Role
    index: int
    node: str
    devices: tuple[int, ...]
    milli_gpu: int
    gpu_mib: int
    milli_cpu: int
    mib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right of `job` to named devices. `epoch` is the fencing token: higher wins, never reused."""

    lease: str
    job: str
    team: str
    epoch: int
    tasks: tuple[TaskPlacement, ...]

    @property
    def milli_gpu(self) -> int:
        return sum(t.milli_gpu for t in self.tasks)

    @property
    def workers(self) -> int:
        return sum(t.role is Role.WORKER for t in self.tasks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The knobs of one planning decision.

    `hold_after_ns`: once a job in its quota has waited this long and lacks only room, nothing ordered after
    it may take room it could use: the bound that keeps large gangs from starving behind small jobs.
    """

    hold_after_ns: int = 600 * 10**9
    moves: int = 0
    """How many running jobs one plan may move aside to make a node for a task of several devices."""
    move_for_all: bool = False
    """Jobs are also moved for gangs and for tasks of one device or less; for a head with workers with `move_gangs`."""
    move_gangs: bool = False
    """Gangs are moved too, whole or the tasks that are in the way: at the price of a restart of all of it."""
    move_least: int = 0
    """Milli-GPU of the smallest gang for which jobs are moved."""
    half_life_ns: int = 0
    """How fast what teams have used (`Snapshot.accounts`) is forgotten in their order; 0 = it does not count."""
    sharing: bool = True
    """Where nobody has a quota, teams share the pool by weight; else all jobs go by submission (or their index)."""
    margin: int = 0
    """How far ahead of a running job's index a waiting job's must be to push it out."""
    least_run_ns: int = 0
    """Who started or resumed a shorter time ago is not pushed out, so that no start is paid for in vain."""
    reclaim_waits: bool = False
    """Lent quota is taken back after that time only, too; else at any time."""
    grow: bool = True
    """Running gangs that want more workers take them where nobody waits for the room."""
    settle_ns: int = 600 * 10**9
    """A gang that took more workers a shorter time ago gives none up, but for a reclaim as above; one that started,
    took some or gave some up a shorter time ago takes none."""
    start_small: bool = False
    """While more is asked for than is free, who starts begins at its least size: workers beyond it do less for their
    gang than the first of another one. What is left over goes to those who run, once they have settled."""
    max_admissions: int = 2**31
    reservations: int = 1
    """How many waiting jobs that lack only room get a time and nodes at which they start, by the known ends of running
    jobs (`RunningJobs.ends_ns`), so that only who does not delay them may overtake them: 1 = EASY backfill, UNLIMITED =
    conservative backfill, 0 = none. Where none can be made, `hold_after_ns` is what keeps a job from starving."""
    window_ns: int = DAY_NS
    """How far ahead is reserved."""
    urgent_ns: int = 3600 * 10**9
    """A job goes first within its priority when the time left for it to start is shorter, unless it is too late."""
    topology: tuple[str, ...] = ()
    """Levels of the topology, from the outermost: labels whose values together name a domain (region, zone, rack)."""
    power: Power = NO_POWER


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The whole input of one decision. `version` is the ledger's at the time; a plan made from an older one
    is re-checked by the applier. `plan()` never changes what a snapshot refers to."""

    version: int
    ledger: Ledger
    pending: Queue
    device_rule: DeviceRule = DeviceRule.RAYLET
    running: RunningJobs | None = None
    """Who may be asked to leave; None = nobody."""
    accounts: Accounts | None = None
    """What teams have used before now, and their budgets; None = nothing, and none."""
    scoring: Scoring | None = None
    """How placements are scored, tables included (`scheduling.packing.scorings`); None = best fit."""
    drained: tuple[str, ...] = ()
    """Nodes that are down in the ledger only because somebody said so: for words and suggestions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Row `row` of the queue can start at `start_ns` on these nodes (rows of the ledger, one entry per task), by the
    known ends of running jobs."""

    row: int
    start_ns: int
    nodes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The whole output of one decision, by columns.

    `admitted[a]` is a row of `snapshot.pending`, started with `workers[a]` workers. Task columns have one
    entry per placed task, in start order: `task_admission` points into `admitted`, `task_index` is -1 for the
    head, `task_node` a row of the ledger's nodes, `task_devices` a bit mask. `deferred[i]` waits for
    `reasons[i]`, drawn from the snapshot when first asked for.
    """

    version: int
    admitted: IntArray
    workers: IntArray
    task_admission: IntArray
    task_index: IntArray
    task_node: IntArray
    task_devices: IntArray
    task_milli: IntArray
    task_gpu_mib: IntArray
    task_milli_cpu: IntArray
    task_mib: IntArray
    deferred: IntArray
    words: Words
    preempted: tuple[str, ...] = ()
    """Leases that must be released before the plan's admissions hold."""
    preempted_for: tuple[int, ...] = ()
    """By lease in `preempted`: the row of the queue that it is pushed out for, always an admitted one."""
    preempted_by: tuple[str, ...] = ()
    """By lease in `preempted`, the rule: "reclaim", "priority" or "index"."""
    shrunk: tuple[str, ...] = ()
    """Leases of gangs that give up workers before the plan's admissions hold: `shrunk[i]` keeps the first
    `shrunk_tasks[i]` of its tasks."""
    shrunk_tasks: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    shrunk_for: tuple[tuple[int, ...], ...] = ()
    """By lease in `shrunk`: the rows of the queue that its workers are taken for, all admitted ones."""
    shrunk_by: tuple[str, ...] = ()
    """By lease in `shrunk`, the rule for the first of these."""
    grown: tuple[str, ...] = ()
    """Leases of gangs that take more workers: worker i goes to `grown[grown_of[i]]`, on `grown_node[i]`,
    `grown_devices[i]` with `grown_gpu_mib[i]` of each. A plan that grows anybody takes nothing from anybody."""
    grown_of: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    grown_node: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    grown_devices: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    grown_gpu_mib: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    moved: tuple[str, ...] = ()
    """Leases that move, in order, once `moved_after[i]` admissions of the plan have started: task `moved_task[i]` of a
    lease (from 0) goes to `moved_node[i]`, `moved_devices[i]`. A gang has an entry for each task with a new place, one
    after another: all of it is released, and granted again with these. Carried out in that order each fits when it is
    made, and no power cap is exceeded on the way."""
    moved_task: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    moved_node: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    moved_devices: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    moved_gpu_mib: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    moved_after: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    reserved: tuple[Reservation, ...] = ()
    """Made in this plan, for this plan, in the order they were made: the next one makes its own."""

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Why each deferred row waits."""
        return self.words.reasons(self.deferred)

    def admissions(self, snapshot: Snapshot) -> Iterator[tuple[JobRequest, tuple[TaskPlacement, ...]]]:
        """The admitted jobs with their placements, for the applier and for people."""
        bounds = np.searchsorted(self.task_admission, np.arange(len(self.admitted) + 1))
        for a, row in enumerate(self.admitted):
            tasks = tuple(self._task(t, snapshot.ledger) for t in range(bounds[a], bounds[a + 1]))
            yield snapshot.pending.requests[int(row)], tasks

    def growth(self, snapshot: Snapshot) -> Iterator[tuple[str, tuple[TaskPlacement, ...]]]:
        """The leases that grow, each with the tasks it holds beside those it has."""
        running = snapshot.running
        if running is None:
            return
        for g, name in enumerate(self.grown):
            held = snapshot.ledger.leases[name].tasks
            free = 1 + max((task.index for task in held if task.role is Role.WORKER), default=-1)
            shape = running.worker_shape(running.leases.index(name))
            yield (
                name,
                tuple(
                    TaskPlacement(
                        role=Role.WORKER,
                        index=free + i,
                        node=snapshot.ledger.node_names[int(self.grown_node[t])],
                        devices=unmask(int(self.grown_devices[t])),
                        milli_gpu=shape.milli_gpu,
                        gpu_mib=int(self.grown_gpu_mib[t]),
                        milli_cpu=shape.milli_cpu,
                        mib=shape.mib,
                    )
                    for i, t in enumerate(np.flatnonzero(self.grown_of == g))
                ),
            )

    def waiting(self, snapshot: Snapshot) -> Iterator[tuple[JobRequest, Reason]]:
        """The jobs that stay, each with its reason."""
        for row, reason in zip(self.deferred, self.reasons, strict=True):
            yield snapshot.pending.requests[int(row)], reason

    def _task(self, t: int, ledger: Ledger) -> TaskPlacement:
        index = int(self.task_index[t])
        return TaskPlacement(
            role=Role.HEAD if index < 0 else Role.WORKER,
            index=max(index, 0),
            node=ledger.node_names[int(self.task_node[t])],
            devices=unmask(int(self.task_devices[t])),
            milli_gpu=int(self.task_milli[t]),
            gpu_mib=int(self.task_gpu_mib[t]),
            milli_cpu=int(self.task_milli_cpu[t]),
            mib=int(self.task_mib[t]),
        )


def unmask(mask: int) -> tuple[int, ...]:
    """Device indexes of a bit mask, ascending."""
    return tuple(i for i in range(mask.bit_length()) if mask >> i & 1)


PLANNED = ("reasons", *(name for name in Plan.__slots__ if name != "words"))
"""What a plan decides: two plans of one input are equal in all of these."""
