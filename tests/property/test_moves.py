"""S4: jobs moved aside make a node for a task of several devices, and nothing is lost or held twice on the way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.scheduling.ledger import LeaseGranted, LeaseReleased, Ledger, NodeUp, TeamSet, step
from moorage.scheduling.model import (
    PLANNED,
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
from moorage.scheduling.planner import plan
from moorage.scheduling.queue import Queue
from moorage.scheduling.running import RunningJobs
from moorage.scheduling.validate import check


def job(name: str, gpus: int) -> JobRequest:
    shape = Shape(milli_gpu=gpus * 1000)
    return JobRequest(
        job=name, team="t", submitted_ns=0, worker=shape, workers=1, min_workers=1, preemptible=True
    )


def lease(ledger: Ledger, name: str, node: str, devices: tuple[int, ...]) -> None:
    task = TaskPlacement(
        role=Role.WORKER,
        index=0,
        node=node,
        devices=devices,
        milli_gpu=1000 * len(devices),
        gpu_mib=0,
        milli_cpu=0,
        mib=0,
    )
    epoch = ledger.last_epoch + 1
    step(ledger, LeaseGranted(Lease(lease=name, job=name, team="t", epoch=epoch, tasks=(task,))))


def pool(nodes: int, devices: int = 4) -> Ledger:
    ledger = Ledger()
    step(ledger, TeamSet(TeamSpec(name="t")))
    for n in range(nodes):
        step(ledger, NodeUp(NodeSpec(name=f"n{n}", gpu_model="A", devices=devices)))
    return ledger


def decide(
    ledger: Ledger,
    held: dict[str, JobRequest],
    waits: tuple[JobRequest, ...],
    movable: bool = True,
    moves: int = 8,
) -> tuple[Snapshot, Plan]:
    running = RunningJobs.of(ledger, held)
    running = replace(
        running,
        movable=np.full(len(held), int(movable), np.int64),
        fixed=np.ones(len(held), np.int64),  # nobody may be pushed out: only moved
    )
    snapshot = Snapshot(
        version=ledger.version,
        ledger=ledger,
        pending=Queue.of(waits),
        running=running,
        device_rule=DeviceRule.FREE,
    )
    return snapshot, plan(snapshot, Policy(moves=moves), 0)


def apply(ledger: Ledger, snapshot: Snapshot, decided: Plan) -> None:
    """One event after another, in the plan's order: the ledger refuses what does not fit when its turn comes."""
    for name in decided.preempted:
        step(ledger, LeaseReleased(name, ledger.leases[name].epoch))
    moves = zip(decided.moved, decided.moved_after, decided.moved_node, decided.moved_devices, strict=True)
    left = [(name, int(after), int(node), int(mask)) for name, after, node, mask in moves]
    for at, (request, tasks) in enumerate(decided.admissions(snapshot)):
        while left and left[0][1] <= at:
            name, _, node, mask = left.pop(0)
            step(ledger, LeaseReleased(name, ledger.leases[name].epoch))
            lease(ledger, name, ledger.node_names[node], unmask(mask))
        epoch = ledger.last_epoch + 1
        step(
            ledger,
            LeaseGranted(Lease(lease=request.job, job=request.job, team="t", epoch=epoch, tasks=tasks)),
        )
    assert not left, "a move after the last admission helps nobody"
    check(ledger)


def halves() -> tuple[Ledger, dict[str, JobRequest]]:
    """Two nodes, half of each is held: four devices are free, on no node together."""
    ledger = pool(2)
    lease(ledger, "a", "n0", (0, 1))
    lease(ledger, "b", "n1", (1, 3))
    return ledger, {"a": job("a", 2), "b": job("b", 2)}


def test_one_job_moves_and_the_large_task_gets_its_node() -> None:
    ledger, held = halves()
    snapshot, decided = decide(ledger, held, (job("big", 4),))
    assert decided.preempted == ()
    assert decided.moved == ("a",)
    assert (decided.moved_node.tolist(), decided.moved_devices.tolist()) == ([1], [0b0101])
    assert decided.task_node.tolist() == [0] and decided.task_devices.tolist() == [0b1111]
    apply(ledger, snapshot, decided)


@pytest.mark.parametrize(("movable", "moves"), [(False, 8), (True, 0)])
def test_nobody_moves_who_may_not_or_beyond_the_budget(movable: bool, moves: int) -> None:
    ledger, held = halves()
    _, decided = decide(ledger, held, (job("big", 4),), movable, moves)
    assert (decided.moved, decided.admitted.tolist(), decided.deferred.tolist()) == ((), [], [0])


def test_no_move_where_what_is_free_is_not_enough() -> None:
    ledger, held = halves()
    lease(ledger, "c", "n0", (2,))
    held["c"] = job("c", 1)
    _, decided = decide(ledger, held, (job("big", 4),))
    assert decided.moved == () and decided.admitted.tolist() == []


def test_the_smaller_of_two_residents_moves_when_that_is_enough() -> None:
    ledger = pool(2)
    lease(ledger, "one", "n0", (0,))
    lease(ledger, "two", "n0", (1, 2))
    lease(ledger, "three", "n1", (0, 1, 2))
    held = {"one": job("one", 1), "two": job("two", 2), "three": job("three", 3)}
    snapshot, decided = decide(ledger, held, (job("pair", 2),))
    assert decided.moved == ("one",)
    assert decided.task_node.tolist() == [0]
    apply(ledger, snapshot, decided)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), nodes=st.integers(2, 5), moves=st.integers(0, 4))
def test_moves_keep_every_lease_and_stay_in_budget(data: st.DataObject, nodes: int, moves: int) -> None:
    ledger, held = pool(nodes), {}
    for n in range(nodes):
        free = [0, 1, 2, 3]
        while free and data.draw(st.booleans()):
            size = data.draw(st.integers(1, len(free)))
            name = f"j{len(held)}"
            lease(ledger, name, f"n{n}", tuple(free[:size]))
            held[name] = job(name, size)
            free = free[size:]
    waits = tuple(job(f"w{i}", data.draw(st.integers(1, 4))) for i in range(data.draw(st.integers(1, 4))))
    before = ledger.copy()
    snapshot, decided = decide(ledger, held, waits, moves=moves)
    assert len(decided.moved) <= moves
    assert len(set(decided.moved)) == len(decided.moved)
    _, again = decide(ledger, held, waits, moves=moves)
    for name in PLANNED:
        assert np.array_equal(getattr(decided, name), getattr(again, name)), name
    for name in Ledger.__slots__:
        assert np.array_equal(getattr(ledger, name), getattr(before, name)), name
    _, still = decide(ledger, held, waits, moves=0)
    # A large job that starts by moves may take the room of several behind it, never of one before it.
    differ = sorted(set(decided.admitted.tolist()) ^ set(still.admitted.tolist()))
    assert not differ or differ[0] in decided.admitted
    apply(ledger, snapshot, decided)
    assert set(held) <= set(ledger.leases), "who was moved still runs"
