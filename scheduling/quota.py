"""How much a team may take now: quota, what others lend, borrow bound, and the limits up its tree.

The rule, per GPU model column and for all models together: a team may always use its own quota; beyond it,
all borrowing together may not exceed what is lendable now (idle quota up to each team's `lend`, plus capacity
that no quota claims), nor the team's `borrow`, nor any `limit` on its path to the root.
Cohort borrowing as Kueue describes it (kueue.sigs.k8s.io, ClusterQueue `borrowingLimit`, `lendingLimit`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from moorage.kernels.teams import Teams, room
from moorage.scheduling.ledger import Ledger
from moorage.scheduling.model import UNLIMITED, IntArray
from moorage.scheduling.sharing import nobody, subtree


def own_quota(ledger: Ledger) -> IntArray:
    """[T, M] the part of each quota that is not handed on to children."""
    own, below = ledger.quota.copy(), np.flatnonzero(ledger.team_parent >= 0)
    np.subtract.at(own, ledger.team_parent[below], ledger.quota[below])
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

    def room(self, team: int) -> IntArray:
        """[M] milli-GPU the team may still take: the least of the rules above."""
        left = np.zeros(self.used.shape[1], np.int64)
        room(self.columns(), team, left)
        return left

    def most(self, team: int) -> IntArray:
        """[M] milli-GPU the team could ever hold: as `room`, with every other team idle."""
        return replace(self, used=np.zeros_like(self.used)).room(team)

    def columns(self) -> Teams:
        """The same figures for the admission loop, with the sums that it keeps current."""
        ledger, used = self.ledger, self.used.copy()
        unbounded = np.asarray((ledger.limit >= UNLIMITED).all(axis=1))
        for row, parent in enumerate(ledger.team_parent):
            if parent >= 0:
                unbounded[row] &= unbounded[parent]
        return Teams(
            parent=ledger.team_parent,
            free=unbounded & (not self.counted.any()),
            weight=ledger.weight,
            own=self.own,
            lend=ledger.lend,
            borrow=ledger.borrow,
            limit=ledger.limit,
            used=used,
            total=subtree(ledger.team_parent, used),
            idle=np.minimum(np.maximum(self.own - used, 0), ledger.lend).sum(axis=0),
            over=np.maximum(used - self.own, 0).sum(axis=0),
            spare=self.spare,
            counted=self.counted,
            shares=nobody(),
        )


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
