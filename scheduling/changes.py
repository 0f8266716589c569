"""What could be changed so that a waiting job starts: each kind of change, in words, and applied to a copy.

A change never touches the snapshot it is made for. Pools and teams change through `ledger.step`, so that a change
which the ledger would refuse is refused here too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from moorage.scheduling.accounts import Accounts, Period, Unit
from moorage.scheduling.ledger import LeaseReleased, Ledger, NodeUp, TeamSet, step
from moorage.scheduling.model import (
    ANY_MODEL,
    UNLIMITED,
    IntArray,
    JobRequest,
    NodeSpec,
    Policy,
    Snapshot,
    TeamSpec,
    gpus,
)
from moorage.scheduling.queue import Queue, TaskClass
from moorage.scheduling.relaxing import Closer, Freer, Relax, Wider, relaxed
from moorage.scheduling.running import RunningJobs
from moorage.scheduling.state import FIGURES


@dataclass(frozen=True, slots=True)
class FewerWorkers:
    """Ask for a gang of exactly `workers`."""

    workers: int

    def text(self) -> str:
        return f"ask for {self.workers} worker{'s' * (self.workers != 1)}"

    def to_json(self) -> dict[str, Any]:
        return {"change": "fewer-workers", "workers": self.workers}


@dataclass(frozen=True, slots=True)
class OtherModel:
    """Allow `gpu_model` beside those asked for; `ANY_MODEL` allows all."""

    gpu_model: str

    def text(self) -> str:
        return f"allow {'any GPU model' if self.gpu_model == ANY_MODEL else f'{self.gpu_model} GPUs as well'}"

    def to_json(self) -> dict[str, Any]:
        return {"change": "other-model", "gpu_model": self.gpu_model}


@dataclass(frozen=True, slots=True)
class RaiseLimit:
    """Raise a team's limit for a model column by `milli` (milli-GPU)."""

    team: str
    gpu_model: str
    milli: int

    def text(self) -> str:
        return f"raise the limit of team {self.team} by {_amount(self.milli, self.gpu_model)}"

    def to_json(self) -> dict[str, Any]:
        return {"change": "raise-limit", "team": self.team, "gpu_model": self.gpu_model, "milli": self.milli}


@dataclass(frozen=True, slots=True)
class RaiseQuota:
    """Raise a team's quota for a model column by `milli` (milli-GPU), and the quotas of the teams above it as far as
    they would no longer cover those of their children."""

    team: str
    gpu_model: str
    milli: int

    def text(self) -> str:
        return f"raise the quota of team {self.team} by {_amount(self.milli, self.gpu_model)}"

    def to_json(self) -> dict[str, Any]:
        return {"change": "raise-quota", "team": self.team, "gpu_model": self.gpu_model, "milli": self.milli}


@dataclass(frozen=True, slots=True)
class RaiseBudget:
    """Raise a team's budget in one unit by `amount` thousandths of it, in the period that it is for."""

    team: str
    unit: Unit
    period: Period
    amount: int

    def text(self) -> str:
        return f"raise the budget of team {self.team} by {self.amount / 1000:g} {self.unit} a {self.period}"

    def to_json(self) -> dict[str, Any]:
        return {
            "change": "raise-budget",
            "team": self.team,
            "unit": str(self.unit),
            "period": str(self.period),
            "thousandths": self.amount,
        }


@dataclass(frozen=True, slots=True)
class RaiseCap:
    """Raise the power cap of one domain of `level` by `watts`."""

    level: str
    domain: str
    watts: int

    def text(self) -> str:
        return f"raise the power cap of {self.level} {self.domain} by {self.watts} W"

    def to_json(self) -> dict[str, Any]:
        return {"change": "raise-cap", "level": self.level, "domain": self.domain, "watts": self.watts}


@dataclass(frozen=True, slots=True)
class Undrain:
    """Let these drained nodes take work again."""

    nodes: tuple[str, ...]

    def text(self) -> str:
        return f"undrain {', '.join(self.nodes)}"

    def to_json(self) -> dict[str, Any]:
        return {"change": "undrain", "nodes": list(self.nodes)}


Raise: TypeAlias = RaiseLimit | RaiseQuota | RaiseCap


@dataclass(frozen=True, slots=True)
class Together:
    """Several raises, none of which is enough without the others."""

    raises: tuple[Raise | RaiseBudget, ...]

    def text(self) -> str:
        return " and ".join(r.text() for r in self.raises)

    def to_json(self) -> dict[str, Any]:
        return {"change": "together", "raises": [r.to_json() for r in self.raises]}


