"""Why each waiting job waits: the loop's codes and figures, turned into `Reason`s when somebody asks.

A plan over a long queue defers thousands of jobs and few of their reasons are read. Words are drawn from the snapshot
the plan was made of; once its ledger has moved on they would no longer be true, and asking is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from moorage.kernels import admission
from moorage.scheduling.columns import of_models, usable
from moorage.scheduling.ledger import Ledger
from moorage.scheduling.model import ANY_MODEL, IntArray, Reason, ReasonCode, Reservation, Snapshot
from moorage.scheduling.queue import TaskClass

_HOLDERS_SHOWN = 3
_NODES_SHOWN = 4


@dataclass(slots=True)
class Words:
    """`code[D]` and `figures[D,4]` of the deferred rows (see `kernels.admission.Out`), and what was left at the end."""

    snapshot: Snapshot
    never: Callable[[int], Reason | None]
    """Why a row could never start, even in an idle pool."""
    code: IntArray
    figures: IntArray
    free: IntArray
    """[M] milli-GPU left free on the nodes that are up, by model column."""
    admitted: IntArray
    on_node: IntArray | None
    """[N] milli-GPU left free on each node; None where no job has constraints."""
    task_admission: IntArray
    task_node: IntArray
    """As in the plan."""
    now_ns: int = 0
    late_ns: IntArray | None = None
    """[R] see `planner.deadlines`."""
    reserved: Mapping[int, Reservation] = field(default_factory=dict)
    """By row."""
    limit: Callable[[int], tuple[ReasonCode | None, str]] | None = None
    """Which limit beyond a single node binds a row that lacks only room, in words; None where there are no limits."""
    _said: tuple[Reason, ...] | None = None
    _usable: dict[tuple[int, int], npt.NDArray[np.bool_] | None] = field(default_factory=dict)

    def reasons(self, deferred: IntArray) -> tuple[Reason, ...]:
        if self._said is None:
            if self.snapshot.ledger.version != self.snapshot.version:
                raise RuntimeError("the ledger has moved on: read a plan's reasons before applying it")
            holders, least = _Holders(self), self.snapshot.pending.least()
            impossible: dict[tuple[int, ...], Reason | None] = {}
            said = (
                self._reason(d, int(row), int(least[row]), holders, impossible)
                for d, row in enumerate(deferred)
            )
            if self.late_ns is None:
                self._said = tuple(said)
            else:
                late = self.late_ns[deferred].tolist()
                self._said = tuple(
                    replace(one, late_ns=by) if by else one for one, by in zip(said, late, strict=True)
                )
        return self._said

    def _reason(
        self,
        d: int,
        row: int,
        asked: int,
        holders: _Holders,
        impossible: dict[tuple[int, ...], Reason | None],
    ) -> Reason:
        queue, ledger = self.snapshot.pending, self.snapshot.ledger
        team = queue.teams[int(queue.team[row])]
        at, column, held, allowed = (int(x) for x in self.figures[d])
        match int(self.code[d]):
            case admission.TEAM_UNKNOWN:
                return Reason(code=ReasonCode.TEAM_UNKNOWN, team=team, asked=asked)
            case admission.BUDGET if self.snapshot.accounts:
                account = self.snapshot.accounts.budgets[at]
                budget = account.budget
                return Reason(
                    code=ReasonCode.BUDGET,
                    team=budget.team,
                    asked=asked,
                    held=account.spent,
                    allowed=budget.amount,
                    unit=budget.unit,
                    period=budget.period,
                    until_ns=account.until_ns,
                )
            case admission.BEHIND:
                return Reason(
                    code=ReasonCode.BEHIND, team=team, asked=asked, holders=(_name(self.snapshot, at),)
                )
            case admission.DELAYS:
                first = _name(self.snapshot, at) if at >= 0 else ""
                return Reason(
                    code=ReasonCode.DELAYS, team=team, asked=asked, holders=(first,) if first else ()
                )
            case admission.RESERVED if row in self.reserved:
                return self._by_reservation(row, team, asked)
            case admission.TEAM_LIMIT:
                return Reason(
                    code=ReasonCode.TEAM_LIMIT,
                    team=ledger.team_names[at],
                    gpu_model=ledger.models[column],
                    asked=asked,
                    held=held,
                    allowed=allowed,
                    holders=holders.of(ledger.team_names[at], team),
                )
            case admission.TEAM_QUOTA:
                return Reason(
                    code=ReasonCode.TEAM_QUOTA,
                    team=team,
                    gpu_model=ledger.models[column],
                    asked=asked,
                    held=held,
                    allowed=allowed,
                    holders=holders.of(),
                )
            case _:
                return self._lacks_room(row, team, asked, holders, impossible)

    def _lacks_room(
        self,
        row: int,
        team: str,
        asked: int,
        holders: _Holders,
        impossible: dict[tuple[int, ...], Reason | None],
    ) -> Reason:
        queue, ledger = self.snapshot.pending, self.snapshot.ledger
        same = tuple(int(x[row]) for x in (queue.team, queue.head, queue.worker, queue.min_workers))
        if same not in impossible:
            impossible[same] = self.never(row)
        never, drained = impossible[same], self._drained(row)
        if never is not None:
            return replace(never, note="; ".join(filter(None, (never.note, drained)))) if drained else never
        models, nodes = models_of(self.snapshot, row), self._nodes(row)
        if nodes is None or self.on_node is None:
            columns = [ledger.models.index(m) for m in models if m in ledger.models] if models else [0]
            free = int(self.free[columns].sum())
        else:
            free = int(self.on_node[nodes].sum())
        place = "" if nodes is None else f"on the nodes that it may use ({int(nodes.sum())})"
        limit, note = self.limit(row) if self.limit else (None, "")
        return Reason(
            code=limit or (ReasonCode.FRAGMENTED if free >= asked else ReasonCode.POOL_FULL),
            note=note,
            team=team,
            gpu_model=model_text(models),
            asked=asked,
            free=free,
            holders=holders.of() if nodes is None else holders.on(nodes),
            place=f"{place or 'in the pool'} ({drained})" if drained else place,
        )

    def _drained(self, row: int) -> str:
        """Which drained nodes it could use; "" where there are none."""
        drained, ledger, queue = self.snapshot.drained, self.snapshot.ledger, self.snapshot.pending
        if not drained:
            return ""
        may = np.zeros(len(ledger.up), np.bool_)
        for c in (queue.classes[int(at[row])] for at in (queue.head, queue.worker) if at[row] >= 0):
            known = [ledger.models.index(m) for m in c.gpu_models if m in ledger.models]
            of_model = np.isin(ledger.model, known) if c.gpu_models else np.ones(len(may), np.bool_)
            may |= of_model & (ledger.may_run(c.constraints) > c.strict)
        names = [name for name in drained if may[ledger.node_row[name]]]
        more = f" and {len(names) - _NODES_SHOWN} more" if len(names) > _NODES_SHOWN else ""
        verb = "is" if len(names) == 1 else "are"
        return f"{', '.join(names[:_NODES_SHOWN])}{more} {verb} drained" if names else ""

    def _by_reservation(self, row: int, team: str, asked: int) -> Reason:
        found, ledger = self.reserved[row], self.snapshot.ledger
        models = models_of(self.snapshot, row)
        columns = [ledger.models.index(m) for m in models if m in ledger.models] if models else [0]
        names = [ledger.node_names[n] for n in dict.fromkeys(found.nodes)]
        more = f" and {len(names) - _NODES_SHOWN} more" if len(names) > _NODES_SHOWN else ""
        return Reason(
            code=ReasonCode.RESERVED,
            team=team,
            gpu_model=model_text(models),
            asked=asked,
            free=int(self.free[columns].sum()),
            note=", ".join(names[:_NODES_SHOWN]) + more,
            starts_in_ns=max(0, found.start_ns - self.now_ns),
        )

    def _nodes(self, row: int) -> npt.NDArray[np.bool_] | None:
        """[N] the nodes that one of its tasks may use; None = constraints leave it all that its model does."""
        queue, ledger = self.snapshot.pending, self.snapshot.ledger
        same = int(queue.head[row]), int(queue.worker[row])
        if same not in self._usable:
            classes = [queue.classes[c] for c in same if c >= 0]
            bound = ruled_out(ledger, classes) != ""
            self._usable[same] = np.any([usable(ledger, c) for c in classes], axis=0) if bound else None
        return self._usable[same]


class _Holders:
    """The first jobs, oldest first, whose end would give GPUs back: held now, or started by this plan."""

    def __init__(self, words: Words) -> None:
        snapshot = words.snapshot
        self._words = words
        queue, milli = snapshot.pending, np.append(snapshot.pending.milli(), 0)
        held = [(lease.job, lease.team) for lease in snapshot.ledger.leases.values() if lease.milli_gpu]
        begun = [
            (_name(snapshot, int(row)), queue.teams[int(queue.team[row])])
            for row in words.admitted
            if milli[queue.head[row]] or milli[queue.worker[row]]
        ]
        self._all = (*held, *begun)
        self._found: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._on: dict[bytes, tuple[str, ...]] = {}

    def of(self, *teams: str) -> tuple[str, ...]:
        """Of these teams, or of all when none is named."""
        if teams not in self._found:
            jobs: dict[str, None] = {}
            for job, team in self._all:
                if not teams or team in teams:
                    jobs[job] = None
                    if len(jobs) == _HOLDERS_SHOWN:
                        break
            self._found[teams] = tuple(jobs)
        return self._found[teams]

    def on(self, nodes: npt.NDArray[np.bool_]) -> tuple[str, ...]:
        """Of those that hold a part of these nodes."""
        words, ledger, key = self._words, self._words.snapshot.ledger, nodes.tobytes()
        if key in self._on:
            return self._on[key]
        names = set(np.array(ledger.node_names, object)[nodes])
        held = {
            lease.job: None
            for lease in ledger.leases.values()
            if lease.milli_gpu and any(task.node in names for task in lease.tasks)
        }
        begun = np.unique(words.task_admission[nodes[words.task_node]])
        held |= {_name(words.snapshot, int(words.admitted[a])): None for a in begun}
        known = {job for job, _ in self._all}
        self._on[key] = tuple(job for job in held if job in known)[:_HOLDERS_SHOWN]
        return self._on[key]


def ruled_out(ledger: Ledger, classes: Sequence[TaskClass]) -> str:
    """Which constraints rule out how many of the nodes that are up and of the models asked for; "" when none does."""
    found: dict[str, None] = {}
    for c in classes:
        counts = np.bincount(ledger.trait[of_models(ledger, c)], minlength=len(ledger.traits))
        excluded: Counter[str] = Counter()
        for traits, count in zip(ledger.traits, counts.tolist(), strict=True):
            if count and (why := c.constraints.excluded(traits)):
                excluded[why] += count
        order = sorted(excluded.items(), key=lambda item: (-item[1], item[0]))
        if order:
            total = int(counts.sum())
            found[f"of {total} nodes {', '.join(f'{n} are ruled out by {why}' for why, n in order)}"] = None
    return "; ".join(found)


def too_much(code: ReasonCode | None, limit: str) -> str:
    """Why even an idle pool is too small under a limit."""
    match code:
        case ReasonCode.TOPOLOGY:
            return f"no {limit} is large enough for the whole gang"
        case ReasonCode.SPREAD:
            return f"with at most {limit} there are too few"
        case ReasonCode.POWER_CAP:
            return f"a power cap allows less: {limit}"
        case _:
            return ""


def models_of(snapshot: Snapshot, row: int) -> tuple[str, ...]:
    """The GPU models a waiting job may use, () = any."""
    queue = snapshot.pending
    c = int(queue.worker[row]) if queue.worker[row] >= 0 else int(queue.head[row])
    return queue.classes[c].gpu_models if c >= 0 else ()


def model_text(models: tuple[str, ...]) -> str:
    return " or ".join(models) or ANY_MODEL


def _name(snapshot: Snapshot, row: int) -> str:
    return snapshot.pending.names[row]
