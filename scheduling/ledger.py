"""Who holds what: the state of the pool as integer arrays, changed only by `step(ledger, event)`.

Each attribute states its invariant; `validate.violations` checks all of them against the leases.
A step either applies whole or raises `LedgerError` and changes nothing. That each step keeps the invariants for all
integers is proven on this very code (tests/proof): amounts are read with `item` and compared as plain integers, and
nothing here converts them, so that symbols can stand in their place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

from moorage.scheduling.model import (
    ANY_MODEL,
    MAX_DEVICES,
    UNLIMITED,
    WHOLE,
    IntArray,
    Lease,
    NodeSpec,
    TaskPlacement,
    TeamSpec,
)
from moorage.scheduling.rows import widened
from moorage.scheduling.state import FIGURES, NODE_COLUMNS, TEAM_COLUMNS, Ledger, Mark

__all__ = [
    "Event",
    "LeaseGranted",
    "LeaseReleased",
    "LeaseResized",
    "Ledger",
    "LedgerError",
    "Mark",
    "NodeDown",
    "NodeUp",
    "TeamSet",
    "accepts",
    "step",
    "task_milli_per_device",
]

MOST = 2**40
"""The largest figure of a node: sums over a million nodes stay within int64."""


class LedgerError(ValueError):
    """An event the ledger's state does not allow. The ledger is unchanged."""


@dataclass(frozen=True, slots=True)
class NodeUp:
    """A node joined, came back with the same devices, or its traits changed."""

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


@dataclass(frozen=True, slots=True)
class LeaseResized:
    """A gang gives up workers, or takes more: it keeps its first `kept` tasks and holds `tasks` after them.

    `epoch` must be the lease's own. `granted` is its epoch from now on, above every other: the token of a worker that
    was given up is stale, and so is a second resize that did not know of the first.
    """

    lease: str
    epoch: int
    granted: int
    kept: int
    tasks: tuple[TaskPlacement, ...] = ()


Event: TypeAlias = NodeUp | NodeDown | TeamSet | LeaseGranted | LeaseReleased | LeaseResized


