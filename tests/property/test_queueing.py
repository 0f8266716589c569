"""What holds for the queueing rules whatever the rows are."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.scheduling.queueing import choose, fairshare, history, index, oldest

HOUR = 3600 * 10**9
sizes = st.sampled_from([250, 1000, 2000, 4000, 8000, 16000])
run = st.tuples(st.integers(0, 2), sizes, st.integers(0, 10**16), st.booleans())


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    count = draw(st.integers(1, 12))

    def many(values: st.SearchStrategy[Any]) -> np.ndarray:
        return np.array(draw(st.lists(values, min_size=count, max_size=count)))

    return {
        "key": many(st.integers(-5, 5)).astype(np.int64),
        "rank": np.array(draw(st.permutations(range(count))), np.int64),
        "milli": many(st.sampled_from([500, 1000, 2000, 4000])).astype(np.int64),
        "running": many(st.booleans()).astype(np.bool_),
        "fixed": many(st.booleans()).astype(np.bool_),
        "ran_ns": many(st.integers(0, 3)).astype(np.int64),
        "lost": many(st.integers(0, 3)).astype(np.int64),
    }


def choice(case: dict[str, Any], capacity: int, margin: int, least: int) -> np.ndarray:
    names = ("key", "rank", "milli", "running", "fixed", "ran_ns", "lost")
    return choose.choose(*(case[n] for n in names), capacity, margin, least)


@given(rows(), st.integers(0, 3), st.integers(0, 2))
def test_choice_keeps_its_promises(case: dict[str, Any], margin: int, least: int) -> None:
    capacity = max(8000, int(case["milli"][case["running"]].sum()))
    holds, key, running = choice(case, capacity, margin, least), case["key"], case["running"]
    assert case["milli"][holds].sum() <= capacity
    left, begun = running & ~holds, holds & ~running
    assert not (left & (case["fixed"] | (case["ran_ns"] < least))).any()
    # Who leaves, leaves for somebody strictly better, and without the leavers the starters would not all fit.
    for row in np.flatnonzero(left):
        assert key[begun].min() + margin < key[row]
    if left.any():
        smallest = case["milli"][left].min()
        assert case["milli"][holds].sum() + smallest > capacity
    # Work conserving: nobody waits who would fit in what is free.
    waiting = ~holds & ~running
    assert not (case["milli"][waiting] <= capacity - case["milli"][holds].sum()).any() or left.any()


@given(rows(), st.integers(0, 3))
def test_choice_never_cycles(case: dict[str, Any], margin: int) -> None:
    """Repeated with nothing changed but who runs, it comes to rest: pushing out is a strict order."""
    capacity = max(8000, int(case["milli"][case["running"]].sum()))
    seen = set()
    holds = case["running"]
    for _ in range(50):
        following = choice({**case, "running": holds}, capacity, margin, 0)
        if np.array_equal(following, holds):
            return
        assert following.tobytes() not in seen, "who runs has been seen before: a cycle"
        seen.add(following.tobytes())
        holds = following
    raise AssertionError("no rest after 50 rounds")


@given(rows(), st.randoms(use_true_random=False))
def test_choice_does_not_depend_on_the_order_of_rows(case: dict[str, Any], shuffled: Any) -> None:
    count = len(case["key"])
    order = list(range(count))
    shuffled.shuffle(order)
    capacity = max(8000, int(case["milli"][case["running"]].sum()))
    moved = {name: column[order] for name, column in case.items()}
    assert np.array_equal(choice(case, capacity, 1, 1)[order], choice(moved, capacity, 1, 1))


@given(st.lists(run, max_size=12), st.lists(run, max_size=6))
@settings(deadline=None)
def test_history_never_uses_the_future(past: list[Any], future: list[Any]) -> None:
    """A table made now is the same whatever comes later; and a history is a value: replayed, it is equal."""
    one, two = history.empty(3), history.empty(3)
    for team, milli, length, ended in past:
        history.ran(one, team, milli, 0, length, ended)
        history.ran(two, team, milli, 0, length, ended)
    before = index.table(one)
    kept = history.copy(one)
    for team, milli, length, ended in future:
        history.ran(one, team, milli, 0, length, ended)
    assert np.array_equal(before, index.table(kept))
    assert np.array_equal(before, index.table(two))
    assert np.array_equal(kept.exposed, two.exposed) and np.array_equal(kept.ended, two.ended)


@given(st.lists(run, max_size=20))
def test_history_counts_all_time_and_all_ends(runs: list[Any]) -> None:
    seen = history.empty(3)
    for team, milli, length, ended in runs:
        history.ran(seen, team, milli, 0, length, ended)
    assert seen.exposed[0].sum() == sum(length // 10**6 for _, _, length, _ in runs)
    assert seen.ended[0].sum() == history.ONE * sum(ended for *_, ended in runs)
    assert (seen.exposed >= 0).all() and (seen.ended >= 0).all()


@given(st.lists(run, max_size=20))
@settings(deadline=None)
def test_the_index_is_finite_and_below_every_tier(runs: list[Any]) -> None:
    seen = history.empty(3)
    for team, milli, length, ended in runs:
        history.ran(seen, team, milli, 0, length, ended)
    table = index.table(seen)
    assert (np.abs(table) < 2**18).all()
    # Overdue, entitled, the rest: three ranges that never meet.
    assert oldest.FIRST + 2**18 < fairshare.OWED - 2**18 and fairshare.OWED + 2**18 < -(2**18)


@st.composite
def waits(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    milli = draw(st.lists(st.sampled_from([1000, 2000, 4000, 8000]), min_size=1, max_size=8))
    length = draw(st.lists(st.integers(1, 20), min_size=len(milli), max_size=len(milli)))
    return milli, length, draw(st.sampled_from([8000, 12000, 16000]))


@given(waits())
def test_the_slice_bounds_waiting(case: tuple[list[int], list[int], int]) -> None:
    """Nothing else ever gets a GPU to these jobs, and still each starts within the bound."""
    milli, left = np.array(case[0], np.int64), np.array(case[1], np.int64)
    work, longest, bound, size = int((milli * left).sum()), int(left.max()), 3, case[2]
    limit = oldest.longest_wait_ns(bound, work, size, int(milli.max()), longest)
    rank, queued = np.arange(len(milli)), np.zeros(len(milli), np.int64)
    inside = np.zeros(len(milli), np.bool_)
    gone = np.zeros(len(milli), np.bool_)
    while not gone.all():
        here = ~gone
        inside[here] = oldest.overdue(
            queued[here], milli[here], inside[here], inside[here], rank[here], bound, size
        )
        assert milli[inside & here].sum() <= size
        queued[here & ~inside] += 1
        assert queued.max() <= limit
        left[here & inside] -= 1
        gone |= left <= 0


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 9000), st.integers(0, 9000)), max_size=20))
def test_a_team_served_its_guarantee_is_never_behind(steps: list[tuple[int, int, int]]) -> None:
    state, guarantee = fairshare.shadow(1), np.array([4000], np.int64)
    for seconds, asked, extra in steps:
        used = min(asked, 4000 + extra)
        fairshare.advance(state, seconds, np.array([used]), np.array([asked]), guarantee)
        assert state.lead[0] >= 0


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=6),
    st.data(),
)
def test_shares_fit_and_leave_nothing_that_is_asked(teams: list[Any], data: st.DataObject) -> None:
    parent = np.array([-1, *(data.draw(st.integers(0, i)) for i in range(len(teams) - 1))], np.int64)
    weight = np.array([t[0] for t in teams], np.int64)
    demand = np.array([t[1:] for t in teams], np.int64)
    got = np.array(fairshare.shares(parent, weight, demand, np.array([60, 60])), np.int64)
    assert (got >= 0).all() and (got[0] <= 60).all()
    for row in range(len(teams)):
        below = [r for r in range(len(teams)) if parent[r] == row]
        assert (got[below].sum(axis=0) <= got[row]).all()
    asked = demand.sum(axis=0)
    # One resource is gone, or the root got all that was asked.
    assert (got[0] == asked).all() or (got[0] >= 60 - 1).any() or (asked == 0).all()
