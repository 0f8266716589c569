"""S2, S3: on random pools every suggestion, applied by other code than found it, starts the job; one less does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from ledger_events import image

from moorage.scheduling.changes import (
    Change,
    Ends,
    FewerWorkers,
    OtherModel,
    RaiseCap,
    RaiseLimit,
    RaiseQuota,
    Together,
)
from moorage.scheduling.constraints import Constraints, Power, Taint, Term, Toleration, Traits
from moorage.scheduling.explain import Explanation, explain
from moorage.scheduling.ledger import LeaseGranted, LeaseReleased, Ledger, NodeDown, NodeUp, TeamSet, step
from moorage.scheduling.model import (
    DeviceRule,
    JobRequest,
    Lease,
    NodeSpec,
    Policy,
    ReasonCode,
    Shape,
    Snapshot,
    TeamSpec,
)
from moorage.scheduling.planner import plan
from moorage.scheduling.queue import Queue
from moorage.scheduling.relaxing import ANYHOW, EVERYTHING, Closer, Relax, Wider
from moorage.scheduling.validate import check

MODELS = ("A", "B", "C")
TEAMS = {"org": "", "research": "org", "search": "org", "ops": ""}
SECOND = 10**9


class World:
    """A pool with leases and waiting jobs, kept as what it was made from, so that it can be made again with changes."""

    def __init__(self, seed: int) -> None:
        rng = self.rng = np.random.default_rng(seed)
        self.nodes = [
            NodeSpec(
                name=f"n{n}",
                gpu_model=str(rng.choice(MODELS[:2])),
                devices=int(rng.integers(0, 5)),
                device_mib=24000,
                milli_cpu=8000,
                mib=64000,
            )
            for n in range(int(rng.integers(1, 7)))
        ]
        self.marks = np.random.default_rng(seed + 10**6)
        self.nodes = [replace(node, traits=self.traits()) for node in self.nodes]
        self.policy = Policy(topology=("zone", "rack"), power=self.power())
        self.teams = {name: self.team(name) for name in TEAMS}
        self.rule = DeviceRule.FREE if rng.random() < 0.3 else DeviceRule.RAYLET
        self.leases: list[Lease] = []
        self.down = ""
        self.jobs = [self.job(f"h{i}") for i in range(int(rng.integers(0, 9)))]
        snapshot = self.snapshot()
        for request, tasks in plan(snapshot, self.policy, 0).admissions(snapshot):
            epoch = len(self.leases) + 1
            self.leases.append(
                Lease(lease=f"of-{request.job}", job=request.job, team=request.team, epoch=epoch, tasks=tasks)
            )
        if rng.random() < 0.1:
            self.down = str(rng.choice([node.name for node in self.nodes]))
        self.teams |= {name: self.team(name) for name in rng.choice(list(TEAMS), 2)}  # some now hold too much
        self.jobs = [self.job(f"j{i}") for i in range(int(rng.integers(1, 6)))]
        self.ends = {
            lease.lease: int(rng.integers(-5, 90)) * SECOND for lease in self.leases if rng.random() < 0.7
        }
        self.now = int(rng.choice([0, 700])) * SECOND

    def traits(self) -> Traits:
        rng = self.marks
        return Traits.of(
            ({"disk": "ssd"} if rng.random() < 0.6 else {})
            | ({"rack": str(rng.choice(["r0", "r1"]))} if rng.random() < 0.9 else {})
            | {"zone": str(rng.choice(["z0", "z0", "z1"]))},
            taints=(Taint(key="owner", value="x"),) if rng.random() < 0.15 else (),
            region=str(rng.choice(["", "eu", "us"], p=[0.5, 0.25, 0.25])),
            spot=bool(rng.random() < 0.15),
        )

    def power(self) -> Power:
        rng = self.marks
        if rng.random() < 0.6:
            return Power()
        caps = {
            name: int(rng.integers(1, 7)) * 100
            for name in ("z0/r0", "z0/r1", "z1/r0", "*")
            if rng.random() < 0.7
        }
        return Power(watts=(("A", 100), ("B", 70)), caps=tuple(caps.items()))

    def constraints(self) -> Constraints:
        rng = self.marks
        near = Constraints()
        if rng.random() < 0.5:
            spread = int(rng.choice([0, 0, 1, 2]))
            near = Constraints(
                required=str(rng.choice(["", "rack", "zone"], p=[0.3, 0.5, 0.2])),
                spread=spread,
                spread_by=str(rng.choice(["", "rack"])) if spread else "",
            )
        if rng.random() < 0.6:
            return near
        return replace(
            near,
            select=(Term(key="disk", values=("ssd",)),) if rng.random() < 0.5 else (),
            regions=("eu",) if rng.random() < 0.3 else (),
            spot=bool(rng.random() < 0.5),
            tolerations=(Toleration(key="owner"),) if rng.random() < 0.3 else (),
        )

    def team(self, name: str) -> TeamSpec:
        rng, figures = self.rng, {}
        for figure, most in (("quota", 7), ("limit", 9), ("borrow", 5)):
            models = [m for m in ("*", "A", "B") if rng.random() < (0.35 if m == "*" else 0.1)]
            figures[figure] = tuple((m, int(rng.integers(0, most)) * 500) for m in models)
        if rng.random() < 0.2:
            figures["lend"] = (("*", 0),)
        return TeamSpec(name=name, parent=TEAMS[name], **figures)

    def job(self, name: str) -> JobRequest:
        rng = self.rng
        workers = int(rng.integers(0, 7))
        models = rng.choice(MODELS, int(rng.integers(1, 3)), replace=False) if rng.random() < 0.4 else ()
        return JobRequest(
            job=name,
            team=str(rng.choice([*TEAMS, "who"], p=[0.23, 0.23, 0.26, 0.26, 0.02])),
            submitted_ns=int(rng.integers(0, 100)) * SECOND,
            priority=int(rng.choice([0, 0, 5])),
            head=Shape(milli_gpu=int(rng.choice([0, 0, 500])), milli_cpu=int(rng.choice([0, 1000]))),
            worker=Shape(
                milli_gpu=int(rng.choice([0, 300, 600, 1000, 1000, 2000])),
                gpu_mib=int(rng.choice([0, 0, 9000])),
                milli_cpu=int(rng.choice([0, 500, 3000])),
            ),
            workers=workers,
            min_workers=int(rng.integers(0, workers + 1)),
            gpu_models=tuple(map(str, models)),
            constraints=self.constraints(),
        )

    def snapshot(
        self,
        *changes: Change,
        row: int = -1,
    ) -> Snapshot:
        """Made anew from specs, requests and leases, with changes to those."""
        jobs, teams, gone = list(self.jobs), dict(self.teams), set()
        for change in changes:
            match change:
                case FewerWorkers(n):
                    jobs[row] = replace(jobs[row], workers=n, min_workers=n)
                case OtherModel(model):
                    models = () if model == "*" else (*jobs[row].gpu_models, model)
                    jobs[row] = replace(jobs[row], gpu_models=models)
                case Relax() | Wider() | Closer():
                    jobs[row] = replace(jobs[row], constraints=_without(jobs[row].constraints, change))
                case Together(raises):
                    for one in raises:
                        _raise(teams, one)
                case RaiseLimit() | RaiseQuota():
                    _raise(teams, change)
                case Ends(leases):
                    gone |= set(leases)
        ledger = Ledger()
        for spec in self.nodes:
            step(ledger, NodeUp(spec))
        for team in teams.values():
            step(ledger, TeamSet(team))
        for lease in self.leases:
            step(ledger, LeaseGranted(lease))
        for lease in self.leases:
            if lease.lease in gone:
                step(ledger, LeaseReleased(lease.lease, lease.epoch))
        if self.down:
            step(ledger, NodeDown(self.down))
        check(ledger)
        return Snapshot(version=ledger.version, ledger=ledger, pending=Queue.of(jobs), device_rule=self.rule)

    def starts(self, row: int, *changes: Change, at: int | None = None) -> bool:
        snapshot = self.snapshot(*changes, row=row)
        return row in plan(snapshot, self.ruled(*changes), self.now if at is None else at).admitted

    def ruled(self, *changes: Change) -> Policy:
        """The policy with caps raised."""
        caps, power = dict(self.policy.power.caps), self.policy.power
        for change in changes:
            for one in change.raises if isinstance(change, Together) else (change,):
                if isinstance(one, RaiseCap):
                    assert one.level == "rack"
                    caps[one.domain] = caps.get(one.domain, caps.get("*", 0)) + one.watts
        return replace(self.policy, power=replace(power, caps=tuple(caps.items())))


def _without(asked: Constraints, change: Relax | Wider | Closer) -> Constraints:
    match change:
        case Wider("rack", "zone"):
            return replace(asked, required="zone")
        case Wider():
            return replace(asked, required="")
        case Closer(most, by):
            assert (by, asked.spread > 0) == (asked.spread_by, True)
            return replace(asked, spread=most)
        case Relax("label", "disk=ssd"):
            return replace(asked, select=())
        case Relax("region", region):
            return replace(asked, regions=("eu", region))
        case Relax("spot"):
            return replace(asked, spot=True)
        case Relax("taint", "owner=x:NoSchedule"):
            return replace(asked, tolerations=(Toleration(),))
    if change == Relax(ANYHOW):
        return Constraints(spot=True, tolerations=(Toleration(),))
    assert change == Relax(EVERYTHING), change
    return replace(asked, select=(), regions=(), spot=True, tolerations=(Toleration(),))


def _figure(spec: TeamSpec, name: str, model: str) -> int:
    said = dict(getattr(spec, name))
    if name == "quota" and model == "*" and said and "*" not in said:
        return sum(said.values())
    return int(said.get(model, 0))


def _raise(teams: dict[str, TeamSpec], change: Change) -> None:
    """As in a teams file: a quota and those above it, which must cover it."""
    if isinstance(change, RaiseCap):
        return
    assert isinstance(change, RaiseLimit | RaiseQuota)
    model = change.gpu_model

    def put(name: str, figure: str, amount: int) -> None:
        said = dict(getattr(teams[name], figure))
        if figure == "quota" and said:
            said.setdefault("*", _figure(teams[name], "quota", "*"))
        if figure == "quota" and not said and model != "*":
            said["*"] = 0
        said[model] = amount
        teams[name] = replace(teams[name], **{figure: tuple(said.items())})

    if isinstance(change, RaiseLimit):
        assert model in dict(teams[change.team].limit), "only what is bounded can be raised"
        put(change.team, "limit", _figure(teams[change.team], "limit", model) + change.milli)
        return
    put(change.team, "quota", _figure(teams[change.team], "quota", model) + change.milli)
    above = TEAMS[change.team]
    if above:
        children = sum(_figure(spec, "quota", model) for spec in teams.values() if TEAMS[spec.name] == above)
        put(above, "quota", max(children, _figure(teams[above], "quota", model)))


def lesser(change: Change) -> Sequence[Change]:
    """The same kind of change, a little smaller: in every way there is."""
    match change:
        case FewerWorkers(n):
            return (FewerWorkers(n + 1),)
        case RaiseLimit() | RaiseQuota():
            return (replace(change, milli=change.milli - 1),)
        case Together(raises):
            return [Together((*raises[:i], *lesser(raises[i]), *raises[i + 1 :])) for i in range(len(raises))]
        case RaiseCap(level, domain, watts):
            return (RaiseCap(level, domain, watts - 1),)
        case Wider("rack", ""):
            return (Wider("rack", "zone"),)
        case Closer(most, by):
            return (Closer(most - 1, by),)
        case Ends(leases):
            return [Ends(tuple(x for x in leases if x != y), ()) for y in leases if len(leases) > 1]
        case Relax(kind) if kind in (EVERYTHING, ANYHOW):
            return (Relax("label", "disk=ssd"), Relax("spot"))
    return ()


def refused(world: World, change: Change) -> bool:
    """Whether it leaves a quota above its limit, which no teams file may say."""
    if not isinstance(change, Together):
        return False
    teams = dict(world.teams)
    for one in change.raises:
        _raise(teams, one)
    return any(
        _figure(spec, "quota", model) > cap
        for one in change.raises
        if isinstance(one, RaiseQuota)
        for spec in (teams[one.team], teams.get(TEAMS[one.team], teams[one.team]))
        for model, cap in spec.limit
        if model == one.gpu_model
    )


def explained(world: World) -> list[tuple[int, Explanation]]:
    snapshot = world.snapshot()
    made = plan(snapshot, world.policy, world.now)
    for row in made.admitted.tolist():
        with pytest.raises(ValueError, match="starts now"):
            explain(snapshot, world.policy, world.now, row, world.ends)
    before = image(snapshot.ledger), _columns(snapshot.pending)
    found = []
    for row, reason in zip(made.deferred.tolist(), made.reasons, strict=True):
        one = explain(snapshot, world.policy, world.now, row, world.ends)
        assert one.reason == reason
        assert one == explain(world.snapshot(), world.policy, world.now, row, world.ends), (
            "the same input, the same answer"
        )
        found.append((row, one))
    assert (image(snapshot.ledger), _columns(snapshot.pending)) == before, "a snapshot stays as it was"
    return found


def _columns(queue: Queue) -> list[object]:
    values = (getattr(queue, name) for name in Queue.__slots__)
    return [v.tolist() if isinstance(v, np.ndarray) else v for v in values]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_every_suggestion_starts_the_job_and_one_less_does_not(seed: int) -> None:
    world = World(seed)
    for row, found in explained(world):
        event(found.reason.code)
        for change in found.suggestions:
            event(type(change).__name__)
            assert world.starts(row, change), (found.job, change)
            for less in lesser(change):
                assert refused(world, less) or not world.starts(row, less), (found.job, change, less)
        if found.reason.code is ReasonCode.TEAM_UNKNOWN:
            assert found.suggestions == ()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_the_earliest_time_is_the_first_known_end_that_starts_the_job(seed: int) -> None:
    world = World(seed)
    held = {lease.lease for lease in world.leases}
    for row, found in explained(world):
        times = sorted({max(at, world.now) for name, at in world.ends.items() if name in held})
        starts = [at for at in times if world.starts(row, _ended(world, at), at=at)]
        event("known" if starts else "not known")
        assert found.earliest_ns == (
            starts[0] if starts and found.reason.code is not ReasonCode.TEAM_UNKNOWN else None
        )


def _ended(world: World, at: int) -> Ends:
    return Ends(tuple(name for name, end in world.ends.items() if max(end, world.now) <= at), ())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_what_could_be_suggested_is(seed: int) -> None:
    """Nothing that is small and would do is left unsaid: a smaller gang, another model, the end of one lease."""
    world = World(seed)
    for row, found in explained(world):
        if found.reason.code is ReasonCode.TEAM_UNKNOWN:
            continue
        request, kinds = world.jobs[row], {type(change) for change in found.suggestions}
        if FewerWorkers not in kinds and request.min_workers > 1 and not request.worker.empty:
            assert not world.starts(row, FewerWorkers(1))
        if request.constraints.required and not any(isinstance(c, Wider) for c in found.suggestions):
            assert not world.starts(row, Wider(request.constraints.required))
        most, by = request.min_workers, request.constraints.spread_by
        if 0 < request.constraints.spread < most and Closer not in kinds and not request.worker.empty:
            assert not world.starts(row, Closer(most, by))
        if not kinds & {RaiseCap, Together}:
            for domain in {"z0/r0", "z0/r1", "z1/r0", "z1/r1"} if world.policy.power.caps else ():
                if {domain, "*"} & set(dict(world.policy.power.caps)):
                    assert not world.starts(row, RaiseCap("rack", domain, 10**4))
        for model in {node.gpu_model for node in world.nodes if node.devices and node.name != world.down}:
            if request.gpu_models and model not in request.gpu_models:
                assert (OtherModel(model) in found.suggestions) == world.starts(row, OtherModel(model))
        single = any(isinstance(c, Ends) and len(c.leases) == 1 for c in found.suggestions)
        assert single == any(world.starts(row, Ends((lease.lease,), ())) for lease in world.leases)
