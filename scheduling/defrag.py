"""`defragment(snapshot, budget) -> moves`: running jobs to move ahead of need, so that more can be packed.

Pure, like `plan()`: the snapshot is not changed and the same input gives the same moves. It is for when nothing waits
that a move could help at once; `Policy.moves` is for when something does.

What is lowered is the fragmentation that the potential rule prices (`packing.values`): a move is worth what the
estimate of "what can still be packed" rises by, and the one worth most goes next. FGD (Weng et al., USENIX ATC'23) has
such a measure and descends it when placing; KAI-Scheduler moves running pods when a pending one would fit by it
("consolidation"). Here the measure chooses the moves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moorage.kernels import defrag, placing_scores
from moorage.kernels.lifting import scratch_for
from moorage.kernels.placing import fresh_scores
from moorage.kernels.placing_scores import Scoring
from moorage.kernels.pool import Pool, unlimited
from moorage.scheduling.columns import class_columns, node_columns
from moorage.scheduling.model import UNLIMITED, WHOLE, DeviceRule, Policy, Snapshot, unmask
from moorage.scheduling.packing import scorings
from moorage.scheduling.packing.named import scoring
from moorage.scheduling.packing.values import SCALE
from moorage.scheduling.quota import Quotas
from moorage.scheduling.running import RunningJobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What the moves of one call may cost."""

    tasks: int
    milli_gpu: int = UNLIMITED
    """Of all moved tasks together."""
    least_gain: int = 20
    """Milli-GPU that a move must make usable, by the estimate: less is not worth a restart."""
    least_run_ns: int = 0
    """Who started or resumed a shorter time ago stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One lease of one task: released, and granted again here. `gpu_mib` is per device."""

    lease: str
    node: str
    devices: tuple[int, ...]
    gpu_mib: int
    gain: int
    """Milli-GPU made usable, by the estimate."""


def defragment(snapshot: Snapshot, budget: Budget, policy: Policy | None = None) -> tuple[Move, ...]:
    """The moves in the order in which they are to be carried out, one by one: each fits when those before it are done,
    and its new place is free before the old one is given up.

    Only jobs of one task that `running` marks as movable; who may change its GPU model is told there. What teams hold
    stays the same, so no quota is looked at. Nothing is moved in a pool whose mix has no task of one GPU or less:
    then nothing can be valued.
    """
    ledger, running = snapshot.ledger, snapshot.running or RunningJobs()
    alone = np.diff(running.first) == 1
    may = np.where(alone, running.may_move(ledger, Quotas.of(ledger).columns()), 0)
    if running.ran_ns is not None:
        may = np.where(running.ran_ns < budget.least_run_ns, 0, may)
    if policy is not None and policy.power.caps:  # a move is a start elsewhere, and no cap is looked at here
        return ()
    bound = np.array([c.constraints.near for c in running.classes], np.bool_)
    may = np.where(bound[running.task_class[running.first[:-1]]], 0, may) if len(may) else may
    rows = np.flatnonzero(may)
    rule = _scoring(snapshot, running)
    if not len(rows) or rule.kind != placing_scores.POTENTIAL:
        return ()
    nodes, classes = node_columns(ledger), class_columns(ledger, running.classes)
    raylet = snapshot.device_rule is DeviceRule.RAYLET
    limits = unlimited(len(ledger.up), len(running.classes))
    pool = Pool(nodes, classes, fresh_scores(nodes, classes, rule), rule, raylet, limits)
    task = running.first[rows]
    tasks = defrag.Tasks(
        klass=running.task_class[task],
        node=running.task_node[task],
        mask=running.task_mask[task],
        may=may[rows],
        release=np.zeros(len(rows), np.int64),
        seen=np.full(len(rows), -1, np.int64),
    )
    most = max(0, min(budget.tasks, len(rows)))
    out = defrag.Moved(*np.zeros((4, most), np.int64))
    among = np.zeros(len(ledger.up), np.bool_)
    made = defrag.defragment(
        pool, tasks, scratch_for(pool), among, most, budget.milli_gpu, budget.least_gain * SCALE, out
    )
    return tuple(_move(snapshot, running, int(rows[out.task[i]]), out, i) for i in range(made))


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


def _move(snapshot: Snapshot, running: RunningJobs, row: int, out: defrag.Moved, at: int) -> Move:
    ledger, node = snapshot.ledger, int(out.node[at])
    shape = running.classes[int(running.task_class[running.first[row]])].shape
    device_mib = int(ledger.device_mib[node])
    if shape.milli_gpu >= WHOLE:
        mib = device_mib
    else:
        mib = (shape.gpu_mib or shape.milli_gpu * device_mib // WHOLE) if shape.milli_gpu else 0
    return Move(
        lease=running.leases[row],
        node=ledger.node_names[node],
        devices=unmask(int(out.mask[at])),
        gpu_mib=mib,
        gain=int(out.gain[at]) // SCALE,
    )
