"""S4: jobs moved aside for tasks of any size and for gangs, against every single move tried by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.kernels.placing_scores import Scoring
from moorage.scheduling.ledger import LeaseGranted, LeaseReleased, Ledger, LedgerError, NodeUp, TeamSet, step
from moorage.scheduling.model import (
    DeviceRule,
    JobRequest,
    Lease,
    NodeSpec,
    Plan,
    Policy,
    Role,
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
from moorage.scheduling.validate import check

SIZES = (250, 300, 500, 700, 1000, 2000)


def job(name: str, milli: int, *, workers: int = 1, cpu: int = 0, models: tuple[str, ...] = ()) -> JobRequest:
    return JobRequest(
        job=name,
        team="t",
        submitted_ns=0,
        worker=Shape(milli_gpu=milli, milli_cpu=cpu),
        workers=workers,
        min_workers=workers,
        gpu_models=models,
        preemptible=True,
    )


@dataclass
class World:
    """A pool, who runs in it, and a plan for who waits."""

    ledger: Ledger
    held: dict[str, JobRequest]

    @classmethod
    def of(cls, *models: str, devices: int = 2, cpu: int = 8000, limit: int | None = None) -> World:
        ledger = Ledger()
        bound = () if limit is None else (("*", limit),)
        step(ledger, TeamSet(TeamSpec(name="t", limit=bound)))
        for n, model in enumerate(models):
            spec = NodeSpec(name=f"n{n}", gpu_model=model, devices=devices, device_mib=8000, milli_cpu=cpu)
            step(ledger, NodeUp(spec))
        return cls(ledger, {})

    def hold(self, request: JobRequest, node: str, *devices: int) -> None:
        self.grant(self.ledger, request, node, devices)
        self.held[request.job] = request

    @staticmethod
    def grant(ledger: Ledger, request: JobRequest, node: str, devices: tuple[int, ...]) -> None:
        shape, mib = request.worker, int(ledger.device_mib[ledger.node_row[node]])
        task = TaskPlacement(
            role=Role.WORKER,
            index=0,
            node=node,
            devices=devices,
            milli_gpu=shape.milli_gpu,
            gpu_mib=min(shape.milli_gpu, 1000) * mib // 1000,
            milli_cpu=shape.milli_cpu,
            mib=shape.mib,
        )
        held = Lease(lease=request.job, job=request.job, team="t", epoch=ledger.last_epoch + 1, tasks=(task,))
        step(ledger, LeaseGranted(held))

    def plan(
        self, *waits: JobRequest, moves: int = 8, movable: int = 1, least: int = 0, rule: str = "best-fit"
    ) -> Plan:
        running = RunningJobs.of(self.ledger, self.held)
        count = len(self.held)
        running = replace(running, movable=np.full(count, movable), fixed=np.ones(count, np.int64))
        queue = Queue.of(waits)
        self.snapshot = Snapshot(
            version=self.ledger.version,
            ledger=self.ledger,
            pending=queue,
            running=running,
            device_rule=DeviceRule.FREE,
            scoring=self.scoring(rule, queue, running),
        )
        policy = Policy(moves=moves, move_for_all=True, move_least=least)
        return plan(self.snapshot, policy, 0)

    def scoring(self, rule: str, queue: Queue, running: RunningJobs) -> Scoring:
        classes = (*queue.classes, *running.classes)
        return scoring(rule, self.ledger, classes, np.ones(len(classes), np.int64))

    def apply(self, decided: Plan) -> None:
        """In the plan's order: the ledger refuses what does not fit when its turn comes."""
        left = list(range(len(decided.moved)))
        for at, (request, tasks) in enumerate(decided.admissions(self.snapshot)):
            while left and decided.moved_after[left[0]] <= at:
                self.move(decided, left.pop(0))
            epoch = self.ledger.last_epoch + 1
            held = Lease(lease=request.job, job=request.job, team="t", epoch=epoch, tasks=tasks)
            step(self.ledger, LeaseGranted(held))
        assert not left, "a move after the last admission helps nobody"
        check(self.ledger)

    def move(self, decided: Plan, at: int) -> None:
        name = decided.moved[at]
        before = self.ledger.leases[name]
        step(self.ledger, LeaseReleased(name, before.epoch))
        node = self.ledger.node_names[int(decided.moved_node[at])]
        self.grant(self.ledger, self.held[name], node, unmask(int(decided.moved_devices[at])))
        assert self.ledger.leases[name].tasks[0].gpu_mib == decided.moved_gpu_mib[at]


