"""S4, S5, S7: whom a plan moves when gangs may be moved, and under power caps: scenarios."""

from __future__ import annotations

from dataclasses import replace

import pytest
from moving_world import World, job, pool

from moorage.scheduling.constraints import Constraints, Power
from moorage.scheduling.model import DeviceRule, Policy

RACK = Constraints(required="rack")
ALL = Policy(moves=4, move_for_all=True, move_gangs=True)


def capped(*caps: tuple[str, int], gangs: bool = False) -> Policy:
    """Devices are rated for 100 W each."""
    return replace(ALL, move_gangs=gangs, power=Power(watts=(("*", 100),), caps=caps))


def world(policy: Policy, *racks: str, devices: int = 2, rule: DeviceRule = DeviceRule.FREE) -> World:
    return World(pool(*(("A", rack) for rack in racks), devices=devices), {}, policy, rule)


def test_of_a_gang_the_member_in_the_way_moves_and_the_others_stay() -> None:
    one = world(ALL, "r1", "r1", "r1")
    one.hold(job("gang", 1000, 2), "n0/0 n1/0")
    one.hold(job("fixed", 1000), "n2/0", stays=True)
    decided = one.plan(job("big", 2000))
    assert one.went(decided) in (["gang.0 n2/1"], ["gang.0 n1/1"])
    one.apply(decided)


@pytest.mark.parametrize(
    "policy",
    [replace(ALL, move_gangs=False), replace(ALL, moves=0), capped(("r1", 900))],
    ids=["no gangs", "nobody", "no gangs under a cap"],
)
def test_gangs_stay_unless_the_policy_moves_them(policy: Policy) -> None:
    one = world(policy, "r1", "r1", "r1")
    one.hold(job("gang", 1000, 2), "n0/0 n1/0")
    one.hold(job("fixed", 1000), "n2/0", stays=True)
    decided = one.plan(job("big", 2000))
    assert (decided.moved, len(decided.admitted)) == ((), 0)


def test_a_job_of_one_task_moves_before_a_gang_does() -> None:
    one = world(ALL, "r1", "r1", "r1")
    one.hold(job("gang", 500, 2), "n0/0 n1/0")
    one.hold(job("single", 1000), "n2/0")
    assert one.went(one.plan(job("big", 2000, rule=RACK)))[0].startswith("single.0 ")


def test_a_gang_that_must_be_in_one_rack_stays_in_it_or_goes_to_another_whole() -> None:
    """In its rack one device is left besides; so it goes to r2 with both tasks, though one alone was in the way."""
    one = world(ALL, "r1", "r1", "r2")
    one.hold(job("gang", 1000, 2, rule=RACK), "n0/0 n1/0")
    one.hold(job("fixed", 1000), "n1/1", stays=True)
    decided = one.plan(job("big", 2000))
    assert decided.task_node.tolist() == [2] and decided.moved == (), "there is a whole node"
    one.hold(job("other", 2000), "n2/01", stays=True)
    assert one.plan(job("big", 2000)).moved == (), "no rack has two devices left for the gang"
    one = world(ALL, "r1", "r1", "r2", "r2")
    one.hold(job("gang", 1000, 2, rule=RACK), "n0/0 n1/0")
    one.hold(job("fixed", 1000), "n1/1", stays=True)
    for n in (2, 3):
        one.hold(job(f"half{n}", 1000), f"n{n}/0", stays=True)
    decided = one.plan(job("big", 2000))
    assert sorted(one.went(decided)) == ["gang.0 n2/1", "gang.1 n3/1"] and decided.task_node.tolist() == [0]
    one.apply(decided)


def test_a_gang_stays_spread() -> None:
    """A worker goes to the node without one, not to its sibling's, where there is room too."""
    one = world(ALL, "r1", "r1", "r1")
    one.hold(job("gang", 1000, 2, rule=Constraints(spread=1)), "n0/0 n1/0")
    one.hold(job("fixed", 1000), "n2/0", stays=True)
    decided = one.plan(job("big", 2000))
    assert one.went(decided) in (["gang.0 n2/1"], ["gang.1 n2/1"])
    one.apply(decided)


def test_the_head_may_be_where_a_worker_is() -> None:
    """Spread counts workers: the head leaves for the node of one."""
    one = world(ALL, "r1", "r1")
    one.hold(job("gang", 1000, 1, head=1000, rule=Constraints(spread=1)), "n0/0 n1/0")
    decided = one.plan(job("big", 2000))
    assert one.went(decided) in (["gang.0 n1/1"], ["gang.1 n0/1"])
    one.apply(decided)


