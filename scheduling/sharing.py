"""The order among teams, laid out for the loop: what each holds of every resource, and which jobs go by it.

The rule is `kernels.sharing`. It orders what borrows. Where nobody has a quota there is nothing to borrow from, and all
jobs go by it: teams then share the pool by weight (`Policy.sharing`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moorage.kernels.admission import Later
from moorage.kernels.sharing import MOST_WEIGHT
from moorage.kernels.teams import Shares, Teams, add_up
from moorage.scheduling.accounts import Accounts
from moorage.scheduling.model import WHOLE, IntArray
from moorage.scheduling.state import Ledger

REST = 3
"""Resources beside GPUs: CPU, memory, GPU memory."""
FULL = 2**30
"""About the level of a whole pool; of more than a million GPUs it is their milli-GPU."""


def subtree(parent: IntArray, own: IntArray) -> IntArray:
    """[T, M] sums over each team and all below it. Parents come before children, so one pass upward."""
    total = own.copy()
    add_up(parent, total)
    return total


def nobody() -> Shares:
    """No order among teams."""
    none = np.zeros(0, np.int64)
    return Shares(
        whole=0,
        scale=0,
        rest=np.zeros(REST, np.int64),
        shift=np.zeros(REST, np.int64),
        weight=none,
        due=np.zeros((2, 0), np.int64),
        held=np.zeros((2, 0, REST), np.int64),
        level=np.zeros((2, 0), np.int64),
        stale=np.zeros(0, np.bool_),
        best=none,
        at=none,
        heavy=none,
    )


def shares(teams: Teams, ledger: Ledger, past: Mapping[str, int]) -> Shares:
    """The order among `teams` in the pool as it is up now. `past`: milli-GPU that teams held on average; what is beyond
    their quota counts as if they held it still."""
    gpus = int(ledger.devices[ledger.up].sum()) * WHOLE
    rest = beside(ledger)
    shift = np.array([max(0, int(amount).bit_length() - FULL.bit_length() + 1) for amount in rest], np.int64)
    held = ledger.held.copy()
    count = len(teams.parent)
    heaviest = int(teams.weight.max(initial=1))
    scale = max(0, heaviest.bit_length() - MOST_WEIGHT.bit_length() + 1)
    due = np.minimum(teams.own[:, 0], 2 * gpus)
    before = np.zeros(count, np.int64)
    if past:
        before[:] = [min(past.get(name, 0), 2 * gpus) for name in ledger.team_names]
    due, before = (np.stack((x, subtree(teams.parent, x[:, None])[:, 0])) for x in (due, before))
    unit = max(1, FULL // gpus) if gpus else 0
    return Shares(
        whole=gpus * unit or FULL,
        scale=unit,
        rest=rest >> shift,
        shift=shift,
        weight=np.maximum(teams.weight >> scale, 1),
        due=due - np.maximum(before - due, 0),
        held=np.stack((held, subtree(teams.parent, held))),
        level=np.zeros((2, count), np.int64),
        stale=np.ones(count, np.bool_),
        best=np.zeros(count + 1, np.int64),
        at=np.zeros(count + 1, np.int64),
        heavy=np.zeros(count + 1, np.int64),
    )


def barred(ledger: Ledger, accounts: Accounts | None) -> IntArray:
    """[T] the account that is out of budget of each team, or of the nearest team above it that is; -1 = none."""
    found = np.full(len(ledger.team_names), -1, np.int64)
    for at, account in enumerate(accounts.budgets if accounts else ()):
        row = ledger.team_row.get(account.budget.team, -1)
        if account.out and row >= 0 and found[row] < 0:
            found[row] = at
    for row, parent in enumerate(ledger.team_parent):
        if found[row] < 0 <= parent:
            found[row] = found[parent]
    return found


def beside(ledger: Ledger) -> IntArray:
    """[3] milli-CPU, MiB and GPU MiB of the nodes that are up."""
    up = ledger.up
    amounts = (
        ledger.cpu_total[up].sum(),
        ledger.mib_total[up].sum(),
        (ledger.devices * ledger.device_mib)[up].sum(),
    )
    return np.array(amounts, np.int64)


def put_off(order: IntArray, team: IntArray, teams: int) -> tuple[IntArray, Later]:
    """(rows of no known team, the others by team), each in `order`. `team[R]`: the row of its team, -1 = not known."""
    later = Later(*(np.full(n, -1, np.int64) for n in (teams, teams, len(team))))
    rows = order[np.argsort(team[order], kind="stable")]
    of = team[rows]
    unknown = rows[of < 0]
    rows, of = rows[len(unknown) :], of[len(unknown) :]
    if len(rows):
        same = of[1:] == of[:-1]
        later.next[rows[:-1]] = np.where(same, rows[1:], -1)
        later.head[of[np.append(True, ~same)]] = rows[np.append(True, ~same)]
        later.tail[of[np.append(~same, True)]] = rows[np.append(~same, True)]
    return unknown, later