def fits(ledger: Ledger, request: JobRequest, only: str = "", but: str = "") -> bool:
    """By the ledger's own word, on any node or the one named."""
    for node in ledger.node_names:
        if node == but or (only and node != only):
            continue
        row = ledger.node_row[node]
        if request.gpu_models and ledger.models[int(ledger.model[row])] not in request.gpu_models:
            continue
        count = max(1, request.worker.milli_gpu // 1000)
        free = [d for d in range(int(ledger.devices[row])) if ledger.milli_free[row, d] == 1000]
        sets = [tuple(free[:count])] if request.worker.milli_gpu >= 1000 else [(d,) for d in range(2)]
        for devices in sets:
            try:
                World.grant(ledger.copy(), request, node, devices)
            except LedgerError:
                continue
            return True
    return False


def one_move_helps(world: World, request: JobRequest) -> bool:
    """Whether one running job could go to another node of its model so that the request fits where it was."""
    for name, moved in world.held.items():
        ledger = world.ledger.copy()
        lease = ledger.leases[name]
        node = lease.tasks[0].node
        step(ledger, LeaseReleased(name, lease.epoch))
        model = ledger.models[int(ledger.model[ledger.node_row[node]])]
        same = replace(moved, gpu_models=(model,))
        if fits(ledger, request, only=node) and fits(ledger, same, but=node):
            return True
    return False


@st.composite
def worlds(draw: st.DrawFn) -> tuple[World, JobRequest]:
    models = draw(st.lists(st.sampled_from("AB"), min_size=2, max_size=4))
    world = World.of(*models)
    for i in range(draw(st.integers(1, 9))):
        request = job(f"j{i}", draw(st.sampled_from(SIZES)), cpu=draw(st.sampled_from((0, 1000, 4000))))
        node = f"n{draw(st.integers(0, len(models) - 1))}"
        devices = (0, 1) if request.worker.milli_gpu == 2000 else (draw(st.integers(0, 1)),)
        try:
            world.hold(request, node, *devices)
        except LedgerError:
            continue
    models_of = draw(st.sampled_from(((), ("A",), ("B",))))
    return world, job("new", draw(st.sampled_from(SIZES)), cpu=1000, models=models_of)


@settings(max_examples=200, deadline=None)
@given(case=worlds(), rule=st.sampled_from(sorted(RULES)))
def test_one_move_is_found_where_there_is_one(case: tuple[World, JobRequest], rule: str) -> None:
    world, request = case
    at_once, helps = fits(world.ledger, request), one_move_helps(world, request)
    before = world.ledger.copy()
    decided = world.plan(request, moves=1, rule=rule)
    assert len(decided.admitted) == (at_once or helps)
    assert len(decided.moved) == (helps and not at_once)
    for name in Ledger.__slots__:
        assert np.array_equal(getattr(world.ledger, name), getattr(before, name)), name
    world.apply(decided)


@settings(max_examples=100, deadline=None)
@given(case=worlds(), gangs=st.lists(st.integers(1, 3), min_size=1, max_size=3), moves=st.integers(0, 4))
def test_gangs_start_whole_or_not_at_all(
    case: tuple[World, JobRequest], gangs: list[int], moves: int
) -> None:
    world, request = case
    waits = [replace(request, job=f"g{i}", workers=n, min_workers=n) for i, n in enumerate(gangs)]
    decided = world.plan(*waits, moves=moves, movable=2)
    assert len(decided.moved) <= moves and len(set(decided.moved)) == len(decided.moved)
    asked = [waits[row].workers for row in decided.admitted.tolist()]
    assert decided.workers.tolist() == asked and len(decided.task_node) == sum(asked)
    world.apply(decided)
    assert set(world.held) <= set(world.ledger.leases), "who was moved still runs"


def test_a_fraction_moves_so_that_another_fits() -> None:
    world = World.of("A", "A", devices=1)
    world.hold(job("a", 300), "n0", 0)
    world.hold(job("b", 700), "n1", 0)
    world.held.pop("b")  # stays
    decided = world.plan(job("whole", 1000))
    assert (decided.moved, decided.moved_node.tolist()) == (("a",), [1])
    assert decided.task_node.tolist() == [0]
    world.apply(decided)


def test_cpu_is_made_room_for_too() -> None:
    world = World.of("A", "A", cpu=4000)
    world.hold(job("a", 500, cpu=4000), "n0", 0)
    world.hold(job("b", 2000), "n1", 0, 1)
    assert world.plan(job("c", 500, cpu=1000)).moved == (), "nowhere to go"
    world = World.of("A", "A", cpu=4000)
    world.hold(job("a", 500, cpu=1000), "n0", 0)
    world.hold(job("b", 1000, cpu=2000), "n1", 0)
    world.held.pop("b")  # stays
    decided = world.plan(job("c", 1000, cpu=4000))
    assert decided.moved == ("a",) and decided.task_node.tolist() == [0]
    world.apply(decided)


@pytest.mark.parametrize(("movable", "limit", "moved"), [(1, None, ()), (2, None, ("a",)), (2, 100_000, ())])
def test_a_model_is_left_only_where_that_is_allowed_and_nothing_counts_models(
    movable: int, limit: int | None, moved: tuple[str, ...]
) -> None:
    world = World.of("A", "B", devices=1, limit=limit)
    world.hold(job("a", 1000), "n0", 0)
    assert world.plan(job("new", 1000, models=("A",)), movable=movable).moved == moved


def test_a_job_bound_to_its_model_stays() -> None:
    world = World.of("A", "B", devices=1)
    world.hold(job("a", 1000, models=("A",)), "n0", 0)
    assert world.plan(job("new", 1000, models=("A",)), movable=2).moved == ()


def test_a_gang_is_made_room_for_worker_by_worker() -> None:
    """Two nodes lack one device each; the third takes both who leave."""
    world = World.of("A", "A", "A", devices=4)
    for n in (0, 1):
        world.hold(job(f"j{n}", 1000), f"n{n}", 0)
    world.hold(job("j2", 2000), "n2", 0, 1)
    decided = world.plan(job("gang", 4000, workers=2))
    assert sorted(decided.moved) == ["j0", "j1"] and decided.moved_node.tolist() == [2, 2]
    assert sorted(decided.task_node.tolist()) == [0, 1]
    world.apply(decided)


def test_a_gang_that_does_not_fit_whole_moves_nobody() -> None:
    world = World.of("A", "A", "A", devices=4)
    for n in (0, 1):
        world.hold(job(f"j{n}", 1000), f"n{n}", 0)
    world.hold(job("j2", 3000), "n2", 0, 1, 2)
    decided = world.plan(job("gang", 4000, workers=2), job("last", 1000))
    assert decided.moved == () and decided.admitted.tolist() == [1]
    assert decided.task_node.tolist() == [2], "and all it had taken for trying is free again"


def test_small_gangs_are_not_worth_a_move_when_the_policy_says_so() -> None:
    world = World.of("A", "A", devices=1)
    world.hold(job("a", 300), "n0", 0)
    world.hold(job("b", 300), "n1", 0)
    assert world.plan(job("c", 800), least=1000).moved == ()
    assert len(world.plan(job("c", 800), least=800).moved) == 1
