"""The jobs that hold leases, by columns: whom a plan may ask to leave, and what each one's index is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moorage.kernels import moving, preemption, relocating
from moorage.kernels.teams import Teams
from moorage.scheduling.ledger import Ledger
from moorage.scheduling.model import UNLIMITED, IntArray, JobRequest, Lease, Policy, Role, Shape
from moorage.scheduling.queue import TaskClass

_OPTIONAL = (
    "ran_ns",
    "least_run_ns",
    "least_tasks",
    "most_tasks",
    "worker",
    "keeps",
    "grown_ns",
    "shrunk_ns",
    "ends_ns",
    "movable",
    "headed",
)
"""Columns by job that may be left out."""


def _none() -> IntArray:
    return np.zeros(0, np.int64)


class Leaver(NamedTuple):
    """What is known of a running job that may be asked to leave."""

    priority: int
    ran_ns: int
    """Since it last started. Also the most it can lose: nobody knows when it wrote its last checkpoint."""


class Gang(NamedTuple):
    """What is known of a lease that may be resized: times are since then."""

    least: int
    """How many of its tasks, in their order, it must keep."""
    most: int
    """How many it wants."""
    worker: TaskClass
    """Of one more worker."""
    keeps: bool
    """It never gives anything back."""
    ran_ns: int
    grown_ns: int
    shrunk_ns: int


_STAYS = Leaver(priority=0, ran_ns=0)


class Pieces(NamedTuple):
    """P pieces of V running jobs: see `kernels.preemption.Running`."""

    job: IntArray
    """[P] whose."""
    rank: IntArray
    """[P] 0 = all that the job must keep; 1, 2, ... = the workers above that, in their order."""
    first: IntArray
    """[P + 1]"""

    def left(self, taken: npt.NDArray[np.bool_]) -> tuple[IntArray, IntArray, IntArray]:
        """(jobs that leave, jobs that stay and give up workers, the tasks that each of these keeps)."""
        if not taken.any():
            none = np.zeros(0, np.int64)
            return none, none, none
        whole = self.rank == 0
        out = np.flatnonzero(taken & whole)
        given = np.bincount(self.job[taken & ~whole], minlength=int(whole.sum()))
        begin = np.append(self.first[:-1][whole], self.first[-1])
        leave = self.job[out]
        given[leave] = 0
        shrunk = np.flatnonzero(given)
        return leave, shrunk, (np.diff(begin) - given)[shrunk]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningJobs:
    """V running jobs. Arrays are int64[V] but for the task columns, whose rows `first[v]..first[v+1]` are job v's: its
    head, then its workers."""

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
    least_tasks: IntArray | None = None
    """How many of its tasks, in their order, each must keep; the workers after them are given up before any job leaves
    as a whole. None = nobody gives up any."""
    most_tasks: IntArray | None = None
    """How many tasks each wants, its head included; None = nobody grows."""
    worker: IntArray | None = None
    """The class of one more worker; None = as the last task's."""
    keeps: IntArray | None = None
    """1 = never gives anything back, so it grows within its team's own quota only; None = who is `fixed`."""
    grown_ns: IntArray | None = None
    """Since each last took more workers, held against `Policy.settle_ns`; None = long ago."""
    shrunk_ns: IntArray | None = None
    """The same since it last gave some up."""
    ends_ns: IntArray | None = None
    """When each will have ended at the latest, UNLIMITED where nobody knows; who is late counts as ending now. None:
    nothing is reserved."""
    movable: IntArray | None = None
    """May be moved, stopped and started again elsewhere at once: 1 = to nodes of its GPU model, 2 = to any that its
    class allows, where no quota or limit binds its team; None = nobody. Gangs only where the policy moves them."""
    headed: IntArray | None = None
    """1 = the first task is a head, not a worker; None = nobody has one."""
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
        first, workers = [0], list[int]()
        for lease, request in zip(leases, jobs.values(), strict=True):
            for task in lease.tasks:
                shape = request.head if task.role is Role.HEAD else request.worker
                wanted = TaskClass.of(request, shape)
                mask = sum(1 << d for d in task.devices)
                rows.append((ledger.node_row[task.node], mask, classes.setdefault(wanted, len(classes))))
            first.append(len(rows))
            workers.append(classes.setdefault(TaskClass.of(request, request.worker), len(classes)))
        table = np.array(rows, np.int64).reshape(-1, 3)
        teams = tuple(dict.fromkeys(lease.team for lease in leases))
        none = np.zeros(len(leases), np.int64)
        return cls(
            leases=tuple(jobs),
            teams=teams,
            team=np.array([teams.index(lease.team) for lease in leases], np.int64),
            priority=np.array([request.priority for request in jobs.values()], np.int64),
            key=none,
            most_tasks=np.array([most_tasks(request) for request in jobs.values()], np.int64),
            worker=np.array(workers, np.int64),
            least_tasks=np.array([least_tasks(request) for request in jobs.values()], np.int64),
            fixed=np.array([not request.preemptible for request in jobs.values()], np.int64),
            headed=np.array([not request.head.empty for request in jobs.values()], np.int64),
            lost=none,
            classes=tuple(classes),
            first=np.array(first, np.int64),
            task_node=np.ascontiguousarray(table[:, 0]),
            task_mask=np.ascontiguousarray(table[:, 1]),
            task_class=np.ascontiguousarray(table[:, 2]),
        )

    @classmethod
    def holding(
        cls,
        ledger: Ledger,
        ends: Mapping[str, int] | None,
        leavers: Mapping[str, Leaver] | None = None,
        gangs: Mapping[str, Gang] | None = None,
    ) -> RunningJobs:
        """Every lease of the ledger. `ends`: by lease, where it is known. `leavers`: by job, who may be asked to leave;
        such a job is one row with all its leases, named by the first. `gangs`: by lease, which may be resized, where it
        is all that its job holds. `ends` = None: nothing is reserved."""
        may = leavers or {}
        rows_of: dict[str, list[Lease]] = {}
        for lease in ledger.leases.values():
            rows_of.setdefault(f"job {lease.job}" if lease.job in may else lease.lease, []).append(lease)
        held = list(rows_of.values())
        classes: dict[TaskClass, int] = {}
        rows: list[tuple[int, int, int]] = []
        first = [0]
        for leases in held:
            for task in (task for lease in leases for task in lease.tasks):
                shape = Shape(
                    milli_gpu=task.milli_gpu, gpu_mib=task.gpu_mib, milli_cpu=task.milli_cpu, mib=task.mib
                )
                mask = sum(1 << d for d in task.devices)
                wanted = classes.setdefault(TaskClass(shape=shape), len(classes))
                rows.append((ledger.node_row[task.node], mask, wanted))
            first.append(len(rows))
        table = np.array(rows, np.int64).reshape(-1, 3)
        named = [leases[0] for leases in held]
        elastic = [
            gangs.get(leases[0].lease) if gangs and len(ledger.held_by(leases[0].job)) == 1 else None
            for leases in held
        ]
        leaver = [
            may.get(lease.job, _STAYS if gang is None else Leaver(0, gang.ran_ns))
            for lease, gang in zip(named, elastic, strict=True)
        ]
        milli = [sum(lease.milli_gpu for lease in leases) for leases in held]
        known = (UNLIMITED if ends is None else ends.get(lease.lease, UNLIMITED) for lease in named)
        return cls(
            leases=tuple(lease.lease for lease in named),
            teams=tuple(ledger.team_names),
            team=np.array([ledger.team_row[lease.team] for lease in named], np.int64),
            priority=np.array([one.priority for one in leaver], np.int64),
            key=np.zeros(len(held), np.int64),
            fixed=np.array([lease.job not in may for lease in named], np.int64),
            ran_ns=np.array([one.ran_ns for one in leaver], np.int64) if may or gangs else None,
            **(_sizes(elastic, first, rows, classes) if gangs else {}),
            ends_ns=None if ends is None else np.fromiter(known, np.int64, len(held)),
            lost=np.array([m * (o.ran_ns // 10**9) for m, o in zip(milli, leaver, strict=True)], np.int64),
            classes=tuple(classes),
            first=np.array(first, np.int64),
            task_node=np.ascontiguousarray(table[:, 0]),
            task_mask=np.ascontiguousarray(table[:, 1]),
            task_class=np.ascontiguousarray(table[:, 2]),
        )

    def __len__(self) -> int:
        return len(self.team)

    def pieces(self) -> Pieces:
        """Jobs, and the workers that may leave on their own. One without GPUs makes no room and stays with its job."""
        count = np.diff(self.first)
        extras = np.zeros(len(self), np.int64)
        if self.least_tasks is not None and len(self.task_class):
            each = np.array([c.shape.milli_gpu for c in self.classes], np.int64)
            last = each[self.task_class[self.first[1:] - 1]]
            extras = np.where(last > 0, np.maximum(count - np.maximum(self.least_tasks, 1), 0), 0)
        job = np.repeat(np.arange(len(self)), 1 + extras)
        rank = np.arange(len(job)) - np.repeat(np.cumsum(1 + extras) - 1 - extras, 1 + extras)
        begin = self.first[:-1][job] + np.where(rank > 0, (count - extras)[job] + rank - 1, 0)
        return Pieces(job=job, rank=rank, first=np.append(begin, self.first[-1]))

    def workers(self) -> IntArray:
        """[V] the class of one more worker: that of the last task unless said."""
        return self.task_class[self.first[1:] - 1] if self.worker is None else self.worker

    def worker_shape(self, v: int) -> Shape:
        """Of job `v`."""
        return self.classes[int(self.workers()[v])].shape

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

    def young(self, pieces: Pieces, policy: Policy) -> npt.NDArray[np.bool_]:
        """[P] has not run for its least time yet; or is a worker of a gang that took more just now."""
        young, job = self._early(policy)[pieces.job], pieces.job
        if self.grown_ns is not None:
            young |= (pieces.rank > 0) & (self.grown_ns < policy.settle_ns)[job]
        return young

    def loose(self, policy: Policy) -> npt.NDArray[np.bool_]:
        """[V] may be asked to leave for whatever reason there is: all that the loop must know before anybody is."""
        loose = ~self.fixed.astype(np.bool_)
        return loose & ~self._early(policy) if policy.reclaim_waits else loose

    def _early(self, policy: Policy) -> npt.NDArray[np.bool_]:
        """[V] has not run for its least time yet."""
        if self.ran_ns is None:
            return np.zeros(len(self), np.bool_)
        least = np.full(len(self), policy.least_run_ns)
        if self.least_run_ns is not None:
            least = np.maximum(least, self.least_run_ns)
        return np.asarray(self.ran_ns < least, np.bool_)

    def may_move(self, ledger: Ledger, teams: Teams) -> IntArray:
        """[V] `movable`, within the GPU model where a team's figures could tell models apart."""
        if self.movable is None:
            return np.zeros(len(self), np.int64)
        known = np.array([ledger.team_row.get(name, -1) for name in self.teams], np.int64)
        row = known[self.team] if len(self) else self.team
        free = np.append(teams.free, False)[row]  # a team that is not known reads the last entry
        return np.asarray(np.where(free, self.movable, np.minimum(self.movable, 1)), np.int64)

    def moves(self, pieces: Pieces, budget: int, ledger: Ledger, teams: Teams) -> moving.Moves:
        """For moving jobs of one task aside: at most `budget` of them in one plan."""
        count, nodes = len(pieces.job), len(ledger.up)
        whole = np.bincount(pieces.job, minlength=len(self)) == 1
        return moving.Moves(
            may=np.where(whole, self.may_move(ledger, teams), 0)[pieces.job],
            moved=np.zeros(count, np.bool_),
            budget=np.array([budget], np.int64),
            log=np.zeros((len(self.task_class) if budget else 0, 5), np.int64),
            made=np.zeros(2, np.int64),
            old_node=np.full(count, -1, np.int64),
            old_mask=np.zeros(count, np.int64),
            elsewhere=np.ones(nodes, np.bool_),
            here=np.zeros(nodes, np.bool_),
            tried=np.zeros(nodes, np.bool_),
        )

    def jobs(self, pieces: Pieces, gangs: bool, ledger: Ledger, teams: Teams) -> relocating.Jobs:
        """For moving whole jobs, with `gangs` those of several tasks too: who loses least by a restart comes first."""
        tasks = np.diff(self.first)
        each = np.array([c.shape.milli_gpu for c in self.classes], np.int64)
        ends = np.concatenate((np.zeros(1, np.int64), np.cumsum(each[self.task_class])))
        milli = ends[self.first[1:]] - ends[self.first[:-1]]
        may = self.may_move(ledger, teams)
        may = np.where((tasks > 0) & ((tasks == 1) | gangs), may, 0)
        order = np.lexsort((milli, self.lost, tasks > 1))
        scratch = np.zeros((4, len(self.task_class)), np.int64)
        return relocating.Jobs(
            first=self.first,
            piece=np.append(np.flatnonzero(pieces.rank == 0), len(pieces.rank)),
            headed=np.zeros(len(self), np.bool_) if self.headed is None else self.headed.astype(np.bool_),
            may=may,
            order=order[may[order] > 0],
            node=scratch[0],
            mask=scratch[1],
            old_node=scratch[2],
            old_mask=scratch[3],
            asked=np.zeros(len(self), np.int64),
            state=np.zeros(len(self), np.int64),
            spare=np.zeros((3, int(tasks.max(initial=0)) + 1), np.int64),
            within=np.zeros(len(ledger.models), np.int64),
            left=np.zeros(len(ledger.models), np.int64),
        )

    def columns(self, pieces: Pieces, ledger: Ledger, at: IntArray, policy: Policy) -> preemption.Running:
        """For the admission loop. `at`: this table's classes as the decision counts them."""
        known = np.array([ledger.team_row.get(name, -1) for name in self.teams], np.int64)
        each = np.array([c.shape.milli_gpu for c in self.classes], np.int64)
        ends = np.concatenate((np.zeros(1, np.int64), np.cumsum(each[self.task_class])))
        job, rank = pieces.job, pieces.rank
        milli = ends[pieces.first[1:]] - ends[pieces.first[:-1]]
        size = np.where(rank > 0, milli, (ends[self.first[1:]] - ends[self.first[:-1]])[job])
        priority, key, lost = self.priority[job], self.key[job], self.lost[job]
        return preemption.Running(
            team=known[self.team][job] if len(self) else self.team,
            priority=priority,
            key=key,
            fixed=self.fixed.astype(np.bool_)[job],
            young=self.young(pieces, policy),
            extra=rank > 0,
            taken=np.zeros(len(job), np.bool_),
            asked=np.zeros(len(job), np.int64),
            may=np.zeros(len(job), np.bool_),
            given=np.zeros(len(job), np.int64),
            order=np.lexsort((-rank, job, size, lost, -key, priority, rank == 0)),
            milli=milli,
            first=pieces.first,
            node=self.task_node.copy(),
            mask=self.task_mask.copy(),
            klass=at[self.task_class],
        )


def _sizes(
    gangs: Sequence[Gang | None],
    first: Sequence[int],
    rows: Sequence[tuple[int, int, int]],
    classes: dict[TaskClass, int],
) -> dict[str, IntArray]:
    """The columns of who may be resized; `classes` gets those of one more worker."""
    counts = np.diff(np.array(first, np.int64))
    found = {name: np.full(len(gangs), UNLIMITED, np.int64) for name in ("grown_ns", "shrunk_ns")}
    found |= {"least_tasks": counts.copy(), "most_tasks": np.zeros(len(gangs), np.int64)}
    found["keeps"] = np.array([gang is None or gang.keeps for gang in gangs], np.int64)
    worker = np.zeros(len(gangs), np.int64)
    for v, gang in enumerate(gangs):
        if gang is None:
            worker[v] = rows[first[v + 1] - 1][2] if counts[v] else 0
            continue
        worker[v] = classes.setdefault(gang.worker, len(classes))
        found["least_tasks"][v], found["most_tasks"][v] = gang.least, gang.most
        found["grown_ns"][v], found["shrunk_ns"][v] = gang.grown_ns, gang.shrunk_ns
    return {**found, "worker": worker}


def least_tasks(request: JobRequest) -> int:
    """The tasks of the smallest gang that may run: its head and its least workers, one task at least."""
    heads = 0 if request.head.empty else 1
    return max(1, heads + (0 if request.worker.empty else request.min_workers))


def most_tasks(request: JobRequest) -> int:
    """The tasks of the whole gang. A worker that asks for nothing takes no place."""
    return (0 if request.head.empty else 1) + (0 if request.worker.empty else request.workers)
