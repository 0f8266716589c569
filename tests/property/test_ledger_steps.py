"""S2-S4: what a step refuses, what it leaves behind, and that a ledger of any size stays quick to change."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_events import image

from moorage.scheduling.ledger import (
    Event,
    LeaseGranted,
    LeaseReleased,
    LeaseResized,
    Ledger,
    LedgerError,
    NodeDown,
    NodeUp,
    TeamSet,
    accepts,
    step,
)
from moorage.scheduling.model import UNLIMITED, Lease, NodeSpec, Role, TaskPlacement, TeamSpec
from moorage.scheduling.rows import Rows, widened
from moorage.scheduling.validate import check


def node(name: str = "n0", devices: int = 2, **figures: object) -> NodeSpec:
    known = {"gpu_model": "A", "device_mib": 24000, "milli_cpu": 8000, "mib": 9000}
    return NodeSpec(name=name, devices=devices, **{**known, **figures})  # type: ignore[arg-type]


def task(*devices: int, milli: int = 500, on: str = "n0", **figures: int) -> TaskPlacement:
    known = {"gpu_mib": 0, "milli_cpu": 0, "mib": 0}
    return TaskPlacement(
        role=Role.WORKER, index=0, node=on, devices=devices, milli_gpu=milli, **{**known, **figures}
    )


def lease(epoch: int, *tasks: TaskPlacement, job: str = "j", team: str = "ops") -> Lease:
    return Lease(lease=f"l{epoch}", job=job, team=team, epoch=epoch, tasks=tasks)


def pool(*events: Event) -> Ledger:
    ledger = Ledger()
    for event in (TeamSet(TeamSpec(name="ops")), NodeUp(node()), NodeUp(node("n1", 1)), *events):
        step(ledger, event)
    return ledger


REFUSED: dict[str, Event] = {
    "an epoch that was used": LeaseGranted(lease(1)),
    "an id that is held": LeaseGranted(
        Lease(lease="l1", job="j", team="ops", epoch=9, tasks=(task(0, on="n1"),))
    ),
    "a team nobody knows": LeaseGranted(lease(9, task(1), team="nobody")),
    "a node nobody knows": LeaseGranted(lease(9, task(0, on="n7"))),
    "a device that is not there": LeaseGranted(lease(9, task(1, on="n1"))),
    "a device before the first": LeaseGranted(lease(9, task(-1))),
    "a share that is taken": LeaseGranted(lease(9, task(0, milli=501))),
    "device memory that is taken": LeaseGranted(lease(9, task(0, gpu_mib=16001))),
    "CPU that is not there": LeaseGranted(lease(9, task(milli=0, milli_cpu=8001))),
    "memory that is not there": LeaseGranted(lease(9, task(milli=0, mib=9001))),
    "a whole device that is shared": LeaseGranted(lease(9, task(0, milli=1000))),
    "a device twice in one task": LeaseGranted(lease(9, task(1, 1, milli=2000))),
    "two devices for one share": LeaseGranted(lease(9, task(0, 1, milli=500))),
    "one device for two": LeaseGranted(lease(9, task(1, milli=2000))),
    "a share of no device": LeaseGranted(lease(9, task(milli=500))),
    "a device for nothing": LeaseGranted(lease(9, task(1, milli=0))),
    "less than no CPU": LeaseGranted(lease(9, task(1, milli_cpu=-1))),
    "less than no memory": LeaseGranted(lease(9, task(1, mib=-1))),
    "less than no device memory": LeaseGranted(lease(9, task(1, gpu_mib=-1))),
    "a second task that does not fit beside the first": LeaseGranted(
        lease(9, task(1, milli_cpu=8000), task(0, on="n1"), task(milli=0, milli_cpu=1))
    ),
    "a lease that is not held": LeaseReleased("l9", 9),
    "a stale release": LeaseReleased("l1", 2),
    "a stale resize": LeaseResized("l1", 2, 3, 1, (task(1),)),
    "a resize to an epoch that was used": LeaseResized("l1", 1, 1, 1, (task(1),)),
    "a resize of a lease that is not held": LeaseResized("l9", 1, 2, 1, (task(1),)),
    "a resize to nothing": LeaseResized("l1", 1, 2, 0),
    "a resize of nothing": LeaseResized("l1", 1, 2, 1),
    "a resize beyond its tasks": LeaseResized("l1", 1, 2, 2),
    "growth onto what is taken": LeaseResized("l1", 1, 2, 1, (task(1), task(0, milli=501))),
    "other devices under a lease": NodeUp(node(devices=3)),
    "another GPU model under a lease": NodeUp(node(gpu_model="B")),
    "other device memory under a lease": NodeUp(node(device_mib=1)),
    "less than no device memory of a node": NodeUp(node("n2", device_mib=-1)),
    "more CPU than there can be": NodeUp(node("n2", milli_cpu=2**63)),
    "the end of a node nobody knows": NodeDown("n7"),
    "a parent nobody knows": TeamSet(TeamSpec(name="a", parent="nobody")),
    "a team under itself": TeamSet(TeamSpec(name="ops", parent="ops")),
    "a quota beyond all bounds": TeamSet(TeamSpec(name="a", quota=(("Z", 1), ("Y", UNLIMITED + 1)))),
    "a limit below nothing": TeamSet(TeamSpec(name="a", limit=(("Z", -1),))),
    "a weight below nothing": TeamSet(TeamSpec(name="a", weight=-1)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_changes_nothing(name: str) -> None:
    ledger = pool(LeaseGranted(lease(1, task(0, gpu_mib=8000))))
    before, touched = image(ledger), ledger.touched.copy()
    with pytest.raises(LedgerError):
        step(ledger, REFUSED[name])
    assert image(ledger) == before
    assert ledger.touched == touched


def test_a_gang_gives_up_workers_and_takes_others_under_a_new_epoch() -> None:
    ledger = pool(
        LeaseGranted(lease(1, task(0), task(1), task(0, on="n1"))), LeaseGranted(lease(2, task(0), job="k"))
    )
    ledger.held_by("j")
    step(ledger, LeaseResized("l1", 1, 3, 1))
    assert [len(x.tasks) for x in ledger.held_by("j")] == [1]
    assert ledger.used[0].tolist() == [1000, 1000]
    check(ledger)
    with pytest.raises(LedgerError, match="stale"):
        step(ledger, LeaseReleased("l1", 1))
    step(ledger, LeaseResized("l1", 3, 4, 1, (task(1, milli=1000), task(0, milli=1000, on="n1"))))
    assert list(ledger.leases) == ["l2", "l1"], "in order of epoch"
    assert [t.milli_gpu for t in ledger.held_by("j")[0].tasks] == [500, 1000, 1000]
    assert ledger.used[0].tolist() == [3000, 3000]
    check(ledger)


def test_a_resize_that_fails_half_way_leaves_what_was_given_up() -> None:
    ledger = pool(LeaseGranted(lease(1, task(0), task(1, milli=1000))))
    before = image(ledger)
    with pytest.raises(LedgerError):
        step(ledger, LeaseResized("l1", 1, 2, 1, (task(1, milli=1000), task(0, on="n7"))))
    assert image(ledger) == before


def test_the_room_given_up_is_taken_in_the_same_step_even_on_another_device() -> None:
    ledger = pool(LeaseGranted(lease(1, task(0), task(1, milli=1000))), NodeDown("n1"))
    step(ledger, LeaseResized("l1", 1, 2, 1, (task(1, milli=600), task(1, milli=400))))
    check(ledger)


def test_a_gang_gives_up_a_worker_on_a_lost_node() -> None:
    ledger = pool(LeaseGranted(lease(1, task(0), task(0, on="n1"))), NodeDown("n1"))
    step(ledger, LeaseResized("l1", 1, 2, 1))
    check(ledger)


def test_a_lost_node_takes_no_lease_and_gives_back_what_it_held() -> None:
    held = lease(1, task(0, 1, milli=2000, gpu_mib=24000, milli_cpu=4000))
    ledger = pool(LeaseGranted(held), NodeDown("n0"))
    with pytest.raises(LedgerError, match="is not up"):
        step(ledger, LeaseGranted(lease(2, task(milli=0, milli_cpu=1))))
    step(ledger, LeaseReleased("l1", 1))
    check(ledger)
    step(ledger, NodeUp(node(devices=4, gpu_model="B", mib=1)))
    check(ledger)
    assert ledger.capacity().tolist() == [5000, 1000, 4000]


def test_a_cpu_node_under_a_lease_comes_back_whatever_gpu_model_it_names() -> None:
    spec = NodeSpec(name="c", gpu_model="A", milli_cpu=1000)
    ledger = pool(NodeUp(spec), LeaseGranted(lease(1, task(milli=0, milli_cpu=1, on="c"))))
    assert accepts(ledger, spec)
    step(ledger, NodeUp(spec))
    assert not accepts(ledger, NodeSpec(name="c", gpu_model="A", milli_cpu=1001))


def test_quotas_without_a_total_sum_up_to_no_more_than_unlimited() -> None:
    ledger = pool(TeamSet(TeamSpec(name="a", quota=(("A", UNLIMITED), ("B", UNLIMITED)))))
    assert ledger.quota[ledger.team_row["a"]].tolist() == [UNLIMITED, UNLIMITED, UNLIMITED]


def test_leases_of_a_job_are_found_before_and_after_the_index_exists() -> None:
    ledger = pool(LeaseGranted(lease(1, task(0))), LeaseGranted(lease(2, task(0, on="n1"), job="k")))
    assert [x.lease for x in ledger.held_by("j")] == ["l1"]
    step(ledger, LeaseGranted(lease(3, task(0))))
    assert [x.lease for x in ledger.held_by("j")] == ["l1", "l3"]
    step(ledger, LeaseReleased("l1", 1))
    step(ledger, LeaseReleased("l2", 2))
    assert [x.lease for x in ledger.held_by("j")] == ["l3"]
    assert ledger.held_by("k") == ()
    assert [x.lease for x in ledger.copy().held_by("j")] == ["l3"]


def test_growing_copies_the_rows_a_handful_of_times() -> None:
    """Amortised: the array behind a column is replaced once for each doubling, not once for each row."""
    ledger, behind = Ledger(), {}
    for n in range(1000):
        step(ledger, NodeUp(node(f"n{n}")))
        behind[id(ledger.milli_free.base)] = ledger.milli_free.base  # kept, or its id would be used again
        assert ledger.milli_free.shape == (n + 1, 2)
        assert ledger.up.shape == (n + 1,)
    assert len(behind) < 12
    check(ledger)
    assert (ledger.milli_free == 1000).all()


@given(st.lists(st.integers(0, 5), max_size=20), st.integers(1, 3))
def test_grown_arrays_keep_their_rows(sizes: list[int], width: int) -> None:
    class Owner:
        a = np.zeros((0, width), np.int64)

    owner, rows, total = Owner(), Rows(), 0
    for k, more in enumerate(sizes):
        if k % 3 == 2:
            owner.a = owner.a.copy()  # someone put another array in its place
        rows.grow(owner, ("a",), total + more)
        assert owner.a.shape == (total + more, width)
        assert not owner.a[total:].any()
        owner.a[total:] = k + 1
        total += more
    assert owner.a[:, 0].tolist() == [k + 1 for k, more in enumerate(sizes) for _ in range(more)]
    assert widened(owner.a, width + 2, 7)[:, width:].tolist() == [[7, 7]] * total


def test_a_copy_follows_by_the_rows_that_were_touched() -> None:
    ledger = pool()
    mark, copy = ledger.mark(), ledger.copy()
    step(ledger, LeaseGranted(lease(1, task(0), task(0, on="n1"))))
    step(ledger, NodeDown("n1"))
    assert ledger.touched_since(mark) == [0, 1, 1]
    again = ledger.copy()
    assert again.touched_since(mark) == [0, 1, 1], "a copy knows its origin's history"
    assert copy.touched_since(ledger.mark()) is None, "the copy is older than the mark"
    assert copy.touched_since(mark) == []
    step(again, LeaseReleased("l1", 1))
    assert again.touched_since(mark) is None, "a copy that stepped has a history of its own"
    assert again.touched_since(again.mark()) == []
    step(ledger, LeaseReleased("l1", 1))
    ledger.trim_touched(ledger.mark().position - 1)
    assert ledger.touched_since(mark) is None
    assert len(ledger.touched) == 1


def test_the_history_of_rows_is_bounded() -> None:
    ledger = pool()
    mark = ledger.mark()
    for epoch in range(1, 4000):
        step(ledger, LeaseGranted(lease(epoch, task(0))))
        step(ledger, LeaseReleased(f"l{epoch}", epoch))
    assert len(ledger.touched) <= 4096 + 16
    assert ledger.mark().position == mark.position + 2 * 3999
    assert ledger.touched_since(mark) is None
    assert ledger.touched_since(ledger.mark()) == []


def followed(ledger: Ledger) -> Callable[[], np.ndarray]:
    """A reader that keeps its own milli_free by the touched rows alone."""
    own, mark = ledger.milli_free.copy(), ledger.mark()

    def follow() -> np.ndarray:
        nonlocal own, mark
        rows = ledger.touched_since(mark)
        if rows is None or own.shape != ledger.milli_free.shape:
            own = ledger.milli_free.copy()
        else:
            own[rows] = ledger.milli_free[rows]
        mark = ledger.mark()
        return own

    return follow


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 3)), max_size=40))
def test_whoever_copies_only_touched_rows_has_all_of_them(moves: list[tuple[int, int, int]]) -> None:
    ledger = pool()
    follow = followed(ledger)
    for kind, n, d in moves:
        epoch = ledger.last_epoch + 1
        held = sorted(ledger.leases.values(), key=lambda x: x.epoch)
        event: Event = (
            LeaseGranted(lease(epoch, task(d, on=f"n{n}"), task(0, on="n0"))),
            LeaseReleased(held[0].lease, held[0].epoch) if held else NodeDown("n0"),
            NodeUp(node(f"n{n}", d)),
            NodeDown(f"n{n}"),
        )[kind]
        with suppress(LedgerError):
            step(ledger, event)
        if d:
            assert np.array_equal(follow(), ledger.milli_free)
        check(ledger)
