"""A decision's columns for the admission loop: the waiting jobs in their order, and the plan under construction."""

from __future__ import annotations

import numpy as np

from moorage.kernels import admission
from moorage.kernels.kinds import number
from moorage.scheduling.ledger import Ledger
from moorage.scheduling.model import UNLIMITED, WHOLE, IntArray, Policy
from moorage.scheduling.queue import Queue


def deadlines(queue: Queue, now_ns: int, urgent_ns: int) -> tuple[IntArray | None, IntArray | None]:
    """Of each row: by how much it must miss its deadline even if it starts now, and its place among the urgent, 0 the
    first; all others come last. (None, None) where nobody has a deadline.

    The time left to start (slack) is what remains of the deadline after the longest run; least slack first (Dertouzos
    and Mok, IEEE TSE 1989), among those whose slack is short and not gone: who can no longer make it is served as if
    it had no deadline, so that it does not take others down with it.
    """
    if queue.deadline_ns is None:
        return None, None
    limit = 0 if queue.limit_ns is None else queue.limit_ns
    slack = np.where(queue.deadline_ns > 0, queue.deadline_ns - now_ns - limit, UNLIMITED)
    urgent = (slack >= 0) & (slack <= urgent_ns)
    return np.maximum(-slack, 0), np.where(urgent, slack, UNLIMITED)


def first_pass(queue: Queue, urgent: IntArray | None = None) -> IntArray:
    """Rows by (priority, urgency, submission, id): the order in which own quota is handed out."""
    if urgent is not None and (urgent < UNLIMITED).any():
        key = np.zeros(len(queue), np.int64) if queue.key is None else queue.key
        return np.asarray(
            np.lexsort((queue.rank, queue.submitted_ns, key, urgent, -queue.priority)), np.int64
        )
    if queue.key is None and len(queue) and not np.any(queue.priority != queue.priority[0]):
        steps = np.diff(queue.submitted_ns)
        if np.all((steps > 0) | ((steps == 0) & (np.diff(queue.rank) > 0))):
            return np.arange(len(queue))
    if queue.key is None:
        keys: tuple[IntArray, ...] = (queue.rank, queue.submitted_ns, -queue.priority)
    else:
        keys = (queue.rank, queue.submitted_ns, queue.key, -queue.priority)
    return np.asarray(np.lexsort(keys), np.int64)


NEVER_REFUSED = UNLIMITED + 1
"""Later than every end."""


def promises_of(rows: int, kinds: int) -> admission.Promises:
    return admission.Promises(np.zeros(rows, np.int64), np.full(kinds, NEVER_REFUSED, np.int64))


def row_columns(ledger: Ledger, queue: Queue, at: IntArray, now_ns: int, policy: Policy) -> admission.Rows:
    """`at[C + 1]`: the queue's classes as the decision counts them."""
    known = np.array([ledger.team_row.get(name, -1) for name in queue.teams], np.int64)
    columns = np.array([_column(ledger, c.gpu_models) for c in queue.classes] + [0], np.int64)
    alike = (queue.head < 0) | (queue.workers == 0)  # all tasks of a job are of one class
    single = (queue.head >= 0) | ((queue.workers == 1) & (queue.min_workers == 1))
    klass = np.where(alike & (queue.head >= 0), queue.head, queue.worker)
    alike, none = alike | policy.move_gangs, np.zeros(len(queue), np.int64)
    milli = np.append(queue.milli(), 0)[klass]
    least = queue.least()
    helped = milli > 0 if policy.move_for_all else single & (milli >= 2 * WHOLE)
    helped &= least >= policy.move_least
    limit = none if queue.limit_ns is None else queue.limit_ns
    team = known[queue.team] if len(queue) else queue.team
    same = np.stack((team, queue.head, queue.worker, queue.workers, queue.min_workers))
    return admission.Rows(
        team=team,
        head=at[queue.head],
        worker=at[queue.worker],
        workers=queue.workers,
        min_workers=queue.min_workers,
        least=least,
        priority=queue.priority,
        key=none if queue.key is None else queue.key,
        submitted_ns=queue.submitted_ns,
        column=np.maximum(columns[queue.head], columns[queue.worker]),
        alike=np.where(alike & helped, at[klass], -1),
        old=queue.submitted_ns <= now_ns - policy.hold_after_ns,
        ends=np.where(limit > 0, now_ns + limit, UNLIMITED),
        kind=number(same)[0],
    )


def small_at_first(rows: admission.Rows, queue: Queue, free_milli: int) -> admission.Rows:
    """Every gang at its least size, if all of them at full size ask for more milli-GPU than are free."""
    milli = np.append(queue.milli(), 0)
    wanted = int((milli[queue.head] + queue.workers * milli[queue.worker]).sum())
    if wanted <= free_milli:
        return rows
    least = np.maximum(rows.min_workers, np.where(rows.head < 0, 1, 0))
    return rows._replace(workers=np.minimum(rows.workers, least))


def _column(ledger: Ledger, models: tuple[str, ...]) -> int:
    """The column of the one model asked for; 0 when any or several, or one that nobody has."""
    return ledger.models.index(models[0]) if len(models) == 1 and models[0] in ledger.models else 0


def out_columns(rows: int, tasks: int) -> admission.Out:
    size = {"admitted": rows, "workers": rows, "deferred": rows, "code": rows}
    columns = {name: np.zeros(size.get(name, tasks), np.int64) for name in admission.Out._fields}
    columns["figures"] = np.zeros((rows, 4), np.int64)
    return admission.Out(**columns)


def with_room(out: admission.Out, need: int) -> admission.Out:
    """The same columns with room for at least `need` tasks."""
    more = max(need, 2 * len(out.task_node)) - len(out.task_node)
    tasks = {
        name: np.concatenate((column, np.zeros(more, np.int64)))
        for name, column in out._asdict().items()
        if name.startswith("task_")
    }
    return out._replace(**tasks)