def test_a_bound_gang_is_made_room_for_by_another_rack() -> None:
    """Two racks of four; each holds one single. A gang of four within one rack sends one of them over."""
    one = world(ALL, "r1", "r1", "r2", "r2")
    one.hold(job("a", 1000), "n0/0")
    one.hold(job("b", 1000), "n2/0")
    decided = one.plan(job("gang", 1000, 4, rule=RACK))
    assert len(decided.admitted) == 1 and [name.split(".")[0] for name in one.went(decided)] == ["a"]
    one.apply(decided)
    assert one.plan(job("five", 1000, 5, rule=RACK)).moved == (), "no rack is so large"


def test_several_leave_where_one_is_not_enough() -> None:
    one = world(ALL, "r1", "r1", "r2", "r2")
    for i, place in enumerate(("n0/0", "n1/0", "n2/0")):
        one.hold(job(f"j{i}", 1000), place)
    decided = one.plan(job("gang", 1000, 4, rule=RACK))
    assert len(decided.admitted) == 1 and len(decided.moved) in (1, 2)
    one.apply(decided)
    one = world(replace(ALL, moves=1), "r1", "r1", "r2", "r2")
    for i, place in enumerate(("n0/0", "n1/0", "n2/0", "n3/0")):
        one.hold(job(f"j{i}", 1000), place)
    assert one.plan(job("gang", 1000, 4, rule=RACK)).moved == (), "two would have to"
    one.policy = ALL
    decided = one.plan(job("gang", 1000, 4, rule=RACK))
    assert len(decided.moved) == 2
    one.apply(decided)


def test_nobody_moves_into_a_rack_whose_cap_is_reached() -> None:
    """Enough devices are free in r2, but no watts: then nobody moves; with 100 W more one does."""
    for cap, moved in ((100, ()), (200, ("a",))):
        one = world(capped(("r2", cap)), "r1", "r2")
        one.hold(job("a", 1000), "n0/0")
        one.hold(job("b", 1000), "n1/0", stays=True)
        decided = one.plan(job("big", 2000))
        assert decided.moved == moved and len(decided.admitted) == len(moved)
        one.apply(decided)


def test_a_share_moves_onto_a_device_in_use_without_a_watt() -> None:
    one = world(capped(("*", 100)), "r1", "r2", devices=1)
    one.hold(job("a", 500), "n0/0")
    one.hold(job("b", 500), "n1/0", stays=True)
    decided = one.plan(job("whole", 1000))
    assert one.went(decided) == ["a.0 n1/0"]
    one.apply(decided)


def test_who_moves_frees_watts_for_the_asker() -> None:
    """All four devices of r1 are free but one, and it may draw 200 W: a has to leave the rack, not only its node."""
    one = world(capped(("r1", 200)), "r1", "r1", "r2")
    one.hold(job("a", 1000), "n1/0")
    one.hold(job("b", 1000), "n2/0", stays=True)
    decided = one.plan(job("pair", 2000))
    assert one.went(decided) == ["a.0 n2/1"] and decided.task_node.tolist() == [0], (
        "its place is free, not its watts"
    )
    one.apply(decided)


def test_a_head_with_workers_is_made_room_for() -> None:
    one = world(ALL, "r1", "r1", "r2", "r2")
    one.hold(job("a", 1000), "n0/0")
    one.hold(job("b", 1000), "n2/0", stays=True)
    decided = one.plan(job("gang", 1000, 3, head=1000, rule=RACK))
    assert decided.moved == ("a",) and len(decided.task_node) == 4
    one.apply(decided)


def test_under_the_raylets_rule_each_start_is_what_the_raylet_picks() -> None:
    one = world(ALL, "r1", "r1", devices=4, rule=DeviceRule.RAYLET)
    one.hold(job("gang", 1000, 2), "n0/1 n1/2")
    decided = one.plan(job("big", 4000))
    assert len(decided.admitted) == 1
    one.apply(decided)


def test_a_gang_keeps_its_gpu_model() -> None:
    for movable, moved in ((1, False), (2, True)):
        one = World(pool(("A", "r1"), ("A", "r1"), ("B", "r1")), {}, ALL, DeviceRule.FREE, movable)
        one.hold(job("gang", 1000, 2), "n0/0 n1/0")
        one.hold(job("fixed", 1000), "n1/1", stays=True)
        decided = one.plan(job("big", 2000, gpu_models=("A",)))
        assert bool(decided.moved) == moved
        one.apply(decided)
