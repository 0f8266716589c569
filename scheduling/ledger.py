"""Who holds what: the state of the pool as integer arrays, changed only by `step(ledger, event)`.

Each attribute states its invariant; `validate.violations` checks all of them against the leases.
A step either applies whole or raises `LedgerError` and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from moorage.scheduling.model import (
    ANY_MODEL,
    UNLIMITED,
    WHOLE,
    IntArray,
    Lease,
    NodeSpec,
    TaskPlacement,
    TeamSpec,
)


class LedgerError(ValueError):
    """An event the ledger's state does not allow. The ledger is unchanged."""


@dataclass(frozen=True, slots=True)
class NodeUp:
    """A node joined, or came back with the same devices."""

    spec: NodeSpec


@dataclass(frozen=True, slots=True)
class NodeDown:
    """A node is lost or drained. Leases on it stay until they are observed to have ended."""

    name: str


@dataclass(frozen=True, slots=True)
class TeamSet:
    """A team was added, or its figures changed. Its parent must be known already."""

    spec: TeamSpec


@dataclass(frozen=True, slots=True)
class LeaseGranted:
    lease: Lease


@dataclass(frozen=True, slots=True)
class LeaseReleased:
    """`epoch` must be the lease's own: a stale holder cannot release what was granted again."""

    lease: str
    epoch: int


Event: TypeAlias = NodeUp | NodeDown | TeamSet | LeaseGranted | LeaseReleased


class Ledger:
    """The pool's book. Arrays are sized to what is known: N nodes, G device columns, T teams, M models."""

    __slots__ = (
        "borrow",
        "cpu_free",
        "cpu_total",
        "device_mib",
        "devices",
        "last_epoch",
        "leases",
        "lend",
        "limit",
        "mem_free",
        "mib_free",
        "mib_total",
        "milli_free",
        "model",
        "models",
        "node_names",
        "node_row",
        "quota",
        "team_names",
        "team_parent",
        "team_row",
        "up",
        "used",
        "version",
        "weight",
    )

    def __init__(self) -> None:
        self.version = 0
        """Grows by one with every applied event."""
        self.last_epoch = 0
        """The highest fencing token ever granted here."""
        self.leases: dict[str, Lease] = {}
        """By lease id, in order of epoch."""
        self.models: list[str] = [ANY_MODEL]
        """Column names of team figures; 0 counts every model."""
        self.node_names: list[str] = []
        self.node_row: dict[str, int] = {}
        self.up: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)
        self.model: IntArray = _ints(0)
        """[N] row in `models`; 0 = a node without GPUs."""
        self.devices: IntArray = _ints(0)
        """[N] device count; columns beyond it are 0 in the two arrays below."""
        self.device_mib: IntArray = _ints(0)
        self.milli_free: IntArray = _ints(0, 0)
        """[N, G] 0..1000: 1000 minus what leases hold."""
        self.mem_free: IntArray = _ints(0, 0)
        """[N, G] 0..device_mib: device_mib minus what leases hold."""
        self.cpu_total: IntArray = _ints(0)
        self.cpu_free: IntArray = _ints(0)
        self.mib_total: IntArray = _ints(0)
        self.mib_free: IntArray = _ints(0)
        self.team_names: list[str] = []
        self.team_row: dict[str, int] = {}
        self.team_parent: IntArray = _ints(0)
        """[T] row of the parent, -1 at the root; parents come before children, so there is no cycle."""
        self.weight: IntArray = _ints(0)
        self.quota: IntArray = _ints(0, 1)
        """[T, M] milli-GPU guaranteed to the team's whole subtree."""
        self.limit: IntArray = _ints(0, 1)
        self.lend: IntArray = _ints(0, 1)
        self.borrow: IntArray = _ints(0, 1)
        self.used: IntArray = _ints(0, 1)
        """[T, M] milli-GPU held by the team's own leases (not its children's)."""

    def copy(self) -> Ledger:
        """A working copy for what-if: arrays copied, records shared."""
        other = Ledger.__new__(Ledger)
        for name in Ledger.__slots__:
            value = getattr(self, name)
            setattr(other, name, value.copy() if hasattr(value, "copy") else value)
        return other

    def column(self, model: str) -> int:
        """Column of a GPU model, added when new."""
        if model not in self.models:
            self.models.append(model)
            self.quota = _pad(self.quota, 1, 0)
            self.limit = _pad(self.limit, 1, UNLIMITED)
            self.lend = _pad(self.lend, 1, UNLIMITED)
            self.borrow = _pad(self.borrow, 1, UNLIMITED)
            self.used = _pad(self.used, 1, 0)
        return self.models.index(model)

    def capacity(self) -> IntArray:
        """[M] milli-GPU of the nodes that are up, per model column."""
        total = np.zeros(len(self.models), np.int64)
        np.add.at(total, self.model[self.up], self.devices[self.up] * WHOLE)
        total[0] = int((self.devices[self.up] * WHOLE).sum())
        return total

    def held_by(self, job: str) -> tuple[Lease, ...]:
        return tuple(lease for lease in self.leases.values() if lease.job == job)


