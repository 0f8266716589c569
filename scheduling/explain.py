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
from itertools import islice

import numpy as np

from moorage.scheduling import ending, raising
from moorage.scheduling.changes import Change, FewerWorkers, OtherModel, Undrain
from moorage.scheduling.explanation import Explanation
from moorage.scheduling.model import ANY_MODEL, Plan, Policy, Reason, ReasonCode, Snapshot
from moorage.scheduling.planner import plan
from moorage.scheduling.relaxing import ANYHOW, EVERYTHING, Closer, Relax, relaxations, wider
from moorage.scheduling.spans import span
from moorage.scheduling.trying import Enough, Trial, least
from moorage.scheduling.words import models_of

__all__ = ["Explanation", "explain", "span"]

MOST_RELAXED = 8
"""So many single constraints are tried."""
MOST_UNDRAINED = 8
"""So many drained nodes are tried alone."""


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

    Cost in calls of `plan()`, with L leases, w = min_workers, M models, D capped domains, and k limits and quotas that
    bound the job's team: 2 + log2 w for the gang, M + 1 for models, 10 for constraints on nodes, levels + 1 + log2 w
    for topology and spread, 9 for drained nodes, k + 2 + 4 * 68 for raises, D + 10 + 2 * log2 D + 4 * 20 for
    power caps, 9 + 2 * log2 L for the time, 3 * (16 * (9 + 2 * log2 L) + 32) + 64 for ends. A few dozen as a rule.
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
                for find in (_gang, _models, _constraints, _undrained, raising.raises, raising.caps):
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
    asked = [c.constraints for c in trial.classes()]
    alone = relaxations(trial.snapshot.ledger, asked)[:MOST_RELAXED]
    found: list[Change] = [change for change in alone if trial.starts(change)]
    near = [change for search in (_wider, _closer) for change in search(trial)]
    if not found and not near and len(alone) > 1 and trial.starts(Relax(EVERYTHING)):
        found = [Relax(EVERYTHING)]
    elif not found and not near and any(one.near for one in asked) and trial.starts(Relax(ANYHOW)):
        found = [Relax(ANYHOW)]
    yield from (*found, *near)


def _undrained(trial: Trial) -> Iterator[Change]:
    """Each drained node that would do, put back; where none does alone, all of them."""
    drained = trial.snapshot.drained
    found = [one for name in drained[:MOST_UNDRAINED] if trial.starts(one := Undrain((name,)))]
    if not found and len(drained) > 1 and trial.starts(Undrain(drained)):
        found = [Undrain(drained)]
    yield from found


def _wider(trial: Trial) -> Iterator[Change]:
    """The next wider level that does in place of the one required."""
    levels = wider([c.constraints for c in trial.classes()], trial.policy.topology)
    yield from islice((change for change in levels if trial.starts(change)), 1)


def _closer(trial: Trial) -> Iterator[Change]:
    """The least that spread would have to allow."""
    most = int(trial.snapshot.pending.min_workers[trial.row])
    for now, by in dict.fromkeys((c.constraints.spread, c.constraints.spread_by) for c in trial.classes()):
        if 0 < now < most and trial.starts(Closer(most, by)):
            more = least(lambda n, now=now, by=by: trial.starts(Closer(now + n, by)), most - now)  # type: ignore[misc]
            yield Closer(now + more, by)
