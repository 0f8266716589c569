"""The one validator: every invariant of the ledger, recomputed from its leases.

`violations` looks at all of it: in test teardown, and in the control plane after a restart. `Auditor` follows a ledger
event by event and looks at what each may have changed: after every simulated step, in time for that event alone.
"""

from __future__ import annotations

import numpy as np

from moorage.scheduling.ledger import (
    Event,
    LeaseGranted,
    LeaseReleased,
    LeaseResized,
    Ledger,
    NodeDown,
    NodeUp,
    TeamSet,
    task_milli_per_device,
)
from moorage.scheduling.model import UNLIMITED, WHOLE, Lease, TaskPlacement


def violations(ledger: Ledger) -> list[str]:
    """Every broken invariant as a sentence; empty when the ledger is sound."""
    found = [*_shapes(ledger), *_epochs(ledger), *_owners(ledger)]
    milli, mem = _full(ledger)
    cpu, mib = ledger.cpu_total.copy(), ledger.mib_total.copy()
    used, beside = np.zeros_like(ledger.used), np.zeros_like(ledger.held)
    for lease in ledger.leases.values():
        for task in lease.tasks:
            row = ledger.node_row[task.node]
            cpu[row] -= task.milli_cpu
            mib[row] -= task.mib
            for d in task.devices:
                milli[row, d] -= task_milli_per_device(task)
                mem[row, d] -= task.gpu_mib
            team = ledger.team_row[lease.team]
            used[team, 0] += task.milli_gpu
            beside[team] += (task.milli_cpu, task.mib, len(task.devices) * task.gpu_mib)
            if ledger.model[row] and task.milli_gpu:
                used[team, ledger.model[row]] += task.milli_gpu
    for name, expected in (
        ("milli_free", milli),
        ("mem_free", mem),
        ("cpu_free", cpu),
        ("mib_free", mib),
        ("used", used),
        ("held", beside),
    ):
        actual = getattr(ledger, name)
        if not np.array_equal(actual, expected):
            found.append(f"{name} does not match the leases held")
        if actual.size and actual.min() < 0:
            found.append(f"{name} is negative: more is leased than there is")
    return found


def check(ledger: Ledger) -> None:
    """Raise `AssertionError` naming every broken invariant."""
    found = violations(ledger)
    if found:
        raise AssertionError("; ".join(found))


def _full(ledger: Ledger) -> tuple[np.ndarray, np.ndarray]:
    has = np.arange(ledger.milli_free.shape[1])[None, :] < ledger.devices[:, None]
    return np.where(has, WHOLE, 0), np.where(has, ledger.device_mib[:, None], 0)


def _shapes(ledger: Ledger) -> list[str]:
    nodes, teams, models = len(ledger.node_names), len(ledger.team_names), len(ledger.models)
    found = []
    columns = (
        "up",
        "model",
        "trait",
        "devices",
        "device_mib",
        "cpu_total",
        "cpu_free",
        "mib_total",
        "mib_free",
    )
    for name in columns:
        if len(getattr(ledger, name)) != nodes:
            found.append(f"{name} has {len(getattr(ledger, name))} rows for {nodes} nodes")
    for name in ("quota", "limit", "lend", "borrow", "used"):
        if getattr(ledger, name).shape != (teams, models):
            found.append(f"{name} is {getattr(ledger, name).shape}, not {(teams, models)}")
    if ledger.held.shape != (teams, 3):
        found.append(f"held is {ledger.held.shape}, not {(teams, 3)}")
    for name in ("milli_free", "mem_free"):
        if (rows := len(getattr(ledger, name))) != nodes:
            found.append(f"{name} has {rows} rows for {nodes} nodes")
    for name in ("team_parent", "weight"):
        if (rows := len(getattr(ledger, name))) != teams:
            found.append(f"{name} has {rows} rows for {teams} teams")
    if [ledger.trait_row.get(t) for t in ledger.traits] != list(range(len(ledger.traits))):
        found.append("a set of traits is not at the row that it is found by")
    if len(ledger.trait) and not 0 <= ledger.trait.min() <= ledger.trait.max() < len(ledger.traits):
        found.append("a node has traits that are not known")
    if (ledger.team_parent >= np.arange(len(ledger.team_parent))).any():
        found.append("a team comes before its parent: the tree may hold a cycle")
    for name in ("weight", "quota", "limit", "lend", "borrow", "device_mib", "cpu_total", "mib_total"):
        array = getattr(ledger, name)
        if array.size and (array.min() < 0 or array.max() > UNLIMITED):
            found.append(f"{name} is negative, or beyond all bounds")
    return found


