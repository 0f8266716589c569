"""The in-memory side of the state: the ledger, what waits, why. Rebuilt from the store, changed only after a commit.

Every method expects the store's lock. A failed commit is answered by `reload`, so book and store cannot differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, func, select

from moorage.configs.job import JobAsk, Piece
from moorage.configs.nodes import traits
from moorage.configs.pool import PoolSettings
from moorage.configs.teams import ANY, Teams
from moorage.runtime.control import records
from moorage.runtime.control.api import PENDING
from moorage.runtime.control.deciding import Told
from moorage.runtime.control.drained import drained_from
from moorage.runtime.control.leaving import (
    Leaving,
    Promise,
    Shrinking,
    following_from,
    leaving_from,
    promises_from,
    shrinking_from,
)
from moorage.runtime.control.tables import jobs, leases, nodes, subleases
from moorage.scheduling.accounts import HOUR_NS
from moorage.scheduling.constraints import Constraints
from moorage.scheduling.domains import staying
from moorage.scheduling.ledger import Event, LeaseGranted, Ledger, NodeDown, NodeUp, TeamSet, step
from moorage.scheduling.model import (
    ANY_MODEL,
    JobRequest,
    Lease,
    NodeSpec,
    Policy,
    Reason,
    Shape,
    TeamSpec,
)
from moorage.scheduling.promises import after_leaving


class Book:
    """`ledger`: who holds what. `pending`: waiting jobs and subleases by id. `reasons`: why, from the last plan."""

    def __init__(self, teams: Teams, settings: PoolSettings | None = None) -> None:
        self.teams = teams
        self.settings = settings or PoolSettings()
        self.ledger = Ledger()
        self.pending: dict[str, JobRequest] = {}
        self.not_before: dict[str, int] = {}
        """Control time before which a requeued job is not tried again."""
        self.reasons: dict[str, Reason] = {}
        self.leaving: dict[str, Leaving] = {}
        """Running jobs that were told to leave."""
        self.shrinking: dict[str, Shrinking] = {}
        """Running jobs that were asked to give workers up."""
        self.following: dict[str, int] = {}
        """Running jobs that follow their leases, and which attempt of each does."""
        self.changes: dict[str, int] = {}
        """Of jobs whose lease was resized, or that were asked to give workers up: how often."""
        self.reloads = 0
        self.promises: dict[str, Promise] = {}
        """Waiting jobs and subleases for whom room is being made, the oldest promise first."""
        self.told = Told()
        """Which reasons the audit record has."""
        self.drained: dict[str, dict[str, Any]] = {}
        """Nodes that take nothing new, and who said so."""
        self.alive: set[str] = set()
        """Nodes that Ray has."""
        self.ray_ids: dict[str, str] = {}
        """Node name -> Ray's id of its present incarnation."""
        self.loads: dict[str, dict[str, float]] = {}
        """Endpoint -> what its job last said of its load; not in the store."""
        self.dirty = True
        """Something changed since the last plan."""

    def reload(self, db: Connection) -> None:
        """Build everything from the store."""
        before = self.ledger.version
        self.ledger = ledger_from(db, self.teams, self.settings)
        self.ledger.version = max(self.ledger.version, before + 1)  # a plan of the old one is not one of this
        known = db.execute(select(nodes)).all()
        self.ray_ids = {row.name: row.ray_node_id for row in known}
        self.alive, self.drained = {row.name for row in known if row.alive}, drained_from(db)
        self.pending, self.not_before = {}, {}
        for row in db.execute(select(jobs).where(jobs.c.state == PENDING)).all():
            self.add_job(row)
        for row in db.execute(select(subleases).where(subleases.c.state == "WAITING")).all():
            parent = db.execute(select(jobs.c.ask).where(jobs.c.id == row.job_id)).scalar_one()
            asked = JobAsk.model_validate(parent)
            self.add_sublease(row, asked, asked.priority)
        self.leaving, self.promises = leaving_from(db), promises_from(db)
        self.shrinking, self.following = shrinking_from(db), following_from(db)
        self.reloads += 1
        self.reasons = {key: reason for key, reason in self.reasons.items() if key in self.pending}
        self.dirty = True

    def apply(self, event: Event) -> None:
        step(self.ledger, event)
        self.dirty = True

    def add_job(self, row: Row[Any]) -> None:
        self.pending[row.id] = job_request(row)
        self.not_before[row.id] = row.not_before_control_ns
        self.dirty = True

    def add_sublease(self, row: Row[Any], parent: JobAsk, priority: int) -> None:
        self.pending[row.id] = sublease_request(row, self.staying(row.job_id, parent), priority)
        self.dirty = True

    def staying(self, job: str, ask: JobAsk) -> Constraints:
        """The constraints of what a running job grows by: where the job itself may go, and in its own domain."""
        tasks = [task for lease in self.ledger.held_by(job) for task in lease.tasks]
        if not tasks:
            return ask.constraints
        traits = self.ledger.traits[int(self.ledger.trait[self.ledger.node_row[tasks[0].node]])]
        return staying(ask.constraints, traits, self.settings.topology)

    def drop(self, key: str) -> None:
        """`key` no longer waits."""
        if self.pending.pop(key, None) is not None:
            self.dirty = True
        self.not_before.pop(key, None)
        self.reasons.pop(key, None)
        self.promises.pop(key, None)

    def waiting(self, control_ns: int) -> tuple[JobRequest, ...]:
        """What may be planned now. Who was promised a place has one."""
        may = (key for key in self.pending if key not in self.promises)
        return tuple(self.pending[key] for key in may if self.not_before.get(key, 0) <= control_ns)

    def coming(self, control_ns: int) -> Ledger:
        """A copy of the ledger as it will be once those have left or shrunk who were told to, and those started who
        were promised a place."""
        gone = [job for job, one in self.leaving.items() if control_ns < one.patience_ns]
        promised = [(self.pending[key], one.tasks) for key, one in self.promises.items()]
        return after_leaving(self.ledger, gone, promised, self.kept())

    def kept(self) -> dict[str, int]:
        """Lease -> how many of its tasks it will keep, of those that were asked to give some up."""
        return {one.lease: one.kept for one in self.shrinking.values()}

    def ask(self, asked: Mapping[str, Shrinking]) -> None:
        """These are the jobs that are asked to give workers up."""
        for job in [job for job, one in asked.items() if self.shrinking.get(job) != one]:
            self.changed(job)
        self.shrinking = dict(asked)

    def unask(self, job: str) -> None:
        if self.shrinking.pop(job, None) is not None:
            self.changed(job)

    def changed(self, job: str) -> None:
        """What a job holds or is asked for is another: who waits for it looks again."""
        self.changes[job] = self.changes.get(job, 0) + 1


