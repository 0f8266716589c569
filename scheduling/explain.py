"""`explain(snapshot, policy, now_ns, row, ends) -> Explanation`: why a job waits, what would start it now, and when.

Nothing here knows the rules of `plan()`: each suggestion is found by changing a copy of the snapshot and planning
again, and stands only if the job is admitted in that plan. So an explanation cannot promise what the planner would not
do, whatever rules it comes to have. Each suggestion is minimal in that one worker more, one milli-GPU less, or one
lease fewer does not do, which is tried too.

What starts is not always monotone (an end may let another job start, which takes more than was freed): the searches
find a boundary, which is the first one wherever more help never hurts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from moorage.scheduling import ending, raising
from moorage.scheduling.changes import Change, FewerWorkers, OtherModel
from moorage.scheduling.explanation import Explanation
from moorage.scheduling.model import ANY_MODEL, Plan, Policy, Reason, ReasonCode, Snapshot
from moorage.scheduling.planner import plan
from moorage.scheduling.relaxing import EVERYTHING, Relax, relaxations
from moorage.scheduling.spans import span
from moorage.scheduling.trying import Enough, Trial, least
from moorage.scheduling.words import models_of

__all__ = ["Explanation", "explain", "span"]

MOST_RELAXED = 8
"""So many single constraints are tried."""


def explain(
    snapshot: Snapshot,
    policy: Policy,
    now_ns: int,
    row: int,
    ends: Mapping[str, int] | None = None,
    go_on: Callable[[int], bool] | None = None,
) -> Explanation:
    """Explain row `row` of the queue. `ends`: when leases will have ended at the latest (ns), where that is known.
    `go_on(plans made)` is asked before each plan but the first: False stops the search, and what was found stands.

    Raises `ValueError` when the job starts now, or there is no such row. Pure; the snapshot stays as it is.

    Cost in calls of `plan()`, with L leases, w = min_workers, M models, and k limits and quotas that bound the job's
    team: 2 + log2 w for the gang, M + 1 for models, 9 for constraints, k + 2 + 4 * 68 for raises, 9 + 2 * log2 L for
    the time, 3 * (16 * (9 + 2 * log2 L) + 32) + 64 for ends. A few dozen as a rule.
    """
    if not 0 <= row < len(snapshot.pending):
        raise ValueError(f"the queue has {len(snapshot.pending)} rows, and no row {row}")
    first = plan(snapshot, policy, now_ns)
    if row in first.admitted:
        raise ValueError(f"{snapshot.pending.names[row]} starts now: there is nothing to explain")
    reason = _reason(first, row)
    trial = Trial(
        snapshot=snapshot,
        policy=policy,
        now_ns=now_ns,
        row=row,
        reason=reason,
        go_on=go_on or (lambda made: True),
    )
    suggestions: list[Change] = []
    earliest, complete = None, True
    if reason.code is not ReasonCode.TEAM_UNKNOWN:  # nothing else helps a job of no team
        try:
            if reason.code is ReasonCode.BUDGET:  # nothing but money, or time, helps
                suggestions.extend(raising.budgets(trial))
                earliest = raising.next_period(trial)
            else:
                for find in (_gang, _models, _constraints, raising.raises):
                    suggestions.extend(find(trial))
                earliest = ending.earliest(trial, ends or {})
                suggestions.extend(ending.fewest(trial))  # the longest search: last
        except Enough as enough:
            suggestions.extend(enough.found)
            complete = False
    return Explanation(
        job=snapshot.pending.names[row],
        now_ns=now_ns,
        reason=reason,
        suggestions=tuple(suggestions),
        earliest_ns=earliest,
        plans=trial.plans,
        complete=complete,
    )


def _reason(made: Plan, row: int) -> Reason:
    """The reason of one row, without drawing those of all others."""
    d = int(np.flatnonzero(made.deferred == row)[0])
    words = made.words
    only = replace(words, code=words.code[d : d + 1], figures=words.figures[d : d + 1], _said=None)
    return only.reasons(made.deferred[d : d + 1])[0]


def _gang(trial: Trial) -> Iterator[Change]:
    """The largest smaller gang."""
    whole = int(trial.snapshot.pending.min_workers[trial.row])
    if whole <= 1 or not trial.starts(FewerWorkers(1)):
        return
    fewer = least(lambda n: trial.starts(FewerWorkers(whole - n)), whole - 1)
    yield FewerWorkers(whole - fewer)


def _models(trial: Trial) -> Iterator[Change]:
    """Each model that would do beside those asked for; where none does alone, all."""
    asked = models_of(trial.snapshot, trial.row)
    if not asked:
        return
    alone = [OtherModel(model) for model in trial.models() if model not in asked]
    found = [change for change in alone if trial.starts(change)]
    if not found and alone and trial.starts(OtherModel(ANY_MODEL)):
        found = [OtherModel(ANY_MODEL)]
    yield from found


def _constraints(trial: Trial) -> Iterator[Change]:
    """Each single constraint that it could do without; where none is enough alone, all of them."""
    queue = trial.snapshot.pending
    asked = [
        queue.classes[int(c[trial.row])].constraints for c in (queue.head, queue.worker) if c[trial.row] >= 0
    ]
    alone = relaxations(trial.snapshot.ledger, asked)[:MOST_RELAXED]
    found = [change for change in alone if trial.starts(change)]
    if not found and len(alone) > 1 and trial.starts(Relax(EVERYTHING)):
        found = [Relax(EVERYTHING)]
    yield from found
