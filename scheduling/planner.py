"""`plan(snapshot, policy, now_ns) -> Plan`: one scheduling decision.

Pure: the snapshot is not changed, time is an argument, and the same input gives the same plan byte for byte.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from moorage.kernels.packing import place_gang
from moorage.scheduling import order
from moorage.scheduling.ledger import Ledger
from moorage.scheduling.model import (
    UNLIMITED,
    DeviceRule,
    IntArray,
    JobRequest,
    Plan,
    Policy,
    Reason,
    ReasonCode,
    Shape,
    Snapshot,
)
from moorage.scheduling.quota import Quotas, subtree

_HOLDERS_SHOWN = 3


def plan(snapshot: Snapshot, policy: Policy, now_ns: int) -> Plan:
    """Decide which waiting jobs start where, and say of every other one which rule holds it."""
    work = _Working.of(snapshot)
    out = _Columns(version=snapshot.version)
    later: list[int] = []
    known = []
    for row in order.first_pass(snapshot.pending):
        request = snapshot.pending[row]
        if request.team not in work.ledger.team_row:
            out.defer(row, Reason(code=ReasonCode.TEAM_UNKNOWN, team=request.team, asked=_least(request)))
        else:
            known.append(row)
    _pass(known, snapshot, policy, now_ns, work, out, later=later)
    _pass(
        order.borrowers(snapshot.pending, later, work.quotas), snapshot, policy, now_ns, work, out, later=None
    )
    return out.plan()


def feasible(ledger: Ledger, request: JobRequest, rule: DeviceRule) -> Reason | None:
    """None when an otherwise idle pool could start the job's minimum; else the rule that never will."""
    work = _Working.of(Snapshot(version=ledger.version, ledger=ledger, pending=(), device_rule=rule))
    team = ledger.team_row.get(request.team)
    if team is None:
        return Reason(code=ReasonCode.TEAM_UNKNOWN, team=request.team, asked=_least(request))
    work.empty()
    most = work.quotas.most(team)
    if work.fits(request, most):
        return None
    if not work.fits(request, np.full(len(ledger.models), UNLIMITED, np.int64)):
        return Reason(
            code=ReasonCode.NO_DEVICE, team=request.team, gpu_model=request.gpu_model, asked=_least(request)
        )
    column = _column(ledger, request)
    here = np.unique(ledger.model[ledger.up & (ledger.devices > 0)]) if column == 0 else np.array([column])
    return Reason(
        code=ReasonCode.TEAM_LIMIT,
        team=request.team,
        gpu_model=request.gpu_model,
        asked=_least(request),
        allowed=min(int(most[0]), sum(int(most[model]) for model in here)),
    )


def _pass(
    rows: list[int],
    snapshot: Snapshot,
    policy: Policy,
    now_ns: int,
    work: _Working,
    out: _Columns,
    *,
    later: list[int] | None,
) -> None:
    """Try rows in order. With `later`, only within own quota: what may start by borrowing is appended to it."""
    held_for: str | None = None
    for row in rows:
        request = snapshot.pending[row]
        team = work.ledger.team_row[request.team]
        least, own = _least(request), work.quotas.in_quota(team)
        if later is not None and least and least > min(own[0], own[_column(work.ledger, request)]):
            later.append(row)
            continue
        if held_for is not None and least:
            behind = Reason(code=ReasonCode.BEHIND, team=request.team, asked=least, holders=(held_for,))
            out.defer(row, behind)
            continue
        room = work.quotas.room(team)
        within = np.minimum(room, own) if later is not None and least else room
        placed = None
        if len(out.admitted) < policy.max_admissions:
            placed = work.place(request, within, request.workers)
        if placed is not None:
            out.admit(row, request, placed, work.ledger)
            work.quotas.used[team] += placed.charged
            work.started.append(request)
            continue
        if later is not None and bool((within < room).any()) and work.fits(request, room):
            later.append(row)  # its quota is enough, but of other models than those free: these it may borrow
            continue
        reason = _why(request, team, work)
        out.defer(row, reason)
        if reason.code in _LACKS_ROOM and now_ns - request.submitted_ns >= policy.hold_after_ns:
            held_for = request.job


