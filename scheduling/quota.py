"""How much a team may take now: quota, what others lend, borrow bound, and the limits up its tree.

The rule, per GPU model column and for all models together: a team may always use its own quota; beyond it,
all borrowing together may not exceed what is lendable now (idle quota up to each team's `lend`, plus capacity
that no quota claims), nor the team's `borrow`, nor any `limit` on its path to the root.
Cohort borrowing as Kueue describes it (kueue.sigs.k8s.io, ClusterQueue `borrowingLimit`, `lendingLimit`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moorage.scheduling.ledger import Ledger
from moorage.scheduling.model import UNLIMITED, IntArray


def subtree(parent: IntArray, own: IntArray) -> IntArray:
    """[T, M] sums over each team and all below it. Parents come before children, so one pass upward."""
    total = own.copy()
    for row in range(len(parent) - 1, -1, -1):
        if parent[row] >= 0:
            total[parent[row]] += total[row]
    return total


def own_quota(ledger: Ledger) -> IntArray:
    """[T, M] the part of each quota that is not handed on to children."""
    own = ledger.quota.copy()
    for row, parent in enumerate(ledger.team_parent):
        if parent >= 0:
            own[parent] -= ledger.quota[row]
    return np.maximum(own, 0)


@dataclass(slots=True)
class Quotas:
    """The figures of one decision: what depends only on the tree is computed once, use is kept current."""

    ledger: Ledger
    used: IntArray
    own: IntArray
    spare: IntArray
    """[M] capacity that no quota claims."""
    counted: IntArray
    """[M] 1 where any team has a quota: elsewhere nothing is guaranteed and only limits bind."""

    @classmethod
    def of(cls, ledger: Ledger) -> Quotas:
        own = own_quota(ledger)
        spare = np.maximum(ledger.capacity() - own.sum(axis=0), 0)
        return cls(
            ledger=ledger,
            used=ledger.used.copy(),
            own=own,
            spare=spare,
            counted=(ledger.quota.max(axis=0, initial=0) > 0).astype(np.int64),
        )

    def in_quota(self, team: int) -> IntArray:
        """[M] what is left of the team's own quota (UNLIMITED where nothing is guaranteed to anybody)."""
        left = np.maximum(self.own[team] - self.used[team], 0)
        left[1:] = np.where((self.own[team, 1:] > 0) | (self.counted[1:] == 0), left[1:], 0)
        return np.where(self.counted > 0, left, UNLIMITED)

    def borrowable(self, team: int) -> IntArray:
        """[M] what the team may take in all, own quota and lent together, limits aside."""
        idle = np.minimum(np.maximum(self.own - self.used, 0), self.ledger.lend)
        idle[team] = 0
        over = np.maximum(self.used - self.own, 0)
        over[team] = 0
        lent = idle.sum(axis=0) + self.spare - over.sum(axis=0)
        balance = self.own[team] - self.used[team]
        capped = balance + np.minimum(lent, self.ledger.borrow[team])
        return np.where(self.counted > 0, np.maximum(np.maximum(balance, capped), 0), UNLIMITED)

    def limits(self, team: int) -> IntArray:
        """[M] what the limits of the team and of every team above it leave."""
        total = subtree(self.ledger.team_parent, self.used)
        left = np.full(self.used.shape[1], UNLIMITED, np.int64)
        row = team
        while row >= 0:
            left = np.minimum(left, self.ledger.limit[row] - total[row])
            row = int(self.ledger.team_parent[row])
        return np.maximum(left, 0)

    def room(self, team: int) -> IntArray:
        """[M] milli-GPU the team may still take: the least of the rules above."""
        return np.minimum(self.borrowable(team), self.limits(team))

    def most(self, team: int) -> IntArray:
        """[M] milli-GPU the team could ever hold: as `room`, with every other team idle."""
        idle = Quotas(self.ledger, np.zeros_like(self.used), self.own, self.spare, self.counted)
        return idle.room(team)


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamUse:
    """One row of `moorage status`: milli-GPU, all models together."""

    team: str
    parent: str
    quota: int
    limit: int
    used: int
    borrowed: int
    allowance: int


def team_use(ledger: Ledger) -> tuple[TeamUse, ...]:
    """What each team has, uses, borrows and may use in all right now."""
    quotas = Quotas.of(ledger)
    total = subtree(ledger.team_parent, ledger.used)
    rows = []
    for row, name in enumerate(ledger.team_names):
        parent = int(ledger.team_parent[row])
        rows.append(
            TeamUse(
                team=name,
                parent=ledger.team_names[parent] if parent >= 0 else "",
                quota=int(ledger.quota[row, 0]),
                limit=int(ledger.limit[row, 0]),
                used=int(total[row, 0]),
                borrowed=max(0, int(total[row, 0] - ledger.quota[row, 0])),
                allowance=min(UNLIMITED, int(ledger.used[row, 0]) + int(quotas.room(row)[0])),
            )
        )
    return tuple(rows)
