"""`defragment(snapshot, budget) -> moves`: running jobs to move ahead of need, so that more can be packed.

Pure, like `plan()`: the snapshot is not changed and the same input gives the same moves. It is for when nothing waits
that a move could help at once; `Policy.moves` is for when something does.

What is lowered is the fragmentation that the potential rule prices (`packing.values`): a move is worth what the
estimate of "what can still be packed" rises by, and the one worth most goes next. FGD (Weng et al., USENIX ATC'23) has
such a measure and descends it when placing; KAI-Scheduler moves running pods when a pending one would fit by it
("consolidation"). Here the measure chooses the moves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from moorage.kernels import defrag, placing_scores
from moorage.kernels.lifting import scratch_for
from moorage.kernels.placing_scores import Scoring
from moorage.scheduling.model import UNLIMITED, WHOLE, Policy, Snapshot, unmask
from moorage.scheduling.packing import scorings
from moorage.scheduling.packing.named import scoring
from moorage.scheduling.packing.values import SCALE
from moorage.scheduling.quota import Quotas
from moorage.scheduling.running import RunningJobs
from moorage.scheduling.workspace import Kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What the moves of one call may cost."""

    tasks: int
    milli_gpu: int = UNLIMITED
    """Of all jobs that restart, together: a gang counts as a whole, once."""
    least_gain: int = 20
    """Milli-GPU that a move must make usable, by the estimate, for each task that restarts for it: less is not worth a
    restart."""
    gangs: bool = False
    """Tasks of gangs move too, one by one."""
    least_run_ns: int = 0
    """Who started or resumed a shorter time ago stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A lease is released, and granted again with its task `task` (from 0) here. `gpu_mib` is per device."""

    lease: str
    task: int
    node: str
    devices: tuple[int, ...]
    gpu_mib: int
    gain: int
    """Milli-GPU made usable, by the estimate."""


def defragment(snapshot: Snapshot, budget: Budget, policy: Policy | None = None) -> tuple[Move, ...]:
    """The moves in the order in which they are to be carried out, one by one: each fits when those before it are done,
    and its new place is free before the old one is given up.

    Only jobs that `running` marks as movable, and of one task unless the budget is for gangs too; who may change its
    GPU model is told there. No move breaks a gang's domain or spread, takes it out of a domain that it prefers, or uses
    a device that a power cap of `policy` forbids, be it until the old place is given up. What teams hold stays as it
    was, so no quota is looked at. Nothing is moved in a pool whose mix has no task of one GPU or less: then nothing can
    be valued.
    """
    ledger, running = snapshot.ledger, snapshot.running or RunningJobs()
    policy, size = policy or Policy(), np.diff(running.first)
    may = running.may_move(ledger, Quotas.of(ledger).columns())
    may = np.where((size == 1) | (budget.gangs & (size > 0)), may, 0)
    if running.ran_ns is not None:
        may = np.where(running.ran_ns < budget.least_run_ns, 0, may)
    jobs = np.flatnonzero(may)
    rule = _scoring(snapshot, running)
    if not len(jobs) or rule.kind != placing_scores.POTENTIAL:
        return ()
    kept = Kept.of(replace(snapshot, scoring=rule), policy)
    klass, pool = kept.rows(ledger, running.classes), kept.pool
    task = np.concatenate([np.arange(running.first[j], running.first[j + 1]) for j in jobs])
    first = np.concatenate((np.zeros(1, np.int64), np.cumsum(size[jobs])))
    job = np.repeat(np.arange(len(jobs)), size[jobs])
    headed = np.zeros(len(running), np.int64) if running.headed is None else running.headed
    milli = pool.classes.milli[klass[running.task_class[task]]]
    tasks = defrag.Tasks(
        klass=klass[running.task_class[task]],
        node=running.task_node[task],
        mask=running.task_mask[task],
        may=may[jobs][job],
        release=np.zeros(len(task), np.int64),
        seen=np.full(len(task), -1, np.int64),
        job=job,
        worker=(np.arange(len(task)) > first[job]) | (headed[jobs][job] == 0),
    )
    gangs = defrag.Gangs(
        first=first,
        milli=np.bincount(job, weights=milli, minlength=len(jobs)).astype(np.int64),
        stopped=np.zeros(len(jobs), np.bool_),
    )
    most = max(0, min(budget.tasks, len(task)))
    out = defrag.Moved(*np.zeros((4, most), np.int64))
    among, least = np.zeros(len(ledger.up), np.bool_), budget.least_gain * SCALE
    made = defrag.defragment(pool, tasks, gangs, scratch_for(pool), among, most, budget.milli_gpu, least, out)
    return tuple(_move(snapshot, running, int(task[out.task[i]]), out, i) for i in range(made))


def _scoring(snapshot: Snapshot, running: RunningJobs) -> Scoring:
    """The potential rule, for the mix of what runs and what waits when the pool packs by another one."""
    if snapshot.scoring is not None and snapshot.scoring.kind == placing_scores.POTENTIAL:
        return snapshot.scoring
    queue = snapshot.pending
    waiting = np.zeros(len(queue.classes), np.int64)
    np.add.at(waiting, queue.head[queue.head >= 0], 1)
    some = queue.worker >= 0
    np.add.at(waiting, queue.worker[some], queue.workers[some])
    count = np.concatenate((np.bincount(running.task_class, minlength=len(running.classes)), waiting))
    return scoring(scorings.POTENTIAL, snapshot.ledger, (*running.classes, *queue.classes), count)


def _move(snapshot: Snapshot, running: RunningJobs, task: int, out: defrag.Moved, at: int) -> Move:
    """`task`: its row of the task columns."""
    ledger, node = snapshot.ledger, int(out.node[at])
    shape = running.classes[int(running.task_class[task])].shape
    job = int(np.searchsorted(running.first, task, side="right")) - 1
    device_mib = int(ledger.device_mib[node])
    if shape.milli_gpu >= WHOLE:
        mib = device_mib
    else:
        mib = (shape.gpu_mib or shape.milli_gpu * device_mib // WHOLE) if shape.milli_gpu else 0
    return Move(
        lease=running.leases[job],
        task=task - int(running.first[job]),
        node=ledger.node_names[node],
        devices=unmask(int(out.mask[at])),
        gpu_mib=mib,
        gain=int(out.gain[at]) // SCALE,
    )
