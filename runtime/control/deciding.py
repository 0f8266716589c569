"""Decisions as the audit record keeps them: by which rule something was admitted, and for which rule something waits.

A reason is recorded when its rule changes, not with every figure: a queue of thousands would else write without end.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection

from moorage.runtime.control.clock import Now
from moorage.runtime.control.store import record
from moorage.scheduling.ledger import Ledger
from moorage.scheduling.model import UNLIMITED, JobRequest, Lease, Reason, gpus
from moorage.scheduling.quota import Quotas

AGAIN_NS = 10 * 10**9
"""A rule that comes and goes is recorded once in so long per job."""
MOST = 200
"""Recorded in one round; the rest in the next."""
Waiting = tuple[JobRequest, Reason]


def needs(ledger: Ledger, lease: Lease) -> dict[int, int]:
    """Milli-GPU of a lease by model column, 0 being all models together."""
    need: dict[int, int] = {}
    for task in lease.tasks:
        column = int(ledger.model[ledger.node_row[task.node]])
        for at in {0, column} if task.milli_gpu else ():
            need[at] = need.get(at, 0) + task.milli_gpu
    return need


def admitted_by(ledger: Ledger, lease: Lease, older: int) -> dict[str, Any]:
    """The rule that lets the lease's team take it now, before it is in the ledger. `older`: jobs submitted before it
    that wait on. Milli-GPU; the figures are those of the column in which the team stands highest over its quota."""
    quotas, row, need = Quotas.of(ledger), ledger.team_row[lease.team], needs(ledger, lease)
    counted = [c for c in need if quotas.counted[c]]
    column = max(counted or [0], key=lambda c: int(quotas.used[row, c] + need.get(c, 0) - quotas.own[row, c]))
    held, quota = int(quotas.used[row, column]), int(quotas.own[row, column])
    asked, limit = need.get(column, 0), int(ledger.limit[row, column])
    borrows = max(0, held + asked - max(quota, held)) if counted else 0
    code = "no-gpu" if not need else "no-quota" if not counted else "borrows" if borrows else "own-quota"
    return {
        "code": code,
        "gpu_model": ledger.models[column],
        "asked_milli_gpu": asked,
        "held_milli_gpu": held,
        "quota_milli_gpu": quota,
        "limit_milli_gpu": None if limit >= UNLIMITED else limit,
        "borrowed_milli_gpu": borrows,
        "ahead_of": older,
        "text": _sentence(code, lease.team, asked, held, quota, borrows, older),
    }


def _sentence(code: str, team: str, asked: int, held: int, quota: int, borrows: int, older: int) -> str:
    passed = f"; {older} older job{'s wait' if older != 1 else ' waits'} on" if older else ""
    match code:
        case "no-gpu":
            return f"asks for no GPU, so no quota binds{passed}"
        case "no-quota":
            return f"no team has a quota, so teams share the pool by weight{passed}"
        case "own-quota":
            took = f"it held {gpus(held)} and takes {gpus(asked)}"
            return f"within team {team}'s quota of {gpus(quota)} GPUs: {took}{passed}"
        case _:
            return (
                f"team {team} borrows {gpus(borrows)} GPUs that others do not use: it held {gpus(held)} "
                f"of its quota of {gpus(quota)} and takes {gpus(asked)}{passed}"
            )


def older_than(waiting: Sequence[Waiting]) -> Any:
    """A function: how many of those that wait on were submitted before a time."""
    times = sorted(request.submitted_ns for request, _ in waiting)
    return lambda submitted_ns: bisect_left(times, submitted_ns)


class Told:
    """What was recorded of each waiting job: in memory alone, so that a restart records once more."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[tuple[str, str, str], int]] = {}

    def news(self, waiting: Iterable[Waiting], control_ns: int) -> list[Waiting]:
        """Those whose rule is new, at most `MOST`; marks them as said and forgets who waits no more."""
        found: list[Waiting] = []
        kept = {}
        for request, reason in waiting:
            rule = (str(reason.code), reason.team, reason.gpu_model)
            said = self._said.get(request.job)
            fresh = said is None or (said[0] != rule and control_ns - said[1] >= AGAIN_NS)
            if fresh and len(found) < MOST:
                found.append((request, reason))
                said = (rule, control_ns)
            if said is not None:
                kept[request.job] = said
        self._said = kept
        return found


def _bounds(reason: Reason) -> dict[str, Any]:
    """Of a budget in thousandths of its unit, else in milli-GPU."""
    if reason.unit:
        spent = {"spent_thousandths": reason.held, "budget_thousandths": reason.allowed}
        return {"unit": reason.unit, "period": reason.period, **spent}
    return {"held_milli_gpu": reason.held, "allowed_milli_gpu": reason.allowed}


def record_waits(db: Connection, now: Now, news: Iterable[Waiting]) -> None:
    """One event each: the rule, its figures (milli-GPU) and its sentence."""
    for request, reason in news:
        payload = {
            "rule": str(reason.code),
            "bound_team": reason.team,
            "gpu_model": reason.gpu_model,
            "asked_milli_gpu": reason.asked,
            **_bounds(reason),
            "free_milli_gpu": reason.free,
            "holders": list(reason.holders),
            "sublease": request.job if request.parent else "",
            "text": reason.text(),
        }
        job = request.parent or request.job
        record(db, now, "job.waits", payload, team=request.team, job_id=job)
