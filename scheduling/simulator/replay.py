"""Replays arrivals through the public `plan()`: one seed of the openb protocol under one packing rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from moorage.scheduling.ledger import Ledger, NodeUp, TeamSet, step
from moorage.scheduling.model import UNLIMITED, WHOLE, DeviceRule, NodeSpec, Policy, Snapshot, TeamSpec
from moorage.scheduling.packing.named import RULES, scoring
from moorage.scheduling.planner import plan
from moorage.scheduling.simulator.model import ArrivalsResult, NotSimulated, Workload
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

    `migrate` is the share of the tasks placed that may be moved. Raises NotSimulated, and ValueError as `arrivals`
    does.
    """
    if policy not in POLICIES or migrate:
        raise NotSimulated(f"there is no policy {policy!r} with migration {migrate:g}")
    capacity = sum(node.devices for node in nodes) * WHOLE
    come = arrivals(workload, [node.name for node in nodes], capacity, demand, seed)
    ledger = Ledger()
    for team in workload.teams:
        step(ledger, TeamSet(TeamSpec(name=team)))
    for row in np.argsort(come.tie).tolist():
        step(ledger, NodeUp(nodes[row]))
    jobs = Jobs.of(workload)
    snapshot = Snapshot(
        version=ledger.version,
        ledger=ledger,
        pending=jobs.queue(come.order, arrival=True),
        device_rule=rule,
        scoring=scoring(policy, ledger, jobs.classes, np.bincount(jobs.klass), seed),
    )
    begun = stopwatch() if stopwatch else 0.0
    decided = plan(snapshot, Policy(hold_after_ns=UNLIMITED), 0)
    elapsed = stopwatch() - begun if stopwatch else 0.0
    accepted = np.zeros(len(come.order), np.bool_)
    accepted[decided.admitted] = True
    return ArrivalsResult(
        seed=seed,
        order=come.order,
        accepted=accepted,
        allocation=curve(workload.gpus()[come.order], accepted, capacity, demand),
        elapsed_s=elapsed,
    )
