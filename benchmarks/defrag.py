"""Defragmentation ahead of need: a pool from which jobs have left is repaired with a few moves, then filled again.

The openb cluster is filled to 95 percent, each job then leaves with a chance of 30 percent, `defragment()` may move 2
percent of the tasks that stay, and the rest of the arrivals are offered job by job, once to the pool as it was and once
to the pool after the moves. All packing is by one rule, best fit or potential; the moves are carried out on the ledger.

The traces are data that the repository does not carry: MOORAGE_TRACES names their folder, else ../shared/traces.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import numpy as np
from _frame import Figure, main
from packing import FOLDER, note

from moorage.runtime.history.openb import read_jobs, read_nodes
from moorage.scheduling.defrag import Budget, defragment
from moorage.scheduling.ledger import LeaseGranted, LeaseReleased, Ledger, NodeUp, TeamSet, step
from moorage.scheduling.model import UNLIMITED, DeviceRule, NodeSpec, Policy, Snapshot, TeamSpec
from moorage.scheduling.packing.named import scoring
from moorage.scheduling.planner import plan
from moorage.scheduling.queue import Queue
from moorage.scheduling.simulator.migrating import Migrating
from moorage.scheduling.simulator.model import Workload
from moorage.scheduling.simulator.openb import arrivals
from moorage.scheduling.simulator.queueing import Jobs

FULL, LEAVES, SHARE = 0.95, 0.3, 0.02


def churned(nodes: tuple[NodeSpec, ...], workload: Workload, policy: str, seed: int) -> tuple[Migrating, int]:
    """The pool after jobs have left, and the first arrival that has not come yet."""
    capacity = sum(node.devices for node in nodes) * 1000
    come = arrivals(workload, [node.name for node in nodes], capacity, 1.6, seed)
    ledger, jobs = Ledger(), Jobs.of(workload)
    for team in workload.teams:
        step(ledger, TeamSet(TeamSpec(name=team)))
    for row in np.argsort(come.tie).tolist():
        step(ledger, NodeUp(nodes[row]))
    scores = scoring(policy, ledger, jobs.classes, np.bincount(jobs.klass), seed)
    upto = int(np.searchsorted(np.cumsum(workload.gpus()[come.order]), FULL * capacity))
    pool = Migrating(ledger, jobs, come.order[:upto], DeviceRule.FREE, scores, 0.0)
    pool.run(None)
    rng = np.random.default_rng(seed)
    for arrival in list(pool.leases):
        if rng.random() < LEAVES:
            lease = pool.leases.pop(arrival)
            del pool.place[arrival]
            step(ledger, LeaseReleased(lease.lease, lease.epoch))
    return replace(pool, rows=come.order), upto


def filled(pool: Migrating, ledger: Ledger, first: int) -> float:
    """Percent of the GPUs held once the rest of the arrivals have been offered."""
    queue = pool.jobs.queue(pool.rows[first:], arrival=True)
    snapshot = Snapshot(
        version=ledger.version, ledger=ledger, pending=queue, device_rule=pool.rule, scoring=pool.scoring
    )
    decided = plan(snapshot, Policy(hold_after_ns=UNLIMITED), 0)
    total = ledger.devices.sum() * 1000
    return 100 * float(total - ledger.milli_free.sum() + decided.task_milli.sum()) / float(total)


def one(nodes: tuple[NodeSpec, ...], workload: Workload, policy: str, seed: int) -> tuple[float, ...]:
    """(percent held at the end without moves, with them; whole idle GPUs before, after; moves; s of the call)."""
    pool, first = churned(nodes, workload, policy, seed)
    ledger = pool.ledger
    before, idle = filled(pool, ledger.copy(), first), int((ledger.milli_free == 1000).sum())
    running = pool._running()
    snapshot = Snapshot(
        version=ledger.version,
        ledger=ledger,
        pending=Queue(),
        device_rule=pool.rule,
        running=running,
        scoring=pool.scoring,
    )
    begun = time.perf_counter()
    moves = defragment(snapshot, Budget(tasks=int(SHARE * len(running))))
    took = time.perf_counter() - begun
    for move in moves:
        lease = ledger.leases[move.lease]
        task = replace(lease.tasks[0], node=move.node, devices=move.devices, gpu_mib=move.gpu_mib)
        step(ledger, LeaseReleased(lease.lease, lease.epoch))
        step(ledger, LeaseGranted(replace(lease, epoch=ledger.last_epoch + 1, tasks=(task,))))
    after, then = filled(pool, ledger, first), int((ledger.milli_free == 1000).sum())
    return before, after, idle, then, len(moves), took


def measure(quick: bool) -> list[Figure]:
    if not FOLDER.is_dir():
        note("no traces here: MOORAGE_TRACES names no folder, and ../shared/traces is not there")
        return []
    nodes = read_nodes(FOLDER / "openb_node_list_gpu_node.csv")
    workload = read_jobs(FOLDER / "openb_pod_list_default.csv").that_fit(nodes).workload
    figures = []
    for policy in ("potential", "best-fit"):
        one(nodes, workload, policy, 1)  # compiles
        runs = np.array([one(nodes, workload, policy, seed) for seed in range(42, 43 if quick else 47)])
        before, after, idle, then, moves, took = runs.mean(axis=0).tolist()
        figures.append(
            Figure(
                metric=f"packed by {policy}: idle whole GPUs after the moves",
                ours=then,
                better="higher",
                peer=idle,
                peer_name=f"before them; {moves:.0f} moves, {took * 1e3:.0f} ms",
                target=1.0,
            )
        )
        print(f"{policy}: {runs.round(3).tolist()}", file=sys.stderr)
        figures.append(
            Figure(
                metric=f"packed by {policy}: GPUs held % after filling again",
                ours=after,
                better="higher",
                peer=before,
                peer_name="the same arrivals without the moves",
                target=1.0,
            )
        )
    return figures


if __name__ == "__main__":
    raise SystemExit(main(measure, "what a few moves are worth in a pool from which jobs have left"))
