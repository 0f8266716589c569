"""What teams have used, for the planner: decayed use and budgets, folded from the same lease events as cost and ledger.

Nothing is kept in a table of its own: a control plane that starts again reads the events of the leases that still count
and comes to the same figures. A pool without budgets and without a half-life reads nothing.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, or_, select

from moorage.configs.pool import PoolSettings
from moorage.configs.teams import Teams
from moorage.runtime.control import lease_events
from moorage.runtime.control.store import Store
from moorage.runtime.control.tables import events, leases
from moorage.scheduling.accounts import HOUR_NS, Accounts, Budget, Meter, Period, Unit

_HALF_LIVES = 20
"""Use that is older than so many half-lives is a millionth of itself."""


def budgets(teams: Teams) -> tuple[Budget, ...]:
    """Those of the teams file."""
    found = []
    for name, team in teams.teams.items():
        if team.budget is not None:
            period = Period(team.budget.per)
            for unit, amount in (
                (Unit.GPU_HOURS, team.budget.gpu_hours),
                (Unit.DOLLARS, team.budget.dollars),
            ):
                if amount is not None:
                    found.append(Budget(team=name, unit=unit, amount=amount, period=period))
    return tuple(found)


class Spending:
    """`accounts` is for whoever plans, under the store's lock."""

    def __init__(self, store: Store, teams: Teams, settings: PoolSettings) -> None:
        self._store = store
        self._half_life_ns = settings.usage_half_life_h * HOUR_NS
        self.of(teams)

    def of(self, teams: Teams) -> None:
        """Count for another tree of teams from now on: what they used is read anew."""
        self._parents = {name: team.parent for name, team in teams.teams.items()}
        self._meter = Meter(self._half_life_ns, budgets(teams))
        self._seq: int | None = None

    def accounts(self) -> Accounts | None:
        """As of now; None where nobody asks for it."""
        if not (self._half_life_ns or self._meter.budgets):
            return None
        with self._store.read() as db:
            now_ns = self._store.clock.now().control_ns
            if self._seq is None:
                self._begin(db, now_ns)
            self._advance(db)
        return self._meter.accounts(self._parents, now_ns)

    def _begin(self, db: Connection, now_ns: int) -> None:
        """Read the events of the leases that still count: those held, and those that ended within the periods."""
        since = [budget.period.around(now_ns)[0] for budget in self._meter.budgets]
        if self._half_life_ns:
            since.append(now_ns - _HALF_LIVES * self._half_life_ns)
        counts = select(leases.c.id).where(
            or_(leases.c.held.is_(True), leases.c.released_control_ns >= min(since))
        )
        self._advance(db, events.c.lease_id.in_(counts))

    def _advance(self, db: Connection, *which: ColumnElement[bool]) -> None:
        """The lease events since the last call, in order."""
        for row in lease_events.after(db, self._seq or 0, *which):
            self._seq = row.seq
            if row.kind == "lease.released":
                self._meter.ended(row.lease_id, row.control_ns)
                continue
            rate = sum(task["milli_gpu"] * task["price"] for task in row.payload["tasks"])
            milli = row.payload["milli_gpu"]
            if row.kind == "lease.resized":
                self._meter.resized(row.lease_id, milli, row.control_ns, rate)
            else:
                self._meter.began(row.lease_id, row.team, milli, row.control_ns, rate)
        self._seq = self._seq or 0
