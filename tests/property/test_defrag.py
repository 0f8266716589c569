"""S4: defragmentation ahead of need: against a plain reference, and what its moves promise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.kernels import placing_reference as reference
from moorage.kernels.placing_scores import Scoring
from moorage.scheduling.columns import class_columns, node_columns
from moorage.scheduling.defrag import Budget, Move, defragment
from moorage.scheduling.ledger import (
    LeaseGranted,
    LeaseReleased,
    Ledger,
    LedgerError,
    NodeDown,
    NodeUp,
    TeamSet,
    step,
)
from moorage.scheduling.model import (
    DeviceRule,
    JobRequest,
    Lease,
    NodeSpec,
    Role,
    Shape,
    Snapshot,
    TaskPlacement,
    TeamSpec,
    unmask,
)
from moorage.scheduling.packing.named import scoring
from moorage.scheduling.packing.values import SCALE
from moorage.scheduling.queue import Queue
from moorage.scheduling.running import RunningJobs
from moorage.scheduling.validate import check

SIZES = (200, 300, 500, 700, 1000, 2000)
MIX = tuple(
    JobRequest(job=f"mix{i}", team="t", submitted_ns=0, worker=Shape(milli_gpu=m), workers=99, min_workers=99)
    for i, m in enumerate((500, 1000))
)
"""What the pool expects: the potential prices by it."""


def job(name: str, milli: int, cpu: int = 0, models: tuple[str, ...] = (), workers: int = 1) -> JobRequest:
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


def pool(*models: str, limit: int | None = None) -> Ledger:
    ledger = Ledger()
    step(ledger, TeamSet(TeamSpec(name="t", limit=() if limit is None else (("A", limit),))))
    for n, model in enumerate(models):
        spec = NodeSpec(name=f"n{n}", gpu_model=model, devices=2, device_mib=8000, milli_cpu=9000, mib=64_000)
        step(ledger, NodeUp(spec))
    return ledger


def grant(ledger: Ledger, request: JobRequest, *places: tuple[str, tuple[int, ...]]) -> None:
    tasks = tuple(
        TaskPlacement(
            role=Role.WORKER,
            index=i,
            node=node,
            devices=devices,
            milli_gpu=request.worker.milli_gpu,
            gpu_mib=min(request.worker.milli_gpu, 1000) * 8,
            milli_cpu=request.worker.milli_cpu,
            mib=request.worker.mib,
        )
        for i, (node, devices) in enumerate(places)
    )
    held = Lease(lease=request.job, job=request.job, team="t", epoch=ledger.last_epoch + 1, tasks=tasks)
    step(ledger, LeaseGranted(held))


def snapshot(
    ledger: Ledger,
    held: dict[str, JobRequest],
    movable: int = 1,
    rule: DeviceRule = DeviceRule.FREE,
    by: str = "potential",
) -> Snapshot:
    running, pending = RunningJobs.of(ledger, held), Queue.of(MIX)
    classes = (*running.classes, *pending.classes)
    return Snapshot(
        version=ledger.version,
        ledger=ledger,
        pending=pending,
        running=replace(running, movable=np.full(len(held), movable)),
        device_rule=rule,
        scoring=scoring(by, ledger, classes, np.repeat([1, 99], [len(running.classes), len(MIX)])),
    )


def carry_out(ledger: Ledger, held: dict[str, JobRequest], moves: tuple[Move, ...]) -> None:
    """Each new place is taken before the old one is left: the ledger says whether that fits."""
    for move in moves:
        before, request = ledger.leases[move.lease], held[move.lease]
        ahead = ledger.copy()
        grant(ahead, replace(request, job="ahead"), (move.node, move.devices))
        step(ledger, LeaseReleased(move.lease, before.epoch))
        grant(ledger, request, (move.node, move.devices))
        assert ledger.leases[move.lease].tasks[0].gpu_mib == move.gpu_mib
        check(ledger)


def stage_of(ledger: Ledger, rule: Scoring) -> int:
    return sum(int(ledger.milli_free.sum()) <= int(limit) for limit in rule.stages)


def potential(ledger: Ledger, rule: Scoring, stage: int) -> int:
    """Of all nodes, in the units of the tables. A move leaves as much free as before, so the stage stays."""
    nodes = node_columns(ledger)
    return sum(
        reference._potential(rule, stage, reference._Node.of(nodes, n)) for n in range(len(nodes.model))
    )


def best_by_hand(shot: Snapshot, ledger: Ledger, gone: set[str]) -> tuple[int, str, int, int]:
    """(gain, lease, node, mask) of the best single move: each job to each other node, one after another."""
    running, rule = shot.running, shot.scoring
    assert running is not None and rule is not None and running.movable is not None
    found, stage = (0, "", -1, 0), stage_of(ledger, rule)
    raylet = shot.device_rule is DeviceRule.RAYLET
    for v, name in enumerate(running.leases):
        if name in gone or not running.movable[v]:
            continue
        lease = ledger.leases[name]
        here = ledger.node_row[lease.tasks[0].node]
        c = int(running.task_class[int(running.first[v])])
        options = []
        for to in range(len(ledger.up)):
            other = running.movable[v] == 1 and ledger.model[to] != ledger.model[here]
            if to == here or other:
                continue
            classes = class_columns(ledger, running.classes)
            only = np.zeros_like(classes.allowed)
            only[:, to] = classes.allowed[:, to]
            nodes = node_columns(ledger)
            node, mask = reference.find(nodes, classes._replace(allowed=only), rule, c, -1, raylet)
            if node < 0:
                continue
            after = ledger.copy()
            request = job("x", running.classes[c].shape.milli_gpu, running.classes[c].shape.milli_cpu)
            grant(after, request, (after.node_names[to], unmask(mask)))
            cost = potential(ledger, rule, stage) - potential(after, rule, stage)
            options.append((cost, int(rule.tie[to]), to, mask))
        if not options:
            continue
        cost, _, to, mask = min(options)
        left = ledger.copy()
        step(left, LeaseReleased(name, lease.epoch))
        gain = potential(left, rule, stage) - potential(ledger, rule, stage) - cost
        if gain > found[0]:
            found = (gain, name, to, mask)
    return found


@st.composite
def pools(draw: st.DrawFn) -> tuple[Ledger, dict[str, JobRequest]]:
    models = draw(st.lists(st.sampled_from("AAB"), min_size=2, max_size=4))
    ledger, held = pool(*models), {}
    for i in range(draw(st.integers(1, 8))):
        models_of = draw(st.sampled_from(((), ("A",))))
        request = job(
            f"j{i}", draw(st.sampled_from(SIZES)), draw(st.sampled_from((0, 1000, 3000))), models_of
        )
        node = draw(st.integers(0, len(models) - 1))
        if models_of and models[node] != "A":
            continue
        devices = (0, 1) if request.worker.milli_gpu == 2000 else (draw(st.integers(0, 1)),)
        try:
            grant(ledger, request, (f"n{node}", devices))
        except LedgerError:
            continue
        held[request.job] = request
    return ledger, held


@settings(max_examples=60, deadline=None)
@given(case=pools(), movable=st.integers(1, 2), rule=st.sampled_from(DeviceRule))
def test_each_move_is_the_best_by_hand(
    case: tuple[Ledger, dict[str, JobRequest]], movable: int, rule: DeviceRule
) -> None:
    ledger, held = case
    shot = snapshot(ledger, held, movable, rule)
    made = defragment(shot, Budget(tasks=3, least_gain=0))
    gone: set[str] = set()
    now = ledger.copy()
    for move in made:
        gain, name, to, mask = best_by_hand(shot, now, gone)
        assert (move.gain, move.lease) == (gain // SCALE, name)
        assert (move.node, move.devices) == (f"n{to}", unmask(mask))
        carry_out(now, held, (move,))
        gone.add(name)
    if len(made) < 3:
        assert best_by_hand(shot, now, gone)[1] == "", "a move with a gain was left out"


@settings(max_examples=100, deadline=None)
@given(
    case=pools(),
    tasks=st.integers(0, 4),
    milli=st.integers(0, 3000),
    least=st.sampled_from((0, 20, 300)),
    by=st.sampled_from(("potential", "best-fit")),
)
def test_moves_keep_their_promises(
    case: tuple[Ledger, dict[str, JobRequest]], tasks: int, milli: int, least: int, by: str
) -> None:
    ledger, held = case
    shot, before = snapshot(ledger, held, by=by), ledger.copy()
    budget = Budget(tasks=tasks, milli_gpu=milli, least_gain=least)
    moves = defragment(shot, budget)
    assert moves == defragment(shot, budget)
    for name in Ledger.__slots__:
        assert np.array_equal(getattr(ledger, name), getattr(before, name)), name
    assert len(moves) <= tasks and len({m.lease for m in moves}) == len(moves)
    assert sum(held[m.lease].worker.milli_gpu for m in moves) <= milli
    assert all(m.gain >= least for m in moves)
    rule = snapshot(ledger, held).scoring
    assert rule is not None
    stage = stage_of(ledger, rule)
    was = potential(ledger, rule, stage)
    models = {n: ledger.models[int(ledger.model[r])] for n, r in ledger.node_row.items()}
    for move in moves:
        assert models[move.node] == models[ledger.leases[move.lease].tasks[0].node]
    used = ledger.used.copy()
    carry_out(ledger, held, moves)
    assert np.array_equal(ledger.used, used), "no team holds more or less of any model"
    if by == "potential":
        assert potential(ledger, rule, stage) - was >= sum(m.gain for m in moves) * SCALE


def split() -> tuple[Ledger, dict[str, JobRequest]]:
    """Half a device of each of two nodes: together they leave a whole GPU more."""
    ledger, held = pool("A", "A"), {}
    for name, milli, node in (("a", 500, "n0"), ("b", 500, "n1")):
        held[name] = job(name, milli)
        grant(ledger, held[name], (node, (0,)))
    return ledger, held


def test_two_shares_come_together() -> None:
    ledger, held = split()
    [move] = defragment(snapshot(ledger, held), Budget(tasks=5))
    assert (move.lease, move.node, move.devices) in {("a", "n1", (0,)), ("b", "n0", (0,))}
    carry_out(ledger, held, (move,))
    assert (ledger.milli_free == 1000).sum() == 3
    assert defragment(snapshot(ledger, held), Budget(tasks=5)) == (), "and then there is nothing left to do"


@pytest.mark.parametrize(
    "budget",
    [Budget(tasks=0), Budget(tasks=5, milli_gpu=499), Budget(tasks=5, least_gain=2000)],
    ids=["tasks", "milli", "gain"],
)
def test_no_move_beyond_the_budget(budget: Budget) -> None:
    assert defragment(snapshot(*split()), budget) == ()


def test_all_moves_together_are_within_the_budget() -> None:
    ledger, held = pool("A", "A", "A", "A"), {}
    for n in range(4):
        held[f"j{n}"] = job(f"j{n}", 500)
        grant(ledger, held[f"j{n}"], (f"n{n}", (0,)))
    shot = snapshot(ledger, held)
    for milli, moves in ((1000, 2), (999, 1), (500, 1)):
        assert len(defragment(shot, Budget(tasks=5, milli_gpu=milli))) == moves


def test_who_may_not_move_stays() -> None:
    ledger, held = split()
    assert defragment(snapshot(ledger, held, movable=0), Budget(tasks=5)) == ()
    shot = snapshot(ledger, held)
    assert shot.running is not None
    young = replace(shot, running=replace(shot.running, ran_ns=np.array([5, 5])))
    assert len(defragment(young, Budget(tasks=5, least_run_ns=5))) == 1
    assert defragment(young, Budget(tasks=5, least_run_ns=6)) == ()
    assert defragment(replace(shot, running=None), Budget(tasks=5)) == ()


def test_gangs_move_where_the_budget_is_for_them_and_they_are_worth_their_restart() -> None:
    ledger = pool("A", "A")
    held = {"gang": job("gang", 300, workers=2)}
    grant(ledger, held["gang"], ("n0", (0,)), ("n1", (0,)))
    shot = snapshot(ledger, held)
    assert defragment(shot, Budget(tasks=5)) == ()
    [move] = defragment(shot, Budget(tasks=5, gangs=True))
    assert (move.task, move.node) in {(0, "n1"), (1, "n0")}
    assert defragment(shot, Budget(tasks=5, gangs=True, milli_gpu=599)) == (), "all of it restarts"
    for each, moves in ((move.gain // 2, 1), (move.gain // 2 + 1, 0)):
        assert len(defragment(shot, Budget(tasks=5, gangs=True, least_gain=each))) == moves, "for two tasks"


def test_nobody_moves_to_a_node_that_is_down() -> None:
    ledger, held = split()
    step(ledger, NodeDown("n1"))
    moves = defragment(snapshot(ledger, held), Budget(tasks=5))
    assert all(m.node != "n1" for m in moves)


def test_another_model_only_where_nothing_counts_models() -> None:
    for limit, movable, moved in ((None, 1, 0), (None, 2, 1), (9000, 2, 0)):
        ledger, held = pool("A", "B", limit=limit), {}
        for name, milli, node in (("a", 500, "n0"), ("b", 500, "n1")):
            held[name] = job(name, milli)
            grant(ledger, held[name], (node, (0,)))
        assert len(defragment(snapshot(ledger, held, movable), Budget(tasks=5))) == moved