def step(ledger: Ledger, event: Event) -> None:
    """Apply one event, or raise `LedgerError` and leave the ledger as it was."""
    match event:
        case NodeUp(spec):
            _node_up(ledger, spec)
        case NodeDown(name):
            if name not in ledger.node_row:
                raise LedgerError(f"node {name} is not known")
            ledger.up[ledger.node_row[name]] = False
        case TeamSet(spec):
            _team_set(ledger, spec)
        case LeaseGranted(lease):
            _grant(ledger, lease)
        case LeaseReleased(lease_id, epoch):
            _release(ledger, lease_id, epoch)
    ledger.version += 1


def accepts(ledger: Ledger, spec: NodeSpec) -> bool:
    """Whether `NodeUp(spec)` applies: not while leases hold parts of a node of that name with other figures."""
    row = ledger.node_row.get(spec.name)
    if row is None or _spec_of(ledger, row) == spec:
        return True
    return not any(task.node == spec.name for lease in ledger.leases.values() for task in lease.tasks)


def _node_up(ledger: Ledger, spec: NodeSpec) -> None:
    if not accepts(ledger, spec):
        raise LedgerError(f"node {spec.name} came back with other devices while leases hold parts of it")
    row = ledger.node_row.get(spec.name)
    if row is None:
        row = len(ledger.node_names)
        ledger.node_names.append(spec.name)
        ledger.node_row[spec.name] = row
        for name in ("model", "devices", "device_mib", "cpu_total", "cpu_free", "mib_total", "mib_free"):
            setattr(ledger, name, np.append(getattr(ledger, name), np.int64(0)))
        ledger.up = np.append(ledger.up, False)
        ledger.milli_free = _pad(ledger.milli_free, 0, 0)
        ledger.mem_free = _pad(ledger.mem_free, 0, 0)
    elif _spec_of(ledger, row) == spec:
        ledger.up[row] = True
        return
    while ledger.milli_free.shape[1] < spec.devices:
        ledger.milli_free = _pad(ledger.milli_free, 1, 0)
        ledger.mem_free = _pad(ledger.mem_free, 1, 0)
    ledger.up[row] = True
    ledger.model[row] = ledger.column(spec.gpu_model) if spec.devices else 0
    ledger.devices[row] = spec.devices
    ledger.device_mib[row] = spec.device_mib
    ledger.cpu_total[row] = ledger.cpu_free[row] = spec.milli_cpu
    ledger.mib_total[row] = ledger.mib_free[row] = spec.mib
    has = np.arange(ledger.milli_free.shape[1]) < spec.devices
    ledger.milli_free[row] = np.where(has, WHOLE, 0)
    ledger.mem_free[row] = np.where(has, spec.device_mib, 0)


def _spec_of(ledger: Ledger, row: int) -> NodeSpec:
    return NodeSpec(
        name=ledger.node_names[row],
        gpu_model=ledger.models[int(ledger.model[row])] if ledger.devices[row] else "",
        devices=int(ledger.devices[row]),
        device_mib=int(ledger.device_mib[row]),
        milli_cpu=int(ledger.cpu_total[row]),
        mib=int(ledger.mib_total[row]),
    )


