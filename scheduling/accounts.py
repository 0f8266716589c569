"""What teams have used before now: the decayed average that counts in the order among teams, and spending by period.

`Meter` folds it from the times at which leases begin and end; it has no clock of its own. `Accounts` is what a snapshot
carries. The pool's ledger knows none of it: what was used changes with time, not with an event.

The average is an exponential one: it follows what a team holds, and forgets by half with every half-life: the usage of
Slurm's fair-share factor (PriorityDecayHalfLife), scaled so that a team which always holds 8 GPUs has used 8. Periods
are those of the calendar in UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

HOUR_NS = 3600 * 10**9
_SECOND = 10**9


class Period(StrEnum):
    """How long a budget is for."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    QUARTER = "quarter"
    YEAR = "year"

    def around(self, at_ns: int) -> tuple[int, int]:
        """[begin, end) of the period in which `at_ns` (since 1970, UTC) lies. Weeks begin on Monday."""
        day = np.datetime64(at_ns // _SECOND, "s").astype("M8[D]")
        match self:
            case Period.DAY:
                begin, end = day, day + 1
            case Period.WEEK:
                begin = day - (day.astype(np.int64) + 3) % 7  # 1970 began on a Thursday
                end = begin + 7
            case Period.YEAR:
                begin = day.astype("M8[Y]")
                end = begin + 1
            case _:
                months = 3 if self is Period.QUARTER else 1
                month = day.astype("M8[M]")
                begin = month - month.astype(np.int64) % months
                end = begin + months
        return _ns(begin), _ns(end)


def _ns(moment: np.datetime64) -> int:
    return int(moment.astype("M8[s]").astype(np.int64)) * _SECOND


class Unit(StrEnum):
    """What a budget counts."""

    GPU_HOURS = "GPU-hours"
    DOLLARS = "dollars"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a team and all below it may spend in a period, in thousandths of the unit."""

    team: str
    unit: Unit
    amount: int
    period: Period = Period.MONTH


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A budget and what was spent of it in the present period, which ends at `until_ns`. Thousandths of the unit."""

    budget: Budget
    spent: int
    until_ns: int

    @property
    def out(self) -> bool:
        """Nothing is left: nobody below starts anything that would spend more."""
        return self.spent >= self.budget.amount


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounts:
    """The input of one decision. `past`: milli-GPU that a team's own jobs held on average, decayed; absent = 0."""

    past: Mapping[str, int] = field(default_factory=dict)
    budgets: tuple[Account, ...] = ()


@dataclass(slots=True)
class _Team:
    """What a team holds since `at_ns`: milli-GPU, and milli-GPU x micro-dollars an hour; and what came of it before."""

    at_ns: int
    milli: int = 0
    rate: int = 0
    average: float = 0.0
    spent: dict[Period, list[int]] = field(default_factory=dict)
    """(begin of the period, milli-GPU ns, rate ns)"""


class Meter:
    """Tell it what begins and ends, in order of time; ask it for what that comes to. `half_life_ns` 0: no average."""

    def __init__(self, half_life_ns: int = 0, budgets: Iterable[Budget] = ()) -> None:
        self._half_life_ns, self.budgets = half_life_ns, tuple(budgets)
        self._periods = tuple({budget.period: None for budget in self.budgets})
        self._teams: dict[str, _Team] = {}
        self._open: dict[str, tuple[str, int, int]] = {}

    def began(self, lease: str, team: str, milli: int, at_ns: int, rate: int = 0) -> None:
        """A lease of so many milli-GPU; `rate` is the sum of milli-GPU x micro-dollars per GPU-hour over its tasks."""
        held = self._upto(team, at_ns)
        held.milli, held.rate = held.milli + milli, held.rate + rate
        self._open[lease] = (team, milli, rate)

    def resized(self, lease: str, milli: int, at_ns: int, rate: int = 0) -> None:
        """A lease that began here holds so much from now on."""
        team = self._open.get(lease, ("", 0, 0))[0]
        if team:
            self.ended(lease, at_ns)
            self.began(lease, team, milli, at_ns, rate)

    def ended(self, lease: str, at_ns: int) -> None:
        """Nothing happens for a lease that did not begin here, or has ended before."""
        team, milli, rate = self._open.pop(lease, ("", 0, 0))
        if team:
            held = self._upto(team, at_ns)
            held.milli, held.rate = held.milli - milli, held.rate - rate

    def accounts(self, parents: Mapping[str, str], now_ns: int) -> Accounts:
        """All of it at `now_ns`. `parents`: team -> parent, "" at the root; a budget counts what is below its team."""
        for team in self._teams:
            self._upto(team, now_ns)
        past = {team: round(held.average) for team, held in self._teams.items() if held.average >= 0.5}
        found = []
        for budget in self.budgets:
            spent = [0, 0]
            for team, held in self._teams.items():
                if _within(team, budget.team, parents):
                    _, gpu_ns, rate_ns = held.spent.get(budget.period, (0, 0, 0))
                    spent = [spent[0] + gpu_ns, spent[1] + rate_ns]
            amount = spent[0] // HOUR_NS if budget.unit is Unit.GPU_HOURS else spent[1] // (10**6 * HOUR_NS)
            until_ns = budget.period.around(now_ns)[1]
            found.append(Account(budget=budget, spent=amount, until_ns=until_ns))
        return Accounts(past=past, budgets=tuple(found))

    def _upto(self, team: str, now_ns: int) -> _Team:
        """The team's account brought up to now: what it held since then is booked."""
        held = self._teams.setdefault(team, _Team(at_ns=now_ns))
        span = max(0, now_ns - held.at_ns)
        if self._half_life_ns:
            kept = 0.5 ** (span / self._half_life_ns)
            held.average = held.milli + (held.average - held.milli) * kept
        for period in self._periods:
            begin, _ = period.around(now_ns)
            was, gpu_ns, rate_ns = held.spent.get(period, (begin, 0, 0))
            if was != begin:
                gpu_ns, rate_ns = 0, 0
            since = min(span, max(0, now_ns - begin))
            held.spent[period] = [begin, gpu_ns + held.milli * since, rate_ns + held.rate * since]
        held.at_ns += span
        return held


def _within(team: str, above: str, parents: Mapping[str, str]) -> bool:
    while team and team != above:
        team = parents.get(team, "")
    return team == above
