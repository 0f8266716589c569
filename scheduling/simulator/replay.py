"""Replays arrivals through the public `plan()`: one seed of the openb protocol under one packing rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from moorage.kernels.placing_scores import Scoring
from moorage.scheduling.ledger import Ledger, NodeUp, TeamSet, step
from moorage.scheduling.model import (
    UNLIMITED,
    WHOLE,
    DeviceRule,
    IntArray,
    NodeSpec,
    Policy,
    Snapshot,
    TeamSpec,
)
from moorage.scheduling.packing.named import RULES, scoring
from moorage.scheduling.planner import plan
from moorage.scheduling.simulator.migrating import Migrating
from moorage.scheduling.simulator.model import ArrivalsResult, BoolArray, NotSimulated, Workload
from moorage.scheduling.simulator.openb import arrivals, curve
from moorage.scheduling.simulator.queueing import Jobs

POLICIES = RULES
"""Packing rule -> what it does. The first is the default."""

Stopwatch = Callable[[], float]
"""Seconds, as `time.perf_counter` gives them: the core has no clock of its own."""


def replay(
    nodes: Sequence[NodeSpec],
    workload: Workload,
    *,
    demand: float,
    seed: int,
    policy: str,
    rule: DeviceRule,
    migrate: float = 0.0,
    stopwatch: Stopwatch | None = None,
) -> ArrivalsResult:
    """Fill the nodes until the demand is reached; what `plan()` does not start is refused when it comes.

    `migrate` is the share of the tasks placed that may be moved, so that an arrival fits which else would not. Raises
    NotSimulated, and ValueError as `arrivals` does.
    """
    if policy not in POLICIES:
        raise NotSimulated(f"there is no policy {policy!r}")
    capacity = sum(node.devices for node in nodes) * WHOLE
    come = arrivals(workload, [node.name for node in nodes], capacity, demand, seed)
    ledger = Ledger()
    for team in workload.teams:
        step(ledger, TeamSet(TeamSpec(name=team)))
    for row in np.argsort(come.tie).tolist():
        step(ledger, NodeUp(nodes[row]))
    jobs = Jobs.of(workload)
    rows = come.order
    scores = scoring(policy, ledger, jobs.classes, np.bincount(jobs.klass), seed)
    if migrate:
        if (workload.workers != 1).any():
            raise NotSimulated("migration is simulated for jobs of one task each")
        moving = Migrating(ledger, jobs, rows, rule, scores, migrate)
        accepted, elapsed = moving.run(stopwatch)
        moves = moving.moves
    else:
        accepted, elapsed = _at_once(ledger, jobs, rows, rule, scores, stopwatch)
        moves = 0
    return ArrivalsResult(
        seed=seed,
        order=rows,
        accepted=accepted,
        allocation=curve(workload.gpus()[rows], accepted, capacity, demand),
        elapsed_s=elapsed,
        moves=moves,
    )


def _at_once(
    ledger: Ledger, jobs: Jobs, rows: IntArray, rule: DeviceRule, scores: Scoring, stopwatch: Stopwatch | None
) -> tuple[BoolArray, float]:
    """(accepted by arrival, seconds inside `plan()`): one decision over all arrivals."""
    snapshot = Snapshot(
        version=ledger.version,
        ledger=ledger,
        pending=jobs.queue(rows, arrival=True),
        device_rule=rule,
        scoring=scores,
    )
    begun = stopwatch() if stopwatch else 0.0
    decided = plan(snapshot, Policy(hold_after_ns=UNLIMITED), 0)
    elapsed = stopwatch() - begun if stopwatch else 0.0
    accepted = np.zeros(len(rows), np.bool_)
    accepted[decided.admitted] = True
    return accepted, elapsed