@dataclass(frozen=True, slots=True)
class Ends:
    """These leases end. Oldest first; `jobs` holds them, each named once."""

    leases: tuple[str, ...]
    jobs: tuple[str, ...]

    def text(self) -> str:
        return f"end {', '.join(self.jobs)}, or wait for {'it' if len(self.jobs) == 1 else 'all of them'}"

    def to_json(self) -> dict[str, Any]:
        return {"change": "ends", "leases": list(self.leases), "jobs": list(self.jobs)}


Change: TypeAlias = (
    FewerWorkers | OtherModel | Relax | Wider | Closer | Raise | RaiseBudget | Together | Ends | Undrain
)


def _amount(milli: int, model: str) -> str:
    return f"{gpus(milli)} {'' if model == ANY_MODEL else f'{model} '}GPU{'s' * (milli != 1000)}"


def changed(snapshot: Snapshot, row: int, changes: Iterable[Change]) -> Snapshot:
    """The snapshot after these changes, row `row` of the queue being the job they are for. Caps: see `ruled`.

    Raises `ValueError` (`LedgerError` is one) for a change that cannot be made: a team, model or lease that is not
    there, or a quota that would be above its limit, which no teams file may say.
    """
    for change in changes:
        match change:
            case FewerWorkers(workers):
                snapshot = replace(snapshot, pending=_fewer(snapshot.pending, row, workers))
            case OtherModel(model):
                snapshot = replace(snapshot, pending=_other(snapshot.pending, row, model))
            case Relax() | Wider() | Closer():
                snapshot = replace(snapshot, pending=_freer(snapshot, row, change))
            case Together(raises):
                limits_first = sorted(
                    raises, key=lambda r: isinstance(r, RaiseQuota)
                )  # no quota above its limit
                snapshot = changed(snapshot, row, limits_first)
            case RaiseBudget():
                snapshot = replace(snapshot, accounts=_budgeted(snapshot.accounts, change))
            case RaiseLimit() | RaiseQuota():
                ledger = snapshot.ledger.copy()
                _raise(ledger, change)
                snapshot = replace(snapshot, ledger=ledger, version=ledger.version)
            case Ends(leases):
                snapshot = _ended(snapshot, leases)
            case Undrain(names):
                snapshot = _undrained(snapshot, names)
            case RaiseCap():
                pass  # no part of a snapshot
    return snapshot


def ruled(policy: Policy, changes: Iterable[Change]) -> Policy:
    """The policy after these changes: power caps are its own."""
    for change in changes:
        match change:
            case Together(raises):
                policy = ruled(policy, raises)
            case RaiseCap(level, domain, watts):
                caps = dict(policy.power.caps)
                if level != policy.power.level or (domain not in caps and "*" not in caps):
                    raise ValueError(f"{level} {domain} has no power cap")
                caps[domain] = caps.get(domain, caps.get("*", 0)) + watts
                policy = replace(policy, power=replace(policy.power, caps=tuple(caps.items())))
    return policy


def _budgeted(accounts: Accounts | None, change: RaiseBudget) -> Accounts:
    """The accounts with one budget raised."""
    found, done = [], False
    for account in accounts.budgets if accounts else ():
        budget = account.budget
        if (budget.team, budget.unit, budget.period) == (change.team, change.unit, change.period):
            budget, done = replace(budget, amount=budget.amount + change.amount), True
        found.append(replace(account, budget=budget))
    if accounts is None or not done:
        raise ValueError(f"team {change.team} has no budget in {change.unit} a {change.period}")
    return replace(accounts, budgets=tuple(found))


def _set(array: IntArray, row: int, value: int) -> IntArray:
    other = array.copy()
    other[row] = value
    return other


def _fewer(queue: Queue, row: int, workers: int) -> Queue:
    if not 0 < workers <= queue.workers[row]:
        raise ValueError(f"the job asks for {queue.workers[row]} workers: {workers} is not a smaller gang")
    requests = queue.requests
    if requests:
        fewer = replace(requests[row], workers=workers, min_workers=workers)
        requests = (*requests[:row], fewer, *requests[row + 1 :])
    return replace(
        queue,
        requests=requests,
        workers=_set(queue.workers, row, workers),
        min_workers=_set(queue.min_workers, row, workers),
    )


def _other(queue: Queue, row: int, model: str) -> Queue:
    def more(models: tuple[str, ...]) -> tuple[str, ...]:
        return () if model == ANY_MODEL or not models else tuple(dict.fromkeys((*models, model)))

    requests = queue.requests
    if requests:
        wider = replace(requests[row], gpu_models=more(requests[row].gpu_models))
        requests = (*requests[:row], wider, *requests[row + 1 :])
    return _classes(queue, row, requests, lambda c: replace(c, gpu_models=more(c.gpu_models)))