def ledger_from(db: Connection, teams: Teams, settings: PoolSettings) -> Ledger:
    """The ledger that the store describes."""
    ledger = Ledger()
    for spec in team_specs(teams):
        step(ledger, TeamSet(spec))
    rows = db.execute(select(nodes).order_by(nodes.c.name)).all()
    for row in rows:
        step(ledger, NodeUp(node_spec(row, settings)))
    for lease in records.held_leases(db):
        _team_for(ledger, lease)
        step(ledger, LeaseGranted(lease))
    drained = drained_from(db)
    for row in rows:
        if not row.alive or row.name in drained:
            step(ledger, NodeDown(row.name))
    ledger.last_epoch = int(db.execute(select(func.max(leases.c.epoch))).scalar() or 0)
    return ledger


def _team_for(ledger: Ledger, lease: Lease) -> None:
    """A team that left the file keeps what it holds and may take nothing more."""
    if lease.team not in ledger.team_row:
        step(ledger, TeamSet(TeamSpec(name=lease.team, limit=((ANY_MODEL, 0),))))


def team_specs(teams: Teams) -> list[TeamSpec]:
    """Parents before children."""
    ordered: list[str] = []

    def visit(name: str) -> None:
        parent = teams.teams[name].parent
        if parent and parent not in ordered:
            visit(parent)
        if name not in ordered:
            ordered.append(name)

    for name in teams.teams:
        visit(name)
    specs = []
    for name in ordered:
        team = teams.teams[name]
        specs.append(
            TeamSpec(
                name=name,
                parent=team.parent,
                quota=_figures(team.quota),
                limit=_figures(team.limit),
                lend=_figures(team.lend),
                borrow=_figures(team.borrow),
                weight=team.weight,
            )
        )
    return specs


