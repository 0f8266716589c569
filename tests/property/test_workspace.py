"""A kept workspace never changes a plan: through any history it is that of a fresh one, in every field."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.scheduling.ledger import (
    LeaseGranted,
    LeaseReleased,
    LeaseResized,
    Ledger,
    NodeDown,
    NodeUp,
    TeamSet,
    accepts,
    step,
)
from moorage.scheduling.model import (
    PLANNED,
    DeviceRule,
    JobRequest,
    Lease,
    NodeSpec,
    Plan,
    Policy,
    Shape,
    Snapshot,
    TaskPlacement,
    TeamSpec,
    unmask,
)
from moorage.scheduling.packing.named import RULES, scoring
from moorage.scheduling.planner import plan
from moorage.scheduling.queue import Queue
from moorage.scheduling.running import RunningJobs
from moorage.scheduling.workspace import Workspace

TEAMS = ("ops", "research")
MILLI = (0, 300, 500, 1000, 2000, 4000)


class World:
    """A small pool in which anything happens; every decision is made twice."""

    def __init__(self, seed: int, name: str, rule: DeviceRule) -> None:
        self.rng, self.rule, self.name = np.random.default_rng(seed), rule, name
        self.ledger, self.workspace, self.now = Ledger(), Workspace(), 0
        self.count, self.waiting = 0, list[JobRequest]()
        self.jobs: dict[str, JobRequest] = {}
        for team in TEAMS:
            step(self.ledger, TeamSet(TeamSpec(name=team, quota=(("*", 3000),))))
        for n in range(4):
            step(self.ledger, NodeUp(self.node(n)))
        self.scoring = None if name == "best-fit" else self.tables()

    def node(self, n: int) -> NodeSpec:
        devices = int(self.rng.integers(1, 5))
        model = ("A", "B")[n % 2]
        return NodeSpec(name=f"n{n}", gpu_model=model, devices=devices, device_mib=8000, milli_cpu=9000)

    def job(self) -> JobRequest:
        rng = self.rng
        self.count += 1
        workers = int(rng.integers(1, 4))
        return JobRequest(
            job=f"j{self.count}",
            team=TEAMS[int(rng.integers(0, 2))],
            submitted_ns=self.now,
            priority=int(rng.integers(0, 3)),
            worker=Shape(milli_gpu=int(rng.choice(MILLI)), milli_cpu=int(rng.choice([100, 4000]))),
            workers=workers,
            min_workers=int(rng.integers(1, workers + 1)),
            gpu_models=(("A",), ("A", "B"), ())[int(rng.integers(0, 3))],
            preemptible=bool(rng.random() < 0.7),
        )

    def tables(self):  # type: ignore[no-untyped-def]
        self.valued = self.ledger.lineage, self.ledger.layout
        classes = Queue.of([self.job() for _ in range(6)]).classes
        return scoring(self.name, self.ledger, classes, np.ones(len(classes), np.int64), 7)

    def something(self) -> None:
        """A node comes or goes, a lease ends, the ledger is another object, the rule has other tables."""
        rng, ledger = self.rng, self.ledger
        match int(rng.integers(0, 8)):
            case 0:
                spec = self.node(int(rng.integers(0, 6)))
                if accepts(ledger, spec):
                    step(ledger, NodeUp(spec))
            case 1:
                step(ledger, NodeDown(str(rng.choice(ledger.node_names))))
            case 2:
                self.ledger = ledger.copy()
            case 3 if self.scoring is not None:
                self.scoring = self.tables()
            case _:
                for name in [str(n) for n in rng.permutation(sorted(ledger.leases))[:2]]:
                    step(ledger, LeaseReleased(name, ledger.leases[name].epoch))
                    del self.jobs[name]

    def decide(self) -> tuple[Snapshot, Plan]:
        running = RunningJobs.of(self.ledger, self.jobs)
        movable = np.array([len(self.ledger.leases[n].tasks) == 1 for n in self.jobs], np.int64)
        snapshot = Snapshot(
            version=self.ledger.version,
            ledger=self.ledger,
            pending=Queue.of(self.waiting),
            device_rule=self.rule,
            running=replace(running, movable=movable) if self.rng.random() < 0.7 else None,
            scoring=self.scoring,
        )
        if self.scoring is not None and self.valued != (self.ledger.lineage, self.ledger.layout):
            self.scoring = self.tables()  # for the nodes as they are now
            snapshot = replace(snapshot, scoring=self.scoring)
        policy = Policy(hold_after_ns=5, moves=2)
        kept, fresh = plan(snapshot, policy, self.now, self.workspace), plan(snapshot, policy, self.now)
        for field in PLANNED:
            np.testing.assert_array_equal(getattr(kept, field), getattr(fresh, field), err_msg=field)
        return snapshot, kept

    def apply(self, snapshot: Snapshot, decided: Plan) -> None:
        """What the plan says, up to some point: an applier may die on the way."""
        ledger, made = self.ledger, list(decided.admissions(snapshot))
        left = [(name, ledger.leases[name]) for name in (*decided.preempted, *decided.moved)]
        for name, lease in left:
            step(ledger, LeaseReleased(name, lease.epoch))
        for name in decided.preempted:
            self.waiting.append(self.jobs.pop(name))
        for name, kept in zip(decided.shrunk, decided.shrunk_tasks.tolist(), strict=True):
            self.resize(name, kept)
        for name, more in list(decided.growth(snapshot)):
            self.resize(name, len(ledger.leases[name].tasks), more)
        for i, name in enumerate(decided.moved):
            task = replace(
                dict(left)[name].tasks[0],
                node=ledger.node_names[int(decided.moved_node[i])],
                devices=unmask(int(decided.moved_devices[i])),
            )
            self.grant(name, self.jobs[name], (task,))
        for request, tasks in made[: int(self.rng.integers(0, len(made) + 2))]:
            self.waiting.remove(request)
            self.grant(request.job, request, tasks)

    def resize(self, name: str, kept: int, more: tuple[TaskPlacement, ...] = ()) -> None:
        epoch, granted = self.ledger.leases[name].epoch, self.ledger.last_epoch + 1
        step(self.ledger, LeaseResized(name, epoch, granted, kept, more))

    def grant(self, name: str, request: JobRequest, tasks) -> None:  # type: ignore[no-untyped-def]
        epoch = self.ledger.last_epoch + 1
        step(
            self.ledger,
            LeaseGranted(Lease(lease=name, job=name, team=request.team, epoch=epoch, tasks=tasks)),
        )
        self.jobs[name] = request


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32), name=st.sampled_from(sorted(RULES)), rule=st.sampled_from(list(DeviceRule))
)
def test_a_kept_workspace_plans_as_a_fresh_one(seed: int, name: str, rule: DeviceRule) -> None:
    world = World(seed, name, rule)
    for _ in range(8):
        world.now += 3
        world.waiting += [world.job() for _ in range(int(world.rng.integers(0, 4)))]
        snapshot, decided = world.decide()
        if world.rng.random() < 0.8:  # else it is thrown away, as a what-if is
            world.apply(snapshot, decided)
        if world.rng.random() < 0.6:
            world.something()


@pytest.mark.parametrize("kept", [None, Workspace()])
def test_tables_that_do_not_reach_to_the_nodes_are_refused(kept: Workspace | None) -> None:
    world = World(3, "potential", DeviceRule.FREE)
    snapshot, _ = world.decide()
    for spec, said in (
        (NodeSpec(name="n0", gpu_model="A", devices=9), "up to 4 devices"),
        (NodeSpec(name="n0", gpu_model="C", devices=1), "for 3 GPU models"),
        (NodeSpec(name="n9", gpu_model="A", devices=1), "ranks 4 nodes, there are 5"),
    ):
        other = world.ledger.copy()
        step(other, NodeUp(spec))
        if kept is not None:
            plan(snapshot, Policy(), 0, kept)
        with pytest.raises(ValueError, match=said):
            plan(replace(snapshot, ledger=other, version=other.version), Policy(), 0, kept)


def test_classes_beyond_the_memory_for_scores_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moorage.scheduling.workspace.MOST_KEYS", 12)
    world = World(1, "best-fit", DeviceRule.FREE)
    most = 0
    for _ in range(12):
        world.now += 3
        world.waiting += [world.job() for _ in range(3)]
        world.apply(*world.decide())
        assert world.workspace._kept is not None
        most = max(most, len(world.workspace._kept.at))
        world.waiting.clear()
        for name in sorted(world.ledger.leases):
            step(world.ledger, LeaseReleased(name, world.ledger.leases[name].epoch))
        world.jobs.clear()
    assert most <= 12
