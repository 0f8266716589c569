"""In which order waiting jobs are tried.

First those that fit in their team's own quota, by priority, then submission; then those that borrow, by
priority, then by how far their team is beyond its quota for its weight, then submission. What is guaranteed
never waits behind what is borrowed. The job id breaks the last tie, so the order is total.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from moorage.scheduling.model import JobRequest
from moorage.scheduling.quota import Quotas


def first_pass(pending: Sequence[JobRequest]) -> list[int]:
    """Rows by (priority, submission, id): the order in which own quota is handed out."""
    return sorted(
        range(len(pending)), key=lambda i: (-pending[i].priority, pending[i].submitted_ns, pending[i].job)
    )


def borrowers(pending: Sequence[JobRequest], rows: Iterable[int], quotas: Quotas) -> list[int]:
    """Rows that may only start by borrowing, in the order they are tried."""

    def share(row: int) -> int:
        team = quotas.ledger.team_row[pending[row].team]
        over = int(quotas.used[team, 0] - quotas.own[team, 0])
        return over * 1000 // max(1, int(quotas.ledger.weight[team]))

    return sorted(
        rows,
        key=lambda i: (-pending[i].priority, share(i), pending[i].submitted_ns, pending[i].job),
    )
