"""`explain(snapshot, policy, now_ns, row, ends) -> Explanation`: why a job waits, what would start it now, and when.

Nothing here knows the rules of `plan()`: each suggestion is found by changing a copy of the snapshot and planning
again, and stands only if the job is admitted in that plan. So an explanation cannot promise what the planner would not
do, whatever rules it comes to have. Each suggestion is minimal in that one worker more, one milli-GPU less, or one
lease fewer does not do, which is tried too.

What starts is not always monotone (an end may let another job start, which takes more than was freed): the searches
find a boundary, which is the first one wherever more help never hurts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from moorage.scheduling.accounts import Account
from moorage.scheduling.changes import (
    Change,
    Ends,
    FewerWorkers,
    OtherModel,
    Raise,
    RaiseBudget,
    RaiseLimit,
    RaiseQuota,
    Together,
    changed,
)
from moorage.scheduling.explanation import Explanation
from moorage.scheduling.model import (
    ANY_MODEL,
    UNLIMITED,
    WHOLE,
    Lease,
    Plan,
    Policy,
    Reason,
    ReasonCode,
    Snapshot,
)
from moorage.scheduling.planner import plan
from moorage.scheduling.relaxing import EVERYTHING, Relax, relaxations
from moorage.scheduling.spans import span
from moorage.scheduling.words import models_of

__all__ = ["Explanation", "explain", "span"]

MOST_ENDS = 16
"""A suggestion names no more leases than this."""
MOST_RAISES = 4
MOST_RELAXED = 8
"""So many single constraints are tried."""
_ONE_BY_ONE = 8
"""The first lengths of a search, tried each."""
_SINGLES = 64
"""In a pool of no more leases, each is tried alone."""
_BOUND: dict[ReasonCode, type[RaiseLimit] | type[RaiseQuota]] = {
    ReasonCode.TEAM_LIMIT: RaiseLimit,
    ReasonCode.TEAM_QUOTA: RaiseQuota,
}


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
    trial = _Trial(
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
                suggestions.extend(_budgets(trial))
                earliest = _next_period(trial)
            else:
                for find in (_gang, _models, _constraints, _raises):
                    suggestions.extend(find(trial))
                earliest = _earliest(trial, ends or {})
                suggestions.extend(_ends(trial))  # the longest search: last
        except _Enough as enough:
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


class _Enough(Exception):
    """The search is to stop. `found` is what the search that was stopped had found."""

    def __init__(self, found: tuple[Change, ...] = ()) -> None:
        super().__init__()
        self.found = found


@dataclass(slots=True)
class _Trial:
    """The job, the pool, and what was tried."""

    snapshot: Snapshot
    policy: Policy
    now_ns: int
    row: int
    reason: Reason
    go_on: Callable[[int], bool]
    plans: int = 1
    seen: dict[tuple[Change, int], bool] = field(default_factory=dict)

    def starts(self, change: Change, at_ns: int | None = None) -> bool:
        """Whether the job is admitted after the change, at another time than now if one is given."""
        when = self.now_ns if at_ns is None else at_ns
        if (change, when) not in self.seen:
            try:
                after = changed(self.snapshot, self.row, (change,))
            except ValueError:
                self.seen[change, when] = False
            else:
                if not self.go_on(self.plans):
                    raise _Enough
                self.plans += 1
                self.seen[change, when] = bool(np.any(plan(after, self.policy, when).admitted == self.row))
        return self.seen[change, when]

    def team(self) -> int:
        queue = self.snapshot.pending
        return self.snapshot.ledger.team_row[queue.teams[int(queue.team[self.row])]]

    def path(self) -> list[int]:
        """Rows of the job's team and of those above it."""
        rows, at = [], self.team()
        while at >= 0:
            rows.append(at)
            at = int(self.snapshot.ledger.team_parent[at])
        return rows

    def models(self) -> list[str]:
        """GPU models on nodes that are up, in the ledger's order."""
        ledger = self.snapshot.ledger
        return [ledger.models[m] for m in np.unique(ledger.model[ledger.up & (ledger.devices > 0)])]

    def others(self) -> list[Lease]:
        """Leases that are not of the job itself, oldest first."""
        queue = self.snapshot.pending
        own = {queue.names[self.row]}
        if queue.requests and queue.requests[self.row].parent:
            own.add(queue.requests[self.row].parent)
        held = [lease for lease in self.snapshot.ledger.leases.values() if lease.job not in own]
        return sorted(held, key=lambda lease: lease.epoch)


