"""S4: jobs moved aside make a node for a task of several devices, and nothing is lost or held twice on the way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moving_world import World, pool
from moving_world import job as request

from moorage.scheduling.ledger import Ledger
from moorage.scheduling.model import PLANNED, JobRequest, Policy


def job(name: str, gpus: int) -> JobRequest:
    return request(name, gpus * 1000)


def world(nodes: int, moves: int = 8) -> World:
    """Nodes of four devices. Nobody may be pushed out: only moved."""
    return World(pool(*[("A", "-")] * nodes, devices=4), {}, Policy(moves=moves))


def halves() -> World:
    """Two nodes, half of each is held: four devices are free, on no node together."""
    one = world(2)
    one.hold(job("a", 2), "n0/01")
    one.hold(job("b", 2), "n1/13")
    return one


def test_one_job_moves_and_the_large_task_gets_its_node() -> None:
    one = halves()
    decided = one.plan(job("big", 4))
    assert decided.preempted == ()
    assert one.went(decided) == ["a.0 n1/02"]
    assert decided.task_node.tolist() == [0] and decided.task_devices.tolist() == [0b1111]
    one.apply(decided)


@pytest.mark.parametrize(("movable", "moves"), [(False, 8), (True, 0)])
def test_nobody_moves_who_may_not_or_beyond_the_budget(movable: bool, moves: int) -> None:
    one = halves()
    one.movable = int(movable)
    decided = one.plan(job("big", 4), policy=Policy(moves=moves))
    assert (decided.moved, decided.admitted.tolist(), decided.deferred.tolist()) == ((), [], [0])


def test_no_move_where_what_is_free_is_not_enough() -> None:
    one = halves()
    one.hold(job("c", 1), "n0/2")
    decided = one.plan(job("big", 4))
    assert decided.moved == () and decided.admitted.tolist() == []


def test_the_smaller_of_two_residents_moves_when_that_is_enough() -> None:
    one = world(2)
    for held, places in ((job("one", 1), "n0/0"), (job("two", 2), "n0/12"), (job("three", 3), "n1/012")):
        one.hold(held, places)
    decided = one.plan(job("pair", 2))
    assert decided.moved == ("one",)
    assert decided.task_node.tolist() == [0]
    one.apply(decided)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), nodes=st.integers(2, 5), moves=st.integers(0, 4))
def test_moves_keep_every_lease_and_stay_in_budget(data: st.DataObject, nodes: int, moves: int) -> None:
    one = world(nodes, moves)
    for n in range(nodes):
        free = "0123"
        while free and data.draw(st.booleans()):
            size = data.draw(st.integers(1, len(free)))
            one.hold(job(f"j{len(one.held)}", size), f"n{n}/{free[:size]}")
            free = free[size:]
    waits = tuple(job(f"w{i}", data.draw(st.integers(1, 4))) for i in range(data.draw(st.integers(1, 4))))
    before, held = one.ledger.copy(), set(one.held)
    still = one.plan(*waits, policy=replace(one.policy, moves=0))
    decided, again = one.plan(*waits), one.plan(*waits)
    assert len(decided.moved) <= moves
    assert len(set(decided.moved)) == len(decided.moved)
    for name in PLANNED:
        assert np.array_equal(getattr(decided, name), getattr(again, name)), name
    for name in Ledger.__slots__:
        assert np.array_equal(getattr(one.ledger, name), getattr(before, name)), name
    # A large job that starts by moves may take the room of several behind it, never of one before it.
    differ = sorted(set(decided.admitted.tolist()) ^ set(still.admitted.tolist()))
    assert not differ or differ[0] in decided.admitted
    one.apply(decided)
    assert held <= set(one.ledger.leases), "who was moved still runs"