def _team_set(ledger: Ledger, spec: TeamSpec) -> None:
    if spec.parent and spec.parent not in ledger.team_row:
        raise LedgerError(f"team {spec.name}: its parent {spec.parent} is not known")
    row = ledger.team_row.get(spec.name)
    parent = ledger.team_row[spec.parent] if spec.parent else -1
    if row is not None and parent >= row:
        raise LedgerError(f"team {spec.name}: moving it under {spec.parent} would make a cycle")
    if row is None:
        row = len(ledger.team_names)
        ledger.team_names.append(spec.name)
        ledger.team_row[spec.name] = row
        ledger.team_parent = np.append(ledger.team_parent, np.int64(-1))
        ledger.weight = np.append(ledger.weight, np.int64(1))
        ledger.used = _pad(ledger.used, 0, 0)
        for name in ("quota", "limit", "lend", "borrow"):
            setattr(ledger, name, _pad(getattr(ledger, name), 0, 0))
    ledger.team_parent[row] = parent
    ledger.weight[row] = spec.weight
    for name, default in (("quota", 0), ("limit", UNLIMITED), ("lend", UNLIMITED), ("borrow", UNLIMITED)):
        figures: tuple[tuple[str, int], ...] = getattr(spec, name)
        columns = [(ledger.column(model), amount) for model, amount in figures]
        array: IntArray = getattr(ledger, name)
        array[row] = default
        for column, amount in columns:
            array[row, column] = amount
        if name == "quota" and columns and ANY_MODEL not in dict(figures):
            array[row, 0] = sum(amount for _, amount in columns)


def _grant(ledger: Ledger, lease: Lease) -> None:
    if lease.epoch <= ledger.last_epoch:
        raise LedgerError(f"lease {lease.lease}: epoch {lease.epoch} is not above {ledger.last_epoch}")
    if lease.lease in ledger.leases:
        raise LedgerError(f"lease {lease.lease} is granted already")
    if lease.team not in ledger.team_row:
        raise LedgerError(f"lease {lease.lease}: team {lease.team} is not known")
    done: list[TaskPlacement] = []
    try:
        for task in lease.tasks:
            _check_fit(ledger, task)
            _move(ledger, task, -1)
            done.append(task)
    except LedgerError:
        for task in done:
            _move(ledger, task, +1)
        raise
    _charge(ledger, lease, +1)
    ledger.leases[lease.lease] = lease
    ledger.last_epoch = lease.epoch


def _release(ledger: Ledger, lease_id: str, epoch: int) -> None:
    lease = ledger.leases.get(lease_id)
    if lease is None:
        raise LedgerError(f"lease {lease_id} is not held: released already, or never granted")
    if lease.epoch != epoch:
        raise LedgerError(f"lease {lease_id} has epoch {lease.epoch}, not {epoch}: stale release")
    for task in lease.tasks:
        _move(ledger, task, +1)
    _charge(ledger, lease, -1)
    del ledger.leases[lease_id]


def _check_fit(ledger: Ledger, task: TaskPlacement) -> None:
    row = ledger.node_row.get(task.node)
    if row is None or not ledger.up[row]:
        raise LedgerError(f"node {task.node} is not up")
    if ledger.cpu_free[row] < task.milli_cpu or ledger.mib_free[row] < task.mib:
        raise LedgerError(f"node {task.node} lacks CPU or memory for {task.role} {task.index}")
    each = task_milli_per_device(task)
    for d in task.devices:
        if not 0 <= d < ledger.devices[row]:
            raise LedgerError(f"node {task.node} has no device {d}")
        if ledger.milli_free[row, d] < each or ledger.mem_free[row, d] < task.gpu_mib:
            raise LedgerError(f"device {task.node}/{d} lacks room for {task.role} {task.index}")


def _move(ledger: Ledger, task: TaskPlacement, sign: int) -> None:
    row = ledger.node_row[task.node]
    ledger.cpu_free[row] += sign * task.milli_cpu
    ledger.mib_free[row] += sign * task.mib
    for d in task.devices:
        ledger.milli_free[row, d] += sign * task_milli_per_device(task)
        ledger.mem_free[row, d] += sign * task.gpu_mib


def _charge(ledger: Ledger, lease: Lease, sign: int) -> None:
    team = ledger.team_row[lease.team]
    for task in lease.tasks:
        ledger.used[team, 0] += sign * task.milli_gpu
        column = int(ledger.model[ledger.node_row[task.node]])
        if column and task.milli_gpu:
            ledger.used[team, column] += sign * task.milli_gpu


def task_milli_per_device(task: TaskPlacement) -> int:
    """A fraction's share, or a whole device."""
    return min(task.milli_gpu, WHOLE)


def _ints(*shape: int) -> IntArray:
    return np.zeros(shape, np.int64)


def _pad(array: IntArray, axis: int, value: int) -> IntArray:
    """One more row (axis 0) or column (axis 1) of `value`."""
    width = [(0, 0), (0, 0)]
    width[axis] = (0, 1)
    return np.pad(array, width, constant_values=value)