def _least(does: Callable[[int], bool], high: int) -> int:
    """The least amount that does, above 0, which does not, up to `high`, which does."""
    if high > 1 and not does(high - 1):
        return high
    low, high = 0, max(1, high - 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if does(middle) else (middle, high)
    return high


def _shortest(does: Callable[[int], bool], most: int) -> int | None:
    """The least length 1..most that does: the first few one by one, then doubling, then between the last two."""
    low = 0
    while low < most:
        high = min(most, low + 1 if low < _ONE_BY_ONE else 2 * low)
        if does(high):
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if does(middle) else (middle, high)
            return high
        low = high
    return None


def _gang(trial: _Trial) -> Iterator[Change]:
    """The largest smaller gang."""
    whole = int(trial.snapshot.pending.min_workers[trial.row])
    if whole <= 1 or not trial.starts(FewerWorkers(1)):
        return
    fewer = _least(lambda n: trial.starts(FewerWorkers(whole - n)), whole - 1)
    yield FewerWorkers(whole - fewer)


def _models(trial: _Trial) -> Iterator[Change]:
    """Each model that would do beside those asked for; where none does alone, all."""
    asked = models_of(trial.snapshot, trial.row)
    if not asked:
        return
    alone = [OtherModel(model) for model in trial.models() if model not in asked]
    found = [change for change in alone if trial.starts(change)]
    if not found and alone and trial.starts(OtherModel(ANY_MODEL)):
        found = [OtherModel(ANY_MODEL)]
    yield from found


def _constraints(trial: _Trial) -> Iterator[Change]:
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


def _raises(trial: _Trial) -> Iterator[Change]:
    """The least raise of the limit or quota that binds; where one is not enough, the fewest found."""
    reason = trial.reason
    gap = reason.held + reason.asked - reason.allowed
    if reason.code in _BOUND and gap > 0:
        kind, team, model = _BOUND[reason.code], reason.team, reason.gpu_model
        if trial.starts(kind(team, model, gap)):
            yield kind(team, model, _least(lambda milli: trial.starts(kind(team, model, milli)), gap))
            return
    knobs = _knobs(trial)
    if not knobs or not trial.starts(_together(knobs)):
        return
    for knob in list(knobs):
        if len(knobs) > 1 and trial.starts(_together([k for k in knobs if k is not knob])):
            knobs.remove(knob)
    if len(knobs) <= MOST_RAISES and (least := _narrowed(trial, knobs)):
        yield _together(least)


def _spent(trial: _Trial) -> list[Account]:
    """The accounts that are out of budget, of the job's team and of those above it."""
    path = {trial.snapshot.ledger.team_names[row] for row in trial.path()}
    accounts = trial.snapshot.accounts
    return [a for a in (accounts.budgets if accounts else ()) if a.out and a.budget.team in path]


def _refilled(spent: Sequence[Account]) -> Change:
    """The least raise of each budget under which it is not used up."""
    return _together(
        [
            RaiseBudget(a.budget.team, a.budget.unit, a.budget.period, a.spent - a.budget.amount + 1)
            for a in spent
        ]
    )


def _budgets(trial: _Trial) -> Iterator[Change]:
    """All budgets that are used up: none of them is enough alone."""
    change = _refilled(_spent(trial))
    if trial.starts(change):
        yield change


def _next_period(trial: _Trial) -> int | None:
    """When the last of the budgets that are used up begins anew, if the job starts then with all else as it is."""
    spent = _spent(trial)
    until = max(account.until_ns for account in spent)
    return until if trial.starts(_refilled(spent), until) else None


def _knobs(trial: _Trial) -> list[Raise]:
    """All that may bind the job's team, raised beyond what the pool could ever need. What is likeliest to be needed
    comes last: it is the last to be tried without."""
    ledger, reason = trial.snapshot.ledger, trial.reason
    usable = models_of(trial.snapshot, trial.row) or tuple(trial.models())
    columns = [ledger.models.index(m) for m in usable if m in ledger.models] + [0]
    wide = int(ledger.capacity()[0]) + int(ledger.used[:, 0].sum()) + reason.asked + WHOLE
    knobs: list[Raise] = []
    for c in columns:
        if ledger.quota[:, c].max(initial=0) > 0:
            knobs.append(RaiseQuota(ledger.team_names[trial.team()], ledger.models[c], wide))
    for at in reversed(trial.path()):
        for c in columns:
            if ledger.limit[at, c] < UNLIMITED:
                knobs.append(RaiseLimit(ledger.team_names[at], ledger.models[c], wide))
    knobs.sort(key=lambda knob: (knob.team, knob.gpu_model) == (reason.team, reason.gpu_model))
    return knobs


def _together(raises: Sequence[Raise | RaiseBudget]) -> Change:
    return raises[0] if len(raises) == 1 else Together(tuple(raises))


def _narrowed(trial: _Trial, knobs: list[Raise]) -> list[Raise] | None:
    """Each raise as small as the others allow. None when, in the end, less of one would do after all."""
    for i in range(len(knobs)):

        def does(milli: int, i: int = i, of: list[Raise] = knobs) -> bool:
            return trial.starts(_together(_with(of, i, milli)))

        if len(knobs) > 1 and does(0):  # was there only so that a quota stayed within a limit
            return _narrowed(trial, knobs[:i] + knobs[i + 1 :])
        knobs = _with(knobs, i, _least(does, knobs[i].milli))
    less = (_with(knobs, i, knob.milli - 1) for i, knob in enumerate(knobs))
    return None if any(trial.starts(_together(fewer)) for fewer in less) else knobs


def _with(knobs: list[Raise], i: int, milli: int) -> list[Raise]:
    return [*knobs[:i], replace(knobs[i], milli=milli), *knobs[i + 1 :]]


def _ending(leases: Sequence[Lease]) -> Ends:
    oldest = sorted(leases, key=lambda lease: lease.epoch)
    return Ends(tuple(one.lease for one in oldest), tuple(dict.fromkeys(one.job for one in oldest)))


def _ends(trial: _Trial) -> Iterator[Change]:
    """The fewest leases found whose end starts the job: none of them can be left out."""
    leases = trial.others()
    best: list[Lease] | None = None
    try:
        for order in _orders(trial, leases):
            found = _core(trial, order)
            if found and (best is None or len(found) < len(best)):
                best = found
            if best and len(best) == 1:
                break
        if (best is None or len(best) > 1) and len(leases) <= _SINGLES:
            best = next(([one] for one in leases if trial.starts(_ending([one]))), best)
    except _Enough:
        raise _Enough((_ending(best),) if best else ()) from None
    if best:
        yield _ending(best)


def _orders(trial: _Trial, leases: list[Lease]) -> Iterator[list[Lease]]:
    """The leases in several orders: who holds most of what the job may use (and of those the smallest), the oldest
    first, and node by node. Whose end is no use is passed over by `_core`."""
    ledger, asked = trial.snapshot.ledger, models_of(trial.snapshot, trial.row)
    known = [ledger.models.index(m) for m in asked if m in ledger.models]
    usable = ledger.up & (np.isin(ledger.model, known) if asked else np.ones(len(ledger.up), np.bool_))
    need = _lacking(trial.reason)
    on: dict[int, dict[str, Lease]] = {}
    held: dict[str, int] = {}
    for lease in leases:
        for task in lease.tasks:
            node = ledger.node_row[task.node]
            if usable[node]:
                amount = task.milli_gpu if trial.reason.asked else task.milli_cpu
                held[lease.lease] = held.get(lease.lease, 0) + amount
                on.setdefault(node, {})[lease.lease] = lease
    far = [lease for lease in leases if lease.lease not in held]
    near = [lease for lease in leases if lease.lease in held]
    by_use = sorted(near, key=lambda x: (-min(held[x.lease], need), held[x.lease], x.epoch))
    yield [*by_use, *far]
    yield [*near, *far]
    nodes = sorted(on, key=lambda node: (len(on[node]), node))
    yield [*{lease.lease: lease for node in nodes for lease in on[node].values()}.values(), *far]


def _lacking(reason: Reason) -> int:
    """Milli-GPU by which the job is short, as far as the reason says."""
    gap = reason.asked - reason.free if reason.code is ReasonCode.POOL_FULL else reason.asked
    return (reason.held + reason.asked - reason.allowed if reason.code in _BOUND else gap) or UNLIMITED


def _core(trial: _Trial, order: list[Lease]) -> list[Lease] | None:
    """A set of leases that does, none of which can be left out. The last of the shortest prefix that does is needed;
    it is kept, and the rest searched again for what it still lacks."""
    kept: list[Lease] = []
    rest = order
    while not kept or not trial.starts(_ending(kept)):
        if len(kept) == MOST_ENDS:
            return None
        shortest = _shortest(lambda n, k=kept, r=rest: trial.starts(_ending([*k, *r[:n]])), len(rest))  # type: ignore[misc]
        if shortest is None:
            return None
        kept, rest = [*kept, rest[shortest - 1]], rest[: shortest - 1]
    for one in list(kept):
        fewer = [lease for lease in kept if lease is not one]
        if fewer and trial.starts(_ending(fewer)):
            kept = fewer
    needed = len(kept) == 1 or not any(trial.starts(_ending([x for x in kept if x is not y])) for y in kept)
    return kept if needed else None


def _earliest(trial: _Trial, ends: Mapping[str, int]) -> int | None:
    """When the job starts if leases end in the order of their known ends. One that should have ended ends now."""
    known = [(max(ends[x.lease], trial.now_ns), x) for x in trial.others() if x.lease in ends]
    times = sorted({at for at, _ in known})

    def does(count: int) -> bool:
        gone = [lease for at, lease in known if at <= times[count - 1]]
        return trial.starts(_ending(gone), times[count - 1])

    shortest = _shortest(does, len(times))
    return None if shortest is None else times[shortest - 1]
