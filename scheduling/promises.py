"""Room that is being made: the pool as it will be once some have left, and the nodes on which one may start before.

A job for which others were told to leave has a place before the place is free. Everybody else is planned in the pool
as it will be, so that nobody is pushed out twice for one need, and nobody takes what others left for somebody.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np

from moorage.scheduling.ledger import LeaseGranted, LeaseReleased, LeaseResized, Ledger, LedgerError, step
from moorage.scheduling.model import JobRequest, Lease, TaskPlacement

Tasks = tuple[TaskPlacement, ...]


def after_leaving(
    ledger: Ledger,
    leaving: Iterable[str],
    promised: Iterable[tuple[JobRequest, Tasks]],
    shrinking: Mapping[str, int] | None = None,
) -> Ledger:
    """A copy in which the jobs `leaving` hold nothing, the leases `shrinking` their first so many tasks, and each
    promise is a lease. One that does not fit there (its node went away) is left out."""
    later = ledger.copy()
    for job in leaving:
        for lease in ledger.held_by(job):
            step(later, LeaseReleased(lease.lease, lease.epoch))
    for name, kept in (shrinking or {}).items():
        held = later.leases.get(name)
        if held is not None and kept < len(held.tasks):
            step(later, LeaseResized(name, held.epoch, later.last_epoch + 1, kept))
    for request, tasks in promised:
        epoch = later.last_epoch + 1
        lease = Lease(
            lease=f"promised-{request.job}",
            job=request.parent or request.job,
            team=request.team,
            epoch=epoch,
            tasks=tasks,
        )
        try:
            step(later, LeaseGranted(lease))
        except LedgerError:
            continue
    later.version = ledger.version  # a plan made from it is one of that ledger
    return later


def fits_later(
    ledger: Ledger,
    leaving: Iterable[str],
    request: JobRequest,
    tasks: Tasks,
    shrinking: Mapping[str, int] | None = None,
) -> bool:
    """Whether a promise can still be kept once these jobs have left and these leases have shrunk."""
    later = after_leaving(ledger, leaving, [(request, tasks)], shrinking)
    return f"promised-{request.job}" in later.leases


def only_on(ledger: Ledger, nodes: Collection[str], earlier: Iterable[Tasks]) -> Ledger:
    """A copy to plan one promised job in: of these nodes alone, less what `earlier` promises wait for there.

    Where an earlier promise takes a part of a device that is free by now, nothing starts on that node before it does:
    Ray's raylet picks the device, and would pick that one.
    """
    here = ledger.copy()
    there = np.array([name not in nodes for name in ledger.node_names], np.bool_)
    for free in (here.milli_free, here.cpu_free, here.mib_free):
        free[there] = 0
    here.lineage, here.touched = object(), []
    for task in (task for tasks in earlier for task in tasks if task.node in nodes):
        row = ledger.node_row[task.node]
        if any(ledger.milli_free[row, d] > 0 for d in task.devices):
            here.milli_free[row, :] = 0
        here.cpu_free[row] = np.maximum(here.cpu_free[row] - task.milli_cpu, 0)
        here.mib_free[row] = np.maximum(here.mib_free[row] - task.mib, 0)
    return here