_LACKS_ROOM = (ReasonCode.POOL_FULL, ReasonCode.FRAGMENTED)


def _why(request: JobRequest, team: int, work: _Working) -> Reason:
    """The rule that binds, tried from the outermost: limit, quota, then room on devices."""
    ledger, quotas, asked = work.ledger, work.quotas, _least(request)
    column = _column(ledger, request)
    limits = quotas.limits(team)
    if limits[column] < asked or limits[0] < asked:
        c = column if limits[column] < asked else 0
        return _bound_by_limit(request, team, c, asked, work)
    room = quotas.room(team)
    if room[column] < asked or room[0] < asked:
        c = column if room[column] < asked else 0
        held = int(quotas.used[team, c])
        return Reason(
            code=ReasonCode.TEAM_QUOTA,
            team=request.team,
            gpu_model=ledger.models[c],
            asked=asked,
            held=held,
            allowed=held + int(room[c]),
            holders=work.holders(),
        )
    never = feasible(ledger, request, work.rule)
    if never is not None:
        return never
    usable = work.up & ((ledger.model == column) if column else np.ones(len(work.up), np.bool_))
    free = int(work.milli_free[usable].sum())
    return Reason(
        code=ReasonCode.FRAGMENTED if free >= asked else ReasonCode.POOL_FULL,
        team=request.team,
        gpu_model=request.gpu_model,
        asked=asked,
        free=free,
        holders=work.holders(),
    )


def _bound_by_limit(request: JobRequest, team: int, column: int, asked: int, work: _Working) -> Reason:
    """The team on the path to the root whose limit leaves least."""
    ledger = work.ledger
    total = subtree(ledger.team_parent, work.quotas.used)
    path = []
    while team >= 0:
        path.append(team)
        team = int(ledger.team_parent[team])
    row = min(path, key=lambda t: int(ledger.limit[t, column] - total[t, column]))
    return Reason(
        code=ReasonCode.TEAM_LIMIT,
        team=ledger.team_names[row],
        gpu_model=ledger.models[column],
        asked=asked,
        held=int(total[row, column]),
        allowed=int(ledger.limit[row, column]),
        holders=work.holders({ledger.team_names[row], request.team}),
    )


def _least(request: JobRequest) -> int:
    return request.milli_gpu(request.min_workers)


def _column(ledger: Ledger, request: JobRequest) -> int:
    """Model column; a model no node or team names yet has no devices: any column without nodes would do, and
    `place` refuses it by `_want`."""
    return ledger.models.index(request.gpu_model) if request.gpu_model in ledger.models else 0


def _want(ledger: Ledger, request: JobRequest) -> int:
    """The model row the kernel filters by: 0 any, and one past the last for a model nobody has."""
    if request.gpu_model in ledger.models:
        return ledger.models.index(request.gpu_model)
    return len(ledger.models)


def _shape(shape: Shape) -> IntArray:
    return np.array([shape.milli_gpu, shape.gpu_mib, shape.milli_cpu, shape.mib], np.int64)


@dataclass(frozen=True, slots=True)
class _Placed:
    workers: int
    node: IntArray
    mask: IntArray
    mem: IntArray
    charged: IntArray


