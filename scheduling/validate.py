"""The one validator: every invariant of the ledger, recomputed from its leases.

Run after every simulated step, in test teardown, and by the control plane after a restart.
"""

from __future__ import annotations

import numpy as np

from moorage.scheduling.ledger import Ledger, task_milli_per_device
from moorage.scheduling.model import WHOLE, Lease, TaskPlacement


def violations(ledger: Ledger) -> list[str]:
    """Every broken invariant as a sentence; empty when the ledger is sound."""
    found = [*_shapes(ledger), *_epochs(ledger), *_owners(ledger)]
    milli, mem = _full(ledger)
    cpu, mib, used = ledger.cpu_total.copy(), ledger.mib_total.copy(), np.zeros_like(ledger.used)
    for lease in ledger.leases.values():
        for task in lease.tasks:
            row = ledger.node_row[task.node]
            cpu[row] -= task.milli_cpu
            mib[row] -= task.mib
            for d in task.devices:
                milli[row, d] -= task_milli_per_device(task)
                mem[row, d] -= task.gpu_mib
            used[ledger.team_row[lease.team], 0] += task.milli_gpu
            if ledger.model[row] and task.milli_gpu:
                used[ledger.team_row[lease.team], ledger.model[row]] += task.milli_gpu
    for name, expected in (
        ("milli_free", milli),
        ("mem_free", mem),
        ("cpu_free", cpu),
        ("mib_free", mib),
        ("used", used),
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
    for name in ("up", "model", "devices", "device_mib", "cpu_total", "cpu_free", "mib_total", "mib_free"):
        if len(getattr(ledger, name)) != nodes:
            found.append(f"{name} has {len(getattr(ledger, name))} rows for {nodes} nodes")
    for name in ("quota", "limit", "lend", "borrow", "used"):
        if getattr(ledger, name).shape != (teams, models):
            found.append(f"{name} is {getattr(ledger, name).shape}, not {(teams, models)}")
    if any(parent >= row for row, parent in enumerate(ledger.team_parent)):
        found.append("a team comes before its parent: the tree may hold a cycle")
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
