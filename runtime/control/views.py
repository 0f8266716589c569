"""State as callers see it: job views, attempts, and the JSON of `moorage status`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, select

from moorage.configs.job import JobAsk
from moorage.runtime import answers
from moorage.runtime.control import launching, records
from moorage.runtime.control.api import (
    ADMITTED,
    PENDING,
    PREEMPTING,
    STARTING,
    Caller,
    JobView,
    Submission,
    ray_status,
)
from moorage.runtime.control.book import Book
from moorage.runtime.control.states import WITH_ATTEMPT
from moorage.runtime.control.tables import attempts, jobs, leases, nodes
from moorage.scheduling.accounts import Accounts
from moorage.scheduling.constraints import NO_TRAITS
from moorage.scheduling.ledger import task_milli_per_device
from moorage.scheduling.model import UNLIMITED, Reason, ReasonCode
from moorage.scheduling.quota import team_use


def job_view(db: Connection, book: Book, row: Row[Any], unreachable: str, control_ns: int) -> JobView:
    """One job; `unreachable` is why Ray cannot be reached now, "" when it can."""
    reason = book.reasons.get(row.id) if row.state == PENDING else None
    return JobView(
        job_id=row.id,
        team=row.team,
        state=row.state,
        ray_status=ray_status(row.state),
        message=_asked(book, row) or _message(db, row, reason, unreachable, control_ns),
        submission=_submission(row.submission),
        created_ns=row.created_ns,
        started_ns=row.started_ns,
        ended_ns=row.ended_ns,
        attempt=row.attempt,
        lease=_lease_json(db, book, row) if row.state in WITH_ATTEMPT else None,
        driver_exit_code=row.driver_exit_code,
        reason=reason_json(reason),
    )


def reason_json(reason: Reason | None) -> dict[str, Any] | None:
    if reason is None:
        return None
    return {
        "code": str(reason.code),
        "text": reason.text(),
        "team": reason.team,
        "gpu_model": reason.gpu_model,
        "asked_milli_gpu": reason.asked,
        "held_milli_gpu": reason.held,
        "allowed_milli_gpu": reason.allowed,
        "free_milli_gpu": reason.free,
        "holders": list(reason.holders),
        **_budget(reason),
    }


def _budget(reason: Reason) -> dict[str, Any]:
    """For a budget, in its own unit."""
    if reason.code is not ReasonCode.BUDGET:
        return {}
    return {
        "held_milli_gpu": 0,
        "allowed_milli_gpu": 0,
        "unit": reason.unit,
        "spent": reason.held / 1000,
        "budget": reason.allowed / 1000,
        "period": reason.period,
        "until_ns": reason.until_ns,
    }


def attempt_views(db: Connection, job_id: str) -> list[answers.Attempt]:
    """Those that were asked of Ray, in order."""
    rows = db.execute(select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.number)).all()
    return [
        answers.Attempt(
            attempt=row.number,
            submission_id=row.submission_id,
            state=row.state,
            started_ns=row.started_ns,
            ended_ns=row.ended_ns,
            message=row.message,
            driver_exit_code=row.driver_exit_code,
        )
        for row in rows
        if row.launched_ns is not None
    ]


def status(
    db: Connection,
    book: Book,
    unreachable: str,
    now_ns: int,
    control_ns: int,
    caller: Caller,
    accounts: Accounts | None = None,
) -> dict[str, Any]:
    """The pool: nodes, who holds which part of which device, what waits and why, teams. JSON values only.

    Everybody sees who holds what; how an earlier attempt ended (Ray quotes its log) only the job's team sees.
    """
    return {
        "at_ns": now_ns,
        "ray": {"reachable": not unreachable, "message": unreachable},
        "nodes": [_node(row, book) for row in db.execute(select(nodes).order_by(nodes.c.name)).all()],
        "devices": _devices(book),
        "queue": _queue(db, book, unreachable, control_ns, caller),
        "running": _running(db, book),
        "teams": [
            {
                "team": use.team,
                "parent": use.parent,
                "quota_milli_gpu": use.quota,
                "limit_milli_gpu": None if use.limit >= UNLIMITED else use.limit,
                "used_milli_gpu": use.used,
                "borrowed_milli_gpu": use.borrowed,
                "allowance_milli_gpu": None if use.allowance >= UNLIMITED else use.allowance,
            }
            for use in team_use(book.ledger)
        ],
        "budgets": [
            {
                "team": account.budget.team,
                "unit": account.budget.unit,
                "spent": account.spent / 1000,
                "budget": account.budget.amount / 1000,
                "period": account.budget.period,
                "until_ns": account.until_ns,
            }
            for account in (accounts.budgets if accounts else ())
        ],
    }


def _message(
    db: Connection, row: Row[Any], reason: Reason | None, unreachable: str, control_ns: int, own: bool = True
) -> str:
    if row.state not in (PENDING, ADMITTED, STARTING, PREEMPTING):
        return str(row.message)
    if unreachable:
        return f"Ray cannot be reached: nothing is lost, nothing starts until it answers. {unreachable}"
    if row.state == PENDING:
        before = str(row.message) if own or not row.message else f"attempt {row.attempt} ended"
        pause = row.not_before_control_ns - control_ns
        if pause > 0:
            return f"{before}; tried again in {pause / 1e9:.0f} s"
        waits = reason.text() if reason else "waits for the next scheduling round"
        return f"{before}; {waits}" if before else waits
    if row.state == ADMITTED:
        return f"admitted to {_places(db, row)}; starts when its devices are free on Ray and earlier starts are done"
    if row.state == STARTING:
        return f"Ray is starting it on {_places(db, row)}"
    return str(row.message) or "its devices are being taken back"


def _asked(book: Book, row: Row[Any]) -> str:
    """That a running job is to give workers up, and for whom."""
    one = book.shrinking.get(row.id)
    return f"asked to keep {one.workers} workers, for job {one.for_job}: {one.text}" if one else ""


def _places(db: Connection, row: Row[Any]) -> str:
    found = {
        f"{task.node}/{device}" if device is not None else task.node
        for lease in _leases_of(db, row)
        for task in lease.tasks
        for device in (task.devices or (None,))
    }
    return ", ".join(sorted(found)) or "the head node"


def _leases_of(db: Connection, row: Row[Any]) -> list[Any]:
    held = db.execute(
        select(leases).where(leases.c.job_id == row.id, leases.c.held.is_(True)).order_by(leases.c.epoch)
    ).all()
    return [records.read_lease(db, lease) for lease in held]


def _lease_json(db: Connection, book: Book, row: Row[Any]) -> dict[str, Any] | None:
    held = _leases_of(db, row)
    return launching.view_json(launching.lease_view(held[0], book.ray_ids)) if held else None


def _submission(raw: dict[str, Any]) -> Submission:
    return Submission(**raw)


def _node(row: Row[Any], book: Book) -> dict[str, Any]:
    at = book.ledger.node_row.get(row.name)
    ledger = book.ledger
    traits = NO_TRAITS if at is None else ledger.traits[int(ledger.trait[at])]
    return {
        "labels": dict(traits.labels),
        "taints": [taint.text() for taint in traits.taints],
        "region": traits.region,
        "spot": traits.spot,
        "name": row.name,
        "ray_node_id": row.ray_node_id,
        "alive": bool(row.alive),
        "drained": book.drained.get(row.name),
        "is_head": bool(row.is_head),
        "gpu_model": row.gpu_model,
        "devices": row.devices,
        "device_mib": row.device_mib,
        "milli_cpu": row.milli_cpu,
        "free_milli_cpu": 0 if at is None else int(ledger.cpu_free[at]),
        "free_milli_gpu": 0 if at is None else int(ledger.milli_free[at].sum()),
    }


def _devices(book: Book) -> list[dict[str, Any]]:
    ledger = book.ledger
    holders: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for lease in ledger.leases.values():
        for task in lease.tasks:
            for device in task.devices:
                holders.setdefault((task.node, device), []).append(
                    {
                        "job": lease.job,
                        "team": lease.team,
                        "lease": lease.lease,
                        "epoch": lease.epoch,
                        "role": str(task.role),
                        "task": task.index,
                        "milli_gpu": task_milli_per_device(task),
                        "gpu_mib": task.gpu_mib,
                    }
                )
    return [
        {
            "id": f"{name}/{device}",
            "node": name,
            "index": device,
            "gpu_model": ledger.models[int(ledger.model[row])],
            "mib": int(ledger.device_mib[row]),
            "free_milli_gpu": int(ledger.milli_free[row, device]),
            "free_mib": int(ledger.mem_free[row, device]),
            "holders": holders.get((name, device), []),
        }
        for name, row in sorted(ledger.node_row.items())
        for device in range(int(ledger.devices[row]))
    ]


def _queue(
    db: Connection, book: Book, unreachable: str, control_ns: int, caller: Caller
) -> list[dict[str, Any]]:
    rows = db.execute(
        select(jobs).where(jobs.c.state == PENDING).order_by(jobs.c.created_control_ns, jobs.c.id)
    ).all()
    found = []
    for row in rows:
        ask, reason = JobAsk.model_validate(row.ask), book.reasons.get(row.id)
        found.append(
            {
                "job": row.id,
                "team": row.team,
                "priority": ask.priority,
                "milli_gpu": ask.milli_gpu(),
                "workers": ask.workers,
                "created_ns": row.created_ns,
                "reason": reason_json(reason),
                "message": _message(db, row, reason, unreachable, control_ns, caller.may_see(row.team)),
            }
        )
    return found


def _running(db: Connection, book: Book) -> list[dict[str, Any]]:
    rows = db.execute(
        select(jobs).where(jobs.c.state.in_(WITH_ATTEMPT)).order_by(jobs.c.created_control_ns, jobs.c.id)
    ).all()
    held: dict[str, int] = {}
    for lease in book.ledger.leases.values():
        held[lease.job] = held.get(lease.job, 0) + lease.milli_gpu
    return [
        {
            "job": row.id,
            "team": row.team,
            "state": row.state,
            "attempt": row.attempt,
            "milli_gpu": held.get(row.id, 0),
            "started_ns": row.started_ns,
            "stop_reason": row.stop_reason,
            "places": _places(db, row),
        }
        for row in rows
    ]
