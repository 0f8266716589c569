"""S4, S5, S7: defragmentation of gangs, and under domains, spread and power caps: no rule is broken at any step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moving_world import World, grant, job, pool

from moorage.scheduling.constraints import Constraints, Power
from moorage.scheduling.defrag import Budget, Move, defragment
from moorage.scheduling.ledger import LeaseReleased, step
from moorage.scheduling.model import DeviceRule, Policy
from moorage.scheduling.packing.named import scoring

RULES = (
    Constraints(),
    Constraints(required="rack"),
    Constraints(preferred="rack"),
    Constraints(spread=1),
    Constraints(spread=1, spread_by="rack"),
)
MIX = tuple(job(f"mix{i}", milli, 99) for i, milli in enumerate((500, 1000)))


def find(world: World, budget: Budget) -> tuple[Move, ...]:
    shot = world.see(*MIX)
    assert shot.running is not None
    classes = (*shot.running.classes, *shot.pending.classes)
    many = np.repeat([1, 99], [len(shot.running.classes), len(shot.pending.classes)])
    shot = replace(shot, scoring=scoring("potential", world.ledger, classes, many))
    return defragment(shot, budget, world.policy)


def carry_out(world: World, moves: tuple[Move, ...]) -> None:
    """One after another: each new place is taken before the old one is left, and all rules hold then and after."""
    over = world.over()
    for move in moves:
        before = world.ledger.leases[move.lease]
        new = replace(before.tasks[move.task], node=move.node, devices=move.devices, gpu_mib=move.gpu_mib)
        ahead = World(world.ledger.copy(), {}, world.policy)
        grant(ahead.ledger, job("ahead", new.milli_gpu), (new,))
        ahead.look(over)
        step(world.ledger, LeaseReleased(move.lease, before.epoch))
        tasks = (*before.tasks[: move.task], new, *before.tasks[move.task + 1 :])
        grant(world.ledger, world.held[move.lease], tasks)
        world.look(over)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    racks = draw(st.lists(st.sampled_from(("r1", "r1", "r2", "-")), min_size=2, max_size=5))
    caps = draw(st.sampled_from(((), (("*", 300),), (("r1", 200), ("r2", 200)))))
    policy = Policy(power=Power(watts=(("*", 100),), caps=caps))
    world = World(pool(*(("A", rack) for rack in racks)), {}, policy, draw(st.sampled_from(DeviceRule)))
    for i in range(8):
        milli, workers = draw(st.sampled_from((200, 300, 500, 500, 1000))), draw(st.integers(1, 2))
        head = draw(st.sampled_from((0, 0, 200)))
        world.start(job(f"j{i}", milli, workers, head, rule=draw(st.sampled_from(RULES))))
    for name in (
        draw(st.sets(st.sampled_from(sorted(world.held)), min_size=1, max_size=4)) if world.held else ()
    ):
        step(world.ledger, LeaseReleased(name, world.ledger.leases[name].epoch))
        del world.held[name]
    return world


@settings(max_examples=150, deadline=None)
@given(world=worlds(), tasks=st.integers(1, 4), gangs=st.booleans(), milli=st.sampled_from((1000, 5000)))
def test_no_move_breaks_a_rule(world: World, tasks: int, gangs: bool, milli: int) -> None:
    budget = Budget(tasks=tasks, gangs=gangs, milli_gpu=milli)
    moves = find(world, budget)
    assert moves == find(world, budget) and len(moves) <= tasks
    assert len({(move.lease, move.task) for move in moves}) == len(moves)
    restarted = {move.lease for move in moves}
    assert gangs or all(len(world.ledger.leases[name].tasks) == 1 for name in restarted)
    assert sum(world.ledger.leases[name].milli_gpu for name in restarted) <= milli
    carry_out(world, moves)


@pytest.mark.parametrize(
    ("cap", "moves"), [((), 1), ((("r1", 100), ("r2", 100)), 1), ((("r1", 99), ("r2", 99)), 1)]
)
def test_shares_come_together_on_a_device_in_use_whatever_the_cap(
    cap: tuple[tuple[str, int], ...], moves: int
) -> None:
    world = World(pool(("A", "r1"), ("A", "r2")), {}, Policy(power=Power(watts=(("*", 100),), caps=cap)))
    for n in range(2):
        world.hold(job(f"j{n}", 500), f"n{n}/0")
    found = find(world, Budget(tasks=4))
    assert len(found) == moves
    carry_out(world, found)


@pytest.mark.parametrize(
    ("rule", "racks", "moves"),
    [
        (RULES[0], "r1 r2", 1),
        (Constraints(required="zone"), "r1 r2", 1),
        (Constraints(required="rack"), "r1 r1", 1),
        (Constraints(spread=2), "r1 r1", 1),
        (Constraints(spread=1), "r1 r1", 0),
        (Constraints(spread=1, spread_by="rack"), "r1 r2", 0),
    ],
    ids=str,
)
def test_two_workers_come_together_where_their_gangs_rule_allows(
    rule: Constraints, racks: str, moves: int
) -> None:
    world = World(pool(*(("A", rack) for rack in racks.split())), {}, Policy())
    world.hold(job("gang", 500, 2, rule=rule), "n0/0 n1/0")
    found = find(world, Budget(tasks=4, gangs=True, least_gain=1))
    assert len(found) == moves
    carry_out(world, found)


@pytest.mark.parametrize("rule", [Constraints(required="rack"), Constraints(preferred="rack")], ids=str)
def test_nobody_leaves_the_domain_that_the_gang_is_in(rule: Constraints) -> None:
    """One of two workers could join a share in the other rack; the other rack's share may not join them either."""
    world = World(pool(("A", "r1"), ("A", "r1"), ("A", "r2"), devices=1), {}, Policy())
    world.hold(job("gang", 600, 2, rule=rule), "n0/0 n1/0")
    world.hold(job("far", 400), "n2/0")
    [move] = find(world, Budget(tasks=4, gangs=True, least_gain=1))
    assert move.lease == "far"