def _freer(snapshot: Snapshot, row: int, change: Freer) -> Queue:
    queue, there = snapshot.pending, snapshot.ledger.traits
    requests = queue.requests
    if requests:
        freer = replace(requests[row], constraints=relaxed(requests[row].constraints, change, there))
        requests = (*requests[:row], freer, *requests[row + 1 :])
    return _classes(
        queue, row, requests, lambda c: replace(c, constraints=relaxed(c.constraints, change, there))
    )


def _classes(
    queue: Queue, row: int, requests: tuple[JobRequest, ...], change: Callable[[TaskClass], TaskClass]
) -> Queue:
    """With the changed class for the head and the workers of `row`: both are of the same job."""
    classes = list(queue.classes)

    def changed_class(at: int) -> int:
        if at < 0:
            return at
        wider = change(classes[at])
        if wider not in classes:
            classes.append(wider)
        return classes.index(wider)

    head, worker = changed_class(int(queue.head[row])), changed_class(int(queue.worker[row]))
    return replace(
        queue,
        requests=requests,
        classes=tuple(classes),
        head=_set(queue.head, row, head),
        worker=_set(queue.worker, row, worker),
    )


def _raise(ledger: Ledger, change: RaiseLimit | RaiseQuota) -> None:
    if change.team not in ledger.team_row or change.gpu_model not in ledger.models:
        raise ValueError(f"there is no team {change.team}, or no model {change.gpu_model}")
    column, row = ledger.models.index(change.gpu_model), ledger.team_row[change.team]
    if isinstance(change, RaiseLimit):
        _set_figure(ledger, row, "limit", column, int(ledger.limit[row, column]) + change.milli)
        return
    amount = int(ledger.quota[row, column]) + change.milli
    while True:
        if amount > ledger.limit[row, column]:
            raise ValueError(f"team {ledger.team_names[row]}: its quota would be above its limit")
        _set_figure(ledger, row, "quota", column, amount)
        row = int(ledger.team_parent[row])
        if row < 0:
            return
        amount = int(ledger.quota[ledger.team_parent == row, column].sum())
        if amount <= ledger.quota[row, column]:
            return


def _set_figure(ledger: Ledger, row: int, figure: str, column: int, amount: int) -> None:
    """The team as it is, with one figure set."""

    def said(name: str) -> tuple[tuple[str, int], ...]:
        values = getattr(ledger, name)[row].tolist()
        if name == figure:
            values[column] = min(amount, UNLIMITED)
        return tuple(zip(ledger.models, values, strict=True))

    parent = int(ledger.team_parent[row])
    spec = TeamSpec(
        name=ledger.team_names[row],
        parent=ledger.team_names[parent] if parent >= 0 else "",
        weight=int(ledger.weight[row]),
        **{name: said(name) for name, _ in FIGURES},
    )
    step(ledger, TeamSet(spec))


def _ended(snapshot: Snapshot, leases: tuple[str, ...]) -> Snapshot:
    ledger = snapshot.ledger.copy()
    for lease in leases:
        if lease not in ledger.leases:
            raise ValueError(f"no lease {lease} is held")
        step(ledger, LeaseReleased(lease, ledger.leases[lease].epoch))
    running = snapshot.running and _without(snapshot.running, frozenset(leases))
    return replace(snapshot, ledger=ledger, version=ledger.version, running=running)


def _undrained(snapshot: Snapshot, names: tuple[str, ...]) -> Snapshot:
    ledger = snapshot.ledger.copy()
    for name in names:
        if name not in snapshot.drained:
            raise ValueError(f"node {name} is not drained")
        row = ledger.node_row[name]
        spec = NodeSpec(
            name=name,
            gpu_model=ledger.models[int(ledger.model[row])] if ledger.devices[row] else "",
            devices=int(ledger.devices[row]),
            device_mib=int(ledger.device_mib[row]),
            milli_cpu=int(ledger.cpu_total[row]),
            mib=int(ledger.mib_total[row]),
            traits=ledger.traits[int(ledger.trait[row])],
        )
        step(ledger, NodeUp(spec))
    left = tuple(name for name in snapshot.drained if name not in names)
    return replace(snapshot, ledger=ledger, version=ledger.version, drained=left)


def _without(running: RunningJobs, leases: frozenset[str]) -> RunningJobs:
    """Those that stay: what has ended cannot be asked to leave."""
    return running.take(np.array([lease not in leases for lease in running.leases], np.bool_))