def step(ledger: Ledger, event: Event) -> None:
    """Apply one event, or raise `LedgerError` and leave the ledger as it was."""
    match event:
        case LeaseGranted(lease):
            _grant(ledger, lease)
        case LeaseReleased(lease_id, epoch):
            _release(ledger, lease_id, epoch)
        case LeaseResized():
            _resize(ledger, event)
        case NodeUp(spec):
            _node_up(ledger, spec)
        case NodeDown(name):
            if name not in ledger.node_row:
                raise LedgerError(f"node {name} is not known")
            row = ledger.node_row[name]
            ledger.up[row] = False
            ledger.layout += 1
            ledger.touched.append(row)
        case TeamSet(spec):
            _team_set(ledger, spec)
    ledger.version += 1
    if ledger._forked:
        ledger._forked, ledger.lineage, ledger._may_run = False, object(), {}
    if len(ledger.touched) > 4096 + 8 * len(
        ledger.node_names
    ):  # who is so far behind copies everything sooner
        ledger.trim_touched(ledger.touched_from + len(ledger.touched) // 2)


def accepts(ledger: Ledger, spec: NodeSpec) -> bool:
    """Whether `NodeUp(spec)` applies: not while leases hold parts of a node of that name with other figures."""
    row = ledger.node_row.get(spec.name)
    return row is None or _same(ledger, row, spec) or _idle(ledger, row)


def _same(ledger: Ledger, row: int, spec: NodeSpec) -> bool:
    """Whether the node has these very figures; a node without devices has no GPU model."""
    return bool(
        ledger.devices.item(row) == spec.devices
        and (not spec.devices or ledger.models[ledger.model.item(row)] == spec.gpu_model)
        and ledger.device_mib.item(row) == spec.device_mib
        and ledger.cpu_total.item(row) == spec.milli_cpu
        and ledger.mib_total.item(row) == spec.mib
    )


def _idle(ledger: Ledger, row: int) -> bool:
    """Whether no lease holds a part of the node: all of it is free."""
    if ledger.cpu_free.item(row) != ledger.cpu_total.item(row):
        return False
    if ledger.mib_free.item(row) != ledger.mib_total.item(row):
        return False
    return all(
        ledger.milli_free.item(row, d) == WHOLE
        and ledger.mem_free.item(row, d) == ledger.device_mib.item(row)
        for d in range(ledger.devices.item(row))
    )


def _node_up(ledger: Ledger, spec: NodeSpec) -> None:
    for figure in (spec.device_mib, spec.milli_cpu, spec.mib):
        if figure < 0 or figure > MOST:
            raise LedgerError(f"node {spec.name}: a figure is negative or beyond {MOST}")
    if not 0 <= spec.devices <= MAX_DEVICES:
        raise LedgerError(f"node {spec.name}: {spec.devices} devices, not 0 to {MAX_DEVICES}")
    if not accepts(ledger, spec):
        raise LedgerError(f"node {spec.name} came back with other devices while leases hold parts of it")
    row = ledger.node_row.get(spec.name)
    ledger.layout += 1
    if row is None:
        row = len(ledger.node_names)
        ledger.node_names.append(spec.name)
        ledger.node_row[spec.name] = row
        ledger._behind.grow(ledger, NODE_COLUMNS, row + 1)
    elif _same(ledger, row, spec):
        ledger.up[row] = True
        ledger.trait[row] = ledger.trait_of(spec.traits)
        ledger.touched.append(row)
        return
    if ledger.milli_free.shape[1] < spec.devices:
        ledger.milli_free = widened(ledger.milli_free, spec.devices, 0)
        ledger.mem_free = widened(ledger.mem_free, spec.devices, 0)
    ledger.up[row] = True
    ledger.model[row] = ledger.column(spec.gpu_model) if spec.devices else 0
    ledger.trait[row] = ledger.trait_of(spec.traits)
    ledger.devices[row] = spec.devices
    ledger.device_mib[row] = spec.device_mib
    ledger.cpu_total[row] = ledger.cpu_free[row] = spec.milli_cpu
    ledger.mib_total[row] = ledger.mib_free[row] = spec.mib
    for array, full in ((ledger.milli_free, WHOLE), (ledger.mem_free, spec.device_mib)):
        array[row, : spec.devices] = full
        array[row, spec.devices :] = 0
    ledger.touched.append(row)


def _team_set(ledger: Ledger, spec: TeamSpec) -> None:
    _check_team(spec)
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
        ledger._behind.grow(ledger, TEAM_COLUMNS, row + 1)
    ledger.team_parent[row] = parent
    ledger.weight[row] = spec.weight
    for name, default in FIGURES:
        figures: tuple[tuple[str, int], ...] = getattr(spec, name)
        columns = [(ledger.column(model), amount) for model, amount in figures]
        array: IntArray = getattr(ledger, name)
        array[row] = default
        for column, amount in columns:
            array[row, column] = amount
        if name == "quota" and columns and ANY_MODEL not in dict(figures):
            array[row, 0] = min(UNLIMITED, sum(amount for _, amount in columns))


def _check_team(spec: TeamSpec) -> None:
    if spec.weight < 0 or spec.weight > MOST:
        raise LedgerError(f"team {spec.name}: its weight is negative or beyond {MOST}")
    for name, _ in FIGURES:
        for model, amount in getattr(spec, name):
            if amount < 0 or amount > UNLIMITED:
                raise LedgerError(f"team {spec.name}: {name} of {model} is negative or beyond {UNLIMITED}")


def _grant(ledger: Ledger, lease: Lease) -> None:
    if lease.epoch <= ledger.last_epoch:
        raise LedgerError(f"lease {lease.lease}: epoch {lease.epoch} is not above {ledger.last_epoch}")
    if lease.lease in ledger.leases:
        raise LedgerError(f"lease {lease.lease} is granted already")
    team = ledger.team_row.get(lease.team)
    if team is None:
        raise LedgerError(f"lease {lease.lease}: team {lease.team} is not known")
    _take(ledger, team, lease.tasks)
    ledger.leases[lease.lease] = lease
    if ledger._by_job is not None:
        ledger._by_job.setdefault(lease.job, {})[lease.lease] = lease
    ledger.last_epoch = lease.epoch


def _held(ledger: Ledger, lease_id: str, epoch: int) -> Lease:
    """The lease, if it is held under this epoch."""
    lease = ledger.leases.get(lease_id)
    if lease is None:
        raise LedgerError(f"lease {lease_id} is not held: released already, or never granted")
    if lease.epoch != epoch:
        raise LedgerError(f"lease {lease_id} has epoch {lease.epoch}, not {epoch}: a stale token")
    return lease


def _resize(ledger: Ledger, event: LeaseResized) -> None:
    lease = _held(ledger, event.lease, event.epoch)
    if event.granted <= ledger.last_epoch:
        raise LedgerError(f"lease {lease.lease}: epoch {event.granted} is not above {ledger.last_epoch}")
    if not 0 < event.kept <= len(lease.tasks) or (event.kept == len(lease.tasks) and not event.tasks):
        raise LedgerError(
            f"lease {lease.lease} of {len(lease.tasks)} tasks: keeping {event.kept} resizes nothing"
        )
    team, given_up = ledger.team_row[lease.team], lease.tasks[event.kept :]
    for task in given_up:  # their room may be taken again in the same step
        _move(ledger, ledger.node_row[task.node], task, 1)
    try:
        _take(ledger, team, event.tasks)
    except LedgerError:
        for task in given_up:
            _move(ledger, ledger.node_row[task.node], task, -1)
        raise
    for task in given_up:
        row = ledger.node_row[task.node]
        _charge(ledger, team, row, -task.milli_gpu)
        ledger.touched.append(row)
    _hold(ledger, team, given_up, -1)
    new = replace(lease, epoch=event.granted, tasks=lease.tasks[: event.kept] + event.tasks)
    del ledger.leases[lease.lease]  # leases stand in order of epoch
    ledger.leases[lease.lease] = new
    if ledger._by_job is not None:
        of_job = ledger._by_job[lease.job]
        del of_job[lease.lease]
        of_job[lease.lease] = new
    ledger.last_epoch = event.granted


def _release(ledger: Ledger, lease_id: str, epoch: int) -> None:
    lease = _held(ledger, lease_id, epoch)
    team = ledger.team_row[lease.team]
    for task in lease.tasks:
        row = ledger.node_row[task.node]
        _move(ledger, row, task, 1)
        _charge(ledger, team, row, -task.milli_gpu)
        ledger.touched.append(row)
    _hold(ledger, team, lease.tasks, -1)
    del ledger.leases[lease_id]
    if ledger._by_job is not None:
        of_job = ledger._by_job[lease.job]
        del of_job[lease_id]
        if not of_job:
            del ledger._by_job[lease.job]


def _take(ledger: Ledger, team: int, tasks: tuple[TaskPlacement, ...]) -> None:
    """Book all tasks on their nodes and their team, or none."""
    rows: list[int] = []
    try:
        for task in tasks:
            row = _fitting(ledger, task)
            _move(ledger, row, task, -1)
            rows.append(row)
    except LedgerError:
        for row, task in zip(rows, tasks, strict=False):  # those that were moved, in front
            _move(ledger, row, task, 1)
        raise
    for row, task in zip(rows, tasks, strict=True):
        _charge(ledger, team, row, task.milli_gpu)
    _hold(ledger, team, tasks, 1)
    ledger.touched += rows


def _fitting(ledger: Ledger, task: TaskPlacement) -> int:
    """Row of the task's node, if the task is sound and fits there now."""
    row = ledger.node_row.get(task.node)
    if row is None or not ledger.up[row]:
        raise LedgerError(f"node {task.node} is not up")
    if not _sound(task):
        raise LedgerError(f"{task.role} {task.index} on {task.node}: no task holds {task}")
    if ledger.cpu_free.item(row) < task.milli_cpu or ledger.mib_free.item(row) < task.mib:
        raise LedgerError(f"node {task.node} lacks CPU or memory for {task.role} {task.index}")
    devices, each = ledger.devices.item(row), task_milli_per_device(task)
    for d in task.devices:
        if not 0 <= d < devices:
            raise LedgerError(f"node {task.node} has no device {d}")
        if ledger.milli_free.item(row, d) < each or ledger.mem_free.item(row, d) < task.gpu_mib:
            raise LedgerError(f"device {task.node}/{d} lacks room for {task.role} {task.index}")
    return row


def _sound(task: TaskPlacement) -> bool:
    """Whether the figures are of a task at all: nothing negative, a share of one device or whole ones, none twice."""
    if task.milli_cpu < 0 or task.mib < 0 or task.gpu_mib < 0:
        return False
    count = len(task.devices)
    if count == 1:
        return 0 < task.milli_gpu <= WHOLE
    return task.milli_gpu == count * WHOLE and len(set(task.devices)) == count


def _move(ledger: Ledger, row: int, task: TaskPlacement, sign: int) -> None:
    """Take the task's share of the node (sign -1) or give it back (+1)."""
    cpu, mib, milli, mem = ledger.cpu_free, ledger.mib_free, ledger.milli_free, ledger.mem_free
    cpu[row] = cpu.item(row) + sign * task.milli_cpu
    mib[row] = mib.item(row) + sign * task.mib
    each, gpu_mib = sign * task_milli_per_device(task), sign * task.gpu_mib
    for d in task.devices:
        milli[row, d] = milli.item(row, d) + each
        mem[row, d] = mem.item(row, d) + gpu_mib


def _charge(ledger: Ledger, team: int, row: int, milli: int) -> None:
    """Add to what the team uses, of all models together and of the node's."""
    used, column = ledger.used, ledger.model.item(row)
    used[team, 0] = used.item(team, 0) + milli
    if column:
        used[team, column] = used.item(team, column) + milli


def _hold(ledger: Ledger, team: int, tasks: tuple[TaskPlacement, ...], sign: int) -> None:
    """Add to what the team holds beside GPUs, or take it off."""
    cpu, mib, gpu_mib = 0, 0, 0
    for task in tasks:
        cpu = cpu + task.milli_cpu
        mib = mib + task.mib
        gpu_mib = gpu_mib + len(task.devices) * task.gpu_mib
    held = ledger.held
    held[team, 0] = held.item(team, 0) + sign * cpu
    held[team, 1] = held.item(team, 1) + sign * mib
    held[team, 2] = held.item(team, 2) + sign * gpu_mib


def task_milli_per_device(task: TaskPlacement) -> int:
    """A fraction's share, or a whole device."""
    return min(task.milli_gpu, WHOLE)