def _figures(amounts: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple((ANY_MODEL if model == ANY else model, amount) for model, amount in sorted(amounts.items()))


def node_spec(row: Any, settings: PoolSettings) -> NodeSpec:
    """From a row of `nodes` or an `ObservedNode`: the fields have the same names. What the pool's file says of nodes
    holds from its next start, also of those that the store knows from before."""
    return NodeSpec(
        name=row.name,
        gpu_model=row.gpu_model if row.devices else "",
        devices=row.devices,
        device_mib=row.device_mib,
        milli_cpu=row.milli_cpu,
        mib=row.mib,
        traits=traits(row.name, row.labels, settings.nodes),
    )


def shape(piece: Piece) -> Shape:
    return Shape(milli_gpu=piece.milli_gpu, gpu_mib=piece.gpu_mib, milli_cpu=piece.milli_cpu, mib=piece.mib)


def request_of(job_id: str, team: str, ask: JobAsk, submitted_ns: int) -> JobRequest:
    """The planner's view of an ask; ValueError when the core cannot express it."""
    return JobRequest(
        job=job_id,
        team=team,
        submitted_ns=submitted_ns,
        priority=ask.priority,
        head=shape(ask.head),
        worker=shape(ask.worker),
        workers=ask.workers,
        min_workers=ask.min_workers,
        gpu_models=tuple(m for m in ask.gpu_model.split("|") if m),
        constraints=ask.constraints,
        preemptible=ask.preemptible,
        max_runtime_ns=ask.max_runtime_ns or 0,
        deadline_ns=submitted_ns + ask.deadline_ns if ask.deadline_ns else 0,
    )


def job_request(row: Row[Any]) -> JobRequest:
    return request_of(row.id, row.team, JobAsk.model_validate(row.ask), row.created_control_ns)


_RESERVATIONS = {"none": 0, "easy": 1, "conservative": 100}
"""How many in line get one: each costs about as much as a decision without any, so conservative has an end too."""


def policy_of(settings: PoolSettings) -> Policy:
    """What the pool's file says of decisions."""
    return Policy(
        topology=settings.topology,
        power=settings.power.policy(),
        least_run_ns=settings.preemption.least_run_s * 10**9,
        reclaim_waits=settings.preemption.reclaim_waits,
        grow=settings.elastic.enabled,
        settle_ns=settings.elastic.settle_s * 10**9,
        half_life_ns=settings.usage_half_life_h * HOUR_NS,
        reservations=_RESERVATIONS[settings.backfill],
    )


def sublease_request(row: Row[Any], constraints: Constraints, priority: int) -> JobRequest:
    """A running job's growth, under constraints as `Book.staying` finds them."""
    ask = row.ask
    return JobRequest(
        job=row.id,
        team=row.team,
        submitted_ns=row.created_control_ns,
        priority=priority,
        worker=Shape(milli_gpu=ask["milli_gpu"], gpu_mib=ask["gpu_mib"], milli_cpu=ask["milli_cpu"]),
        workers=ask["workers"],
        min_workers=ask["workers"],
        constraints=constraints,
        parent=row.job_id,
    )
