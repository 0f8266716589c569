"""Which limits, quotas, budgets and power caps would have to be raised for a job to start, and by how much at least."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from moorage.scheduling.accounts import Account
from moorage.scheduling.bound import drawn
from moorage.scheduling.changes import Change, Raise, RaiseBudget, RaiseCap, RaiseLimit, RaiseQuota, Together
from moorage.scheduling.columns import usable
from moorage.scheduling.domains import domain_names
from moorage.scheduling.model import UNLIMITED, WHOLE, ReasonCode
from moorage.scheduling.trying import Trial, least, shortest
from moorage.scheduling.words import models_of

MOST_RAISES = 4
BOUND: dict[ReasonCode, type[RaiseLimit] | type[RaiseQuota]] = {
    ReasonCode.TEAM_LIMIT: RaiseLimit,
    ReasonCode.TEAM_QUOTA: RaiseQuota,
}


def raises(trial: Trial) -> Iterator[Change]:
    """The least raise of the limit or quota that binds; where one is not enough, the fewest found."""
    reason = trial.reason
    gap = reason.held + reason.asked - reason.allowed
    if reason.code in BOUND and gap > 0:
        kind, team, model = BOUND[reason.code], reason.team, reason.gpu_model
        if trial.starts(kind(team, model, gap)):
            yield kind(team, model, least(lambda milli: trial.starts(kind(team, model, milli)), gap))
            return
    knobs = _knobs(trial)
    if not knobs or not trial.starts(_together(knobs)):
        return
    yield from _fewest(trial, [*knobs])


def caps(trial: Trial) -> Iterator[Change]:
    """The least raise of a power cap; where one is not enough, the fewest found."""
    knobs = _caps(trial)
    if not knobs or not trial.starts(_together(knobs)):
        return
    length = shortest(lambda n: trial.starts(_together(knobs[:n])), len(knobs))
    if length is not None:
        yield from _fewest(trial, knobs[:length])


def _fewest(trial: Trial, knobs: list[Raise]) -> Iterator[Change]:
    """Those without which the others do not do, as small as they may be. Nothing where there are many."""
    for knob in list(knobs):
        if len(knobs) > 1 and trial.starts(_together([k for k in knobs if k is not knob])):
            knobs.remove(knob)
    if len(knobs) <= MOST_RAISES and (narrow := _narrowed(trial, knobs)):
        yield _together(narrow)


def _caps(trial: Trial) -> list[Raise]:
    """Each cap over idle devices that the job may use, raised beyond all that its domain could draw; the one that has
    most left goes first."""
    ledger, policy = trial.snapshot.ledger, trial.policy
    level, found = policy.power.level, list[tuple[int, str, int]]()
    if not policy.power.caps:
        return []
    has = np.arange(ledger.milli_free.shape[1])[None, :] < ledger.devices[:, None]
    idle = ((ledger.milli_free == WHOLE) & has).any(axis=1)
    may = idle & np.any([usable(ledger, c) for c in trial.classes()], axis=0)
    names, of = domain_names(ledger, level, policy.topology)
    all_in_use = drawn(ledger, policy, np.zeros_like(ledger.milli_free))
    for name, (watts, cap) in drawn(ledger, policy, ledger.milli_free).items():
        wide = all_in_use[name][0] - cap
        if wide > 0 and bool(np.any(may & (of == names.index(name)))):
            found.append((watts - cap, name, wide))
    return [RaiseCap(level, name, wide) for _, name, wide in sorted(found)]


def _spent(trial: Trial) -> list[Account]:
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


def budgets(trial: Trial) -> Iterator[Change]:
    """All budgets that are used up: none of them is enough alone."""
    change = _refilled(_spent(trial))
    if trial.starts(change):
        yield change


def next_period(trial: Trial) -> int | None:
    """When the last of the budgets that are used up begins anew, if the job starts then with all else as it is."""
    spent = _spent(trial)
    until = max(account.until_ns for account in spent)
    return until if trial.starts(_refilled(spent), until) else None


def _knobs(trial: Trial) -> list[RaiseLimit | RaiseQuota]:
    """All that may bind the job's team, raised beyond what the pool could ever need. What is likeliest to be needed
    comes last: it is the last to be tried without."""
    ledger, reason = trial.snapshot.ledger, trial.reason
    usable = models_of(trial.snapshot, trial.row) or tuple(trial.models())
    columns = [ledger.models.index(m) for m in usable if m in ledger.models] + [0]
    wide = int(ledger.capacity()[0]) + int(ledger.used[:, 0].sum()) + reason.asked + WHOLE
    knobs: list[RaiseLimit | RaiseQuota] = []
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


def _narrowed(trial: Trial, knobs: list[Raise]) -> list[Raise] | None:
    """Each raise as small as the others allow. None when, in the end, less of one would do after all."""
    for i in range(len(knobs)):

        def does(milli: int, i: int = i, of: list[Raise] = knobs) -> bool:
            return trial.starts(_together(_with(of, i, milli)))

        if len(knobs) > 1 and does(0):  # was there only so that a quota stayed within a limit
            return _narrowed(trial, knobs[:i] + knobs[i + 1 :])
        knobs = _with(knobs, i, least(does, _size(knobs[i])))
    less = (_with(knobs, i, _size(knob) - 1) for i, knob in enumerate(knobs))
    return None if any(trial.starts(_together(fewer)) for fewer in less) else knobs


def _with(knobs: list[Raise], i: int, size: int) -> list[Raise]:
    """The same with knob i of another size."""
    knob = knobs[i]
    other = replace(knob, watts=size) if isinstance(knob, RaiseCap) else replace(knob, milli=size)
    return [*knobs[:i], other, *knobs[i + 1 :]]


def _size(knob: Raise) -> int:
    """By how much: milli-GPU, or W."""
    return knob.watts if isinstance(knob, RaiseCap) else knob.milli