def _epochs(ledger: Ledger) -> list[str]:
    epochs = [lease.epoch for lease in ledger.leases.values()]
    found = []
    if sorted(set(epochs)) != epochs:
        found.append("lease epochs are not strictly increasing")
    if epochs and epochs[-1] > ledger.last_epoch:
        found.append("a lease has an epoch that was never granted")
    return found


def _owners(ledger: Ledger) -> list[str]:
    """No device with two whole-GPU owners, none shared beside one, none twice in a task."""
    holders: dict[tuple[str, int], list[tuple[Lease, TaskPlacement]]] = {}
    found = []
    for lease in ledger.leases.values():
        for task in lease.tasks:
            if len(set(task.devices)) != len(task.devices):
                found.append(f"{lease.lease}: a task names a device twice")
            if len(task.devices) != -(-task.milli_gpu // WHOLE):
                found.append(f"{lease.lease}: {task.milli_gpu} milli-GPU on {len(task.devices)} devices")
            for d in task.devices:
                holders.setdefault((task.node, d), []).append((lease, task))
    for (node, d), held in holders.items():
        if len(held) > 1 and any(task.milli_gpu >= WHOLE for _, task in held):
            found.append(f"device {node}/{d} is held whole and shared")
        if sum(task_milli_per_device(task) for _, task in held) > WHOLE:
            found.append(f"device {node}/{d} is leased beyond one GPU")
    return found


class Auditor:
    """Follows a ledger by its events, with books of its own: leases by node, and what each team uses."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._version = ledger.version
        self._last_epoch = ledger.last_epoch
        self._leases: dict[str, Lease] = {}
        self._on: dict[str, list[tuple[Lease, TaskPlacement]]] = {}
        self._used: dict[str, dict[str, int]] = {}
        self._beside: dict[str, list[int]] = {}
        """CPU, memory and device memory by team."""
        for lease in ledger.leases.values():
            self._hold(lease)

    def after(self, event: Event, applied: bool = True) -> list[str]:
        """What is broken after `step(ledger, event)`; with `applied` false, after it was refused."""
        ledger, found = self._ledger, []
        nodes: tuple[str, ...] = ()
        teams: tuple[str, ...] = ()
        match event:
            case LeaseGranted(lease):
                nodes, teams = tuple(task.node for task in lease.tasks), (lease.team,)
                if applied:
                    if lease.epoch <= self._last_epoch or lease.lease in self._leases:
                        found.append(f"{lease.lease}: its epoch or its id was granted before")
                    self._last_epoch = lease.epoch
                    self._hold(lease)
            case LeaseReleased(name, epoch):
                held = self._leases.get(name)
                if held is not None:
                    nodes, teams = tuple(task.node for task in held.tasks), (held.team,)
                    if applied:
                        self._let_go(held)
                if applied and (held is None or held.epoch != epoch):
                    found.append(f"{name} was released by epoch {epoch}: stale")
            case LeaseResized():
                nodes, teams, stale = self._resized(event, applied)
                found += stale
            case NodeUp(spec):
                nodes = (spec.name,)
                if applied and ledger.traits[ledger.trait[ledger.node_row[spec.name]]] != spec.traits:
                    found.append(f"{spec.name} does not have the traits that it came with")
            case NodeDown(name):
                nodes = (name,)
            case TeamSet(team):
                teams = (team.name,)
        self._version += applied
        if ledger.version != self._version or ledger.last_epoch != self._last_epoch:
            found.append("the version or the highest epoch is not what the events make it")
        if len(ledger.leases) != len(self._leases):
            found.append(f"{len(ledger.leases)} leases are held, {len(self._leases)} by the events")
        for node in dict.fromkeys(nodes):
            found += self._node(node)
        for name in teams:
            found += self._team(name)
        return found

    def _resized(
        self, event: LeaseResized, applied: bool
    ) -> tuple[tuple[str, ...], tuple[str, ...], list[str]]:
        """(nodes, teams to look at, what is wrong with the resize itself)."""
        held = self._leases.get(event.lease)
        if held is None:
            return (), (), [f"{event.lease} was resized and is not held"] if applied else []
        nodes = tuple(task.node for task in (*held.tasks, *event.tasks))
        if not applied:
            return nodes, (held.team,), []
        found, new = [], self._ledger.leases.get(event.lease)
        if held.epoch != event.epoch or event.granted <= self._last_epoch:
            found.append(f"{event.lease} was resized by epoch {event.epoch} to {event.granted}: stale")
        self._last_epoch = event.granted
        self._let_go(held)
        if new is None or new.tasks != held.tasks[: event.kept] + event.tasks or new.epoch != event.granted:
            found.append(f"{event.lease} is not what its resize makes it")
        else:
            self._hold(new)
        return nodes, (held.team,), found

    def _hold(self, lease: Lease) -> None:
        self._leases[lease.lease] = lease
        for task in lease.tasks:
            self._on.setdefault(task.node, []).append((lease, task))
            self._charge(lease, task, 1)

    def _let_go(self, lease: Lease) -> None:
        del self._leases[lease.lease]
        for node in dict.fromkeys(task.node for task in lease.tasks):
            self._on[node] = [held for held in self._on[node] if held[0] is not lease]
        for task in lease.tasks:
            self._charge(lease, task, -1)

    def _charge(self, lease: Lease, task: TaskPlacement, sign: int) -> None:
        ledger, used = self._ledger, self._used.setdefault(lease.team, {})
        for model in {ledger.models[0], ledger.models[ledger.model[ledger.node_row[task.node]]]}:
            used[model] = used.get(model, 0) + sign * task.milli_gpu
        beside = self._beside.setdefault(lease.team, [0, 0, 0])
        for r, amount in enumerate((task.milli_cpu, task.mib, len(task.devices) * task.gpu_mib)):
            beside[r] += sign * amount

    def _node(self, name: str) -> list[str]:
        """The node's row against the tasks on it."""
        ledger = self._ledger
        row = ledger.node_row.get(name)
        if row is None:
            return [f"a lease is held on {name}, which is not known"] if self._on.get(name) else []
        count, width = int(ledger.devices[row]), ledger.milli_free.shape[1]
        milli = [WHOLE] * count + [0] * (width - count)
        mem = [int(ledger.device_mib[row])] * count + [0] * (width - count)
        cpu, mib = int(ledger.cpu_total[row]), int(ledger.mib_total[row])
        owners = [0] * width
        found = []
        for lease, task in self._on.get(name, ()):
            cpu, mib = cpu - task.milli_cpu, mib - task.mib
            if self._leases.get(lease.lease) is not lease or ledger.leases.get(lease.lease) is not lease:
                found.append(f"{lease.lease} holds a part of {name} and is not held")
            for d in task.devices:
                milli[d] -= task_milli_per_device(task)
                mem[d] -= task.gpu_mib
                owners[d] += WHOLE if task.milli_gpu >= WHOLE else 1
        if milli != ledger.milli_free[row].tolist() or mem != ledger.mem_free[row].tolist():
            found.append(f"the devices of {name} do not match the leases held")
        if cpu != ledger.cpu_free[row] or mib != ledger.mib_free[row]:
            found.append(f"CPU or memory of {name} does not match the leases held")
        if min(cpu, mib, *milli, *mem) < 0:
            found.append(f"more of {name} is leased than there is")
        if any(owner > WHOLE for owner in owners):
            found.append(f"a device of {name} is held whole and shared")
        return found

    def _team(self, name: str) -> list[str]:
        ledger, used = self._ledger, self._used.get(name, {})
        row = ledger.team_row.get(name)
        if row is None:
            return [f"team {name} uses GPUs and is not known"] if any(used.values()) else []
        if ledger.used[row].tolist() != [used.get(model, 0) for model in ledger.models]:
            return [f"what team {name} uses does not match its leases"]
        if ledger.held[row].tolist() != self._beside.get(name, [0, 0, 0]):
            return [f"what team {name} holds beside GPUs does not match its leases"]
        return []