@dataclass(slots=True)
class _Working:
    """A working copy of the free arrays, so that trying changes nothing of the snapshot."""

    ledger: Ledger
    quotas: Quotas
    rule: DeviceRule
    up: np.ndarray[tuple[int], np.dtype[np.bool_]]
    milli_free: IntArray
    mem_free: IntArray
    cpu_free: IntArray
    mib_free: IntArray
    started: list[JobRequest] = field(default_factory=list)

    @classmethod
    def of(cls, snapshot: Snapshot) -> _Working:
        ledger = snapshot.ledger
        return cls(
            ledger=ledger,
            quotas=Quotas.of(ledger),
            rule=snapshot.device_rule,
            up=ledger.up,
            milli_free=ledger.milli_free.copy(),
            mem_free=ledger.mem_free.copy(),
            cpu_free=ledger.cpu_free.copy(),
            mib_free=ledger.mib_free.copy(),
        )

    def holders(self, teams: set[str] | None = None) -> tuple[str, ...]:
        """The first jobs, oldest first, whose end would give GPUs back: held now, or started by this plan."""
        held = ((lease.job, lease.team) for lease in self.ledger.leases.values() if lease.milli_gpu)
        begun = ((request.job, request.team) for request in self.started if request.milli_gpu())
        jobs: dict[str, None] = {}
        for job, team in (*held, *begun):
            if teams is None or team in teams:
                jobs[job] = None
                if len(jobs) == _HOLDERS_SHOWN:
                    break
        return tuple(jobs)

    def empty(self) -> None:
        """As if no lease were held."""
        ledger = self.ledger
        has = np.arange(self.milli_free.shape[1])[None, :] < ledger.devices[:, None]
        self.milli_free = np.where(has, np.int64(1000), np.int64(0))
        self.mem_free = np.where(has, ledger.device_mib[:, None], np.int64(0))
        self.cpu_free, self.mib_free = ledger.cpu_total.copy(), ledger.mib_total.copy()

    def fits(self, request: JobRequest, room: IntArray) -> bool:
        """Whether the gang's minimum could be placed now. Nothing is kept."""
        trial = replace(
            self,
            milli_free=self.milli_free.copy(),
            mem_free=self.mem_free.copy(),
            cpu_free=self.cpu_free.copy(),
            mib_free=self.mib_free.copy(),
        )
        return trial.place(request, room, request.min_workers) is not None

    def place(self, request: JobRequest, room: IntArray, workers: int) -> _Placed | None:
        """Place the gang and keep it placed; None when its minimum does not fit, and nothing changed."""
        head, worker = _shape(request.head), _shape(request.worker)
        if request.worker.empty:
            workers = 0
        if request.head.empty and workers == 0:
            none = np.zeros(0, np.int64)
            return _Placed(0, none, none, none, np.zeros_like(room))
        node, mask, mem = (np.zeros(1 + workers, np.int64) for _ in range(3))
        left = room.copy()
        placed = place_gang(
            self.milli_free,
            self.mem_free,
            self.ledger.device_mib,
            self.ledger.model,
            self.up,
            self.cpu_free,
            self.mib_free,
            left,
            _want(self.ledger, request),
            head,
            worker,
            workers,
            min(workers, request.min_workers),
            self.rule is DeviceRule.RAYLET,
            node,
            mask,
            mem,
        )
        if placed < 0:
            return None
        count = placed + (not request.head.empty)
        return _Placed(int(placed), node[:count], mask[:count], mem[:count], room - left)


@dataclass(slots=True)
class _Columns:
    """The plan under construction."""

    version: int
    admitted: list[int] = field(default_factory=list)
    workers: list[int] = field(default_factory=list)
    tasks: list[tuple[int, int, int, int, int, int, int, int]] = field(default_factory=list)
    deferred: list[int] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)

    def admit(self, row: int, request: JobRequest, placed: _Placed, ledger: Ledger) -> None:
        heads = 0 if request.head.empty else 1
        for t in range(len(placed.node)):
            shape = request.head if t < heads else request.worker
            self.tasks.append(
                (
                    len(self.admitted),
                    t - heads,
                    int(placed.node[t]),
                    int(placed.mask[t]),
                    shape.milli_gpu,
                    int(placed.mem[t]),
                    shape.milli_cpu,
                    shape.mib,
                )
            )
        self.admitted.append(row)
        self.workers.append(placed.workers)

    def defer(self, row: int, reason: Reason) -> None:
        self.deferred.append(row)
        self.reasons.append(reason)

    def plan(self) -> Plan:
        tasks = np.array(self.tasks, np.int64).reshape(-1, 8)
        return Plan(
            version=self.version,
            admitted=np.array(self.admitted, np.int64),
            workers=np.array(self.workers, np.int64),
            task_admission=tasks[:, 0],
            task_index=tasks[:, 1],
            task_node=tasks[:, 2],
            task_devices=tasks[:, 3],
            task_milli=tasks[:, 4],
            task_gpu_mib=tasks[:, 5],
            task_milli_cpu=tasks[:, 6],
            task_mib=tasks[:, 7],
            deferred=np.array(self.deferred, np.int64),
            reasons=tuple(self.reasons),
        )
