"""The queueing rules, by examples small enough to check by hand."""

from __future__ import annotations

import numpy as np
import pytest

from moorage.scheduling.queueing import choose, fairshare, fifo, history, index, oldest, srtf

MINUTE = 60 * 10**9
HOUR = 60 * MINUTE


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def flags(*values: int) -> np.ndarray:
    return np.array(values, np.bool_)


# history


def test_bins_double() -> None:
    ages = [-5, 0, MINUTE - 1, MINUTE, 2 * MINUTE, 4 * MINUTE - 1, 2**62]
    assert [history.bin_of(a) for a in ages] == [0, 0, 0, 1, 2, 2, history.BINS - 1]


def test_an_end_counts_once_per_level_and_its_time_by_bins() -> None:
    seen = history.empty(2)
    history.ran(seen, 1, 4000, 0, 3 * MINUTE, True)
    for level in range(history.LEVELS):
        group = history.group_of(1, 4000, level)
        assert seen.exposed[group, :4].tolist() == [60_000, 60_000, 60_000, 0]
        assert seen.ended[group].tolist() == [0, 0, history.ONE] + [0] * (history.BINS - 3)
    assert seen.ended.sum() == history.LEVELS * history.ONE


def test_who_still_runs_is_exposure_alone() -> None:
    seen = history.empty(1)
    history.ran(seen, 0, 1000, 0, HOUR, False)
    assert seen.ended.sum() == 0
    assert seen.exposed[0].sum() == 3_600_000


def test_time_in_pieces_is_time_at_once() -> None:
    whole, pieces = history.empty(1), history.empty(1)
    history.ran(whole, 0, 1000, 0, 7 * HOUR, False)
    for start, end in ((0, 17 * MINUTE), (17 * MINUTE, 2 * HOUR), (2 * HOUR, 7 * HOUR)):
        history.ran(pieces, 0, 1000, start, end, False)
    assert np.array_equal(whole.exposed, pieces.exposed)


def test_the_short_memory_fades_and_the_long_one_does_not() -> None:
    seen = history.empty(1)
    for _ in range(300):
        history.ran(seen, 0, 1000, 0, 30 * 10**9, True)
    assert seen.ended[history.group_of(0, 1000, 2), 0] == 300 * history.ONE
    assert seen.ended[history.group_of(0, 1000, 3), 0] < (history.MEMORY + 1) * history.ONE


def test_a_team_without_a_past_is_its_gang_size() -> None:
    seen = history.empty(2)
    for _ in range(50):
        history.ran(seen, 0, 1000, 0, 30 * 10**9, True)
    known, new = history.rates(seen, 0, 1000), history.rates(seen, 1, 1000)
    unseen = history.rates(history.empty(2), 1, 1000)
    assert unseen[0] < new[0] <= known[0]


def test_new_teams_leave_known_ones_as_they_were() -> None:
    seen = history.empty(1)
    history.ran(seen, 0, 8000, 0, HOUR, True)
    wide = history.widened(seen, 3)
    assert np.array_equal(history.rates(wide, 0, 8000), history.rates(seen, 0, 8000))
    with pytest.raises(ValueError, match="cannot shrink"):
        history.widened(wide, 2)


# index


def test_twice_the_gpu_time_is_one_doubling() -> None:
    one = index.attained_key(1000, HOUR)
    assert index.attained_key(1000, 2 * HOUR) == one + index.DOUBLING
    assert index.attained_key(2000, HOUR) == one + index.DOUBLING


def test_a_constant_rate_makes_every_age_alike() -> None:
    seconds = index.gittins(np.full(history.BINS, 1 / 100.0))
    assert np.allclose(seconds, 100.0)


def test_an_end_that_is_near_is_worth_waiting_for() -> None:
    rate = np.full(history.BINS, 1e-6)
    rate[5] = 1.0
    seconds = index.gittins(rate)
    # 16 to 32 minutes of age: everything ends there, so the nearer the better; past it, hardly anything ends.
    assert seconds[5] < seconds[4] < seconds[3] < seconds[0] < seconds[6]


def test_short_jobs_of_a_team_go_first_once_they_are_known() -> None:
    seen = history.empty(2)
    for _ in range(20):
        history.ran(seen, 0, 1000, 0, MINUTE, True)
        history.ran(seen, 1, 1000, 0, 20 * HOUR, True)
    keys = index.table(seen)
    quick, slow, slow_large = index.learned_keys(keys, ints(0, 1, 1), ints(1000, 1000, 2000), ints(0, 0, 0))
    assert quick + index.DOUBLING < slow
    # No two-GPU job was seen of team 1, so its key leans on coarser groups: never below a job's of team 0.
    assert quick < slow_large


def test_the_oracle_orders_by_what_is_left() -> None:
    assert np.argsort(srtf.keys(ints(3 * HOUR, HOUR, 2 * HOUR))).tolist() == [1, 2, 0]
    assert np.argsort(srtf.keys(ints(3 * HOUR, HOUR, 2 * HOUR), ints(1000, 8000, 1000))).tolist() == [2, 0, 1]


def test_strict_order_stops_at_the_first_that_does_not_fit() -> None:
    starts = fifo.strict_prefix(fifo.keys(ints(3, 1, 2)), ints(0, 1, 2), ints(1000, 1000, 8000), 4000)
    assert starts.tolist() == [False, True, False]


# oldest


def test_the_longest_queued_enter_until_the_slice_is_full() -> None:
    queued, milli = ints(9, 8, 7, 1), ints(2000, 2000, 1000, 1000)
    none = np.zeros(4, np.bool_)
    inside = oldest.overdue(queued, milli, none, none, ints(0, 1, 2, 3), 5, 3000)
    # Row 1 does not fit beside row 0 and holds back row 2, which would; row 3 is not overdue.
    assert inside.tolist() == [True, False, False, False]
    assert oldest.overdue(queued, milli, inside, inside, ints(0, 1, 2, 3), 5, 5000).tolist() == [1, 1, 1, 0]


def test_who_runs_needs_no_slice_and_who_has_it_keeps_it() -> None:
    inside = oldest.overdue(ints(9, 1), ints(1000, 1000), flags(0, 1), flags(1, 1), ints(0, 1), 5, 10**6)
    assert inside.tolist() == [False, True]


def test_a_gang_beyond_the_slice_has_it_alone() -> None:
    none = np.zeros(2, np.bool_)
    inside = oldest.overdue(ints(9, 8), ints(64000, 1000), none, none, ints(0, 1), 5, 8000)
    assert inside.tolist() == [True, False]


def test_overdue_rows_are_before_every_index() -> None:
    keys = oldest.keys(ints(-(2**55), 0, 5), flags(0, 1, 1), ints(0, 7, 9))
    assert np.argsort(keys).tolist() == [2, 1, 0]


# choose


def pick(
    key: list[int],
    milli: list[int],
    running: list[int],
    *,
    fixed: list[int] | None = None,
    margin: int = 0,
    **k: int,
) -> list[bool]:
    rows = len(key)
    held = choose.choose(
        ints(*key),
        np.arange(rows),
        ints(*milli) * 1000,
        flags(*running),
        flags(*(fixed or [0] * rows)),
        np.full(rows, k.get("ran", 100), np.int64),
        ints(*([0] * rows)),
        k.get("capacity", 8) * 1000,
        margin,
        k.get("least", 0),
    )
    return list(held.tolist())


def test_a_gang_pushes_out_the_worst_and_spares_who_is_not_needed() -> None:
    # The gang of 8 collects 1 + 4 + 4 from the worst; the single GPU turns out not to be needed.
    assert pick([1, 9, 8, 7], [8, 1, 4, 4], [0, 1, 1, 1], capacity=9) == [True, True, False, False]


def test_within_the_margin_nobody_is_pushed_out() -> None:
    assert pick([1, 5], [8, 8], [0, 1], margin=4) == [False, True]
    assert pick([1, 6], [8, 8], [0, 1], margin=4) == [True, False]


def test_fixed_and_new_runs_stay() -> None:
    assert pick([1, 9], [8, 8], [0, 1], fixed=[0, 1]) == [False, True]
    assert pick([1, 9], [8, 8], [0, 1], least=101) == [False, True]


def test_who_fits_passes_who_does_not() -> None:
    assert pick([1, 2, 0], [8, 2, 4], [0, 0, 1]) == [False, True, True]


# fair shares


def test_lending_is_counted_and_idling_is_not() -> None:
    state, guarantee = fairshare.shadow(2), ints(4000, 4000)
    fairshare.advance(state, 10, ints(8000, 0), ints(20000, 0), guarantee)
    assert state.lead.tolist() == [40000, 0]
    # Team 1 came back, team 0 gave way: its partition would still be busy, so its lead melts.
    fairshare.advance(state, 10, ints(0, 4000), ints(0, 9000), guarantee)
    assert state.lead.tolist() == [0, 0]


def test_who_is_far_ahead_claims_nothing_until_it_is_level() -> None:
    state, guarantee = fairshare.shadow(1), ints(1000)
    fairshare.advance(state, fairshare.KEEP + 1, ints(2000), ints(9000), guarantee)
    assert fairshare.claims(state, guarantee).tolist() == [0]
    fairshare.advance(state, 100, ints(0), ints(9000), guarantee)
    assert fairshare.claims(state, guarantee).tolist() == [0]
    fairshare.advance(state, fairshare.KEEP, ints(0), ints(9000), guarantee)
    assert fairshare.claims(state, guarantee).tolist() == [1000]


def test_a_team_serves_its_own_claim_in_its_own_order() -> None:
    rows = fairshare.entitled(
        ints(2, 0, 1, 3), ints(0, 0, 0, 1), ints(2000, 3000, 3000, 9000), ints(5000, 8000)
    )
    assert rows.tolist() == [True, False, True, False]


def test_entitled_rows_go_first_each_part_by_index() -> None:
    keys = fairshare.keys(ints(50, 40, -50, 60), flags(1, 1, 0, 0))
    assert np.argsort(keys).tolist() == [1, 0, 2, 3]


def test_usage_halves_and_never_grows() -> None:
    assert [fairshare.decayed(1024, t, 10) for t in (0, 5, 10, 30, 10**9)] == [1024, 768, 512, 128, 0]
    with pytest.raises(ValueError, match="half-life"):
        fairshare.decayed(1, 1, 0)


def test_drf_as_in_the_paper() -> None:
    # Ghodsi et al., figure 2: 9 CPUs, 18 GB; A asks <1, 4> a task, B <3, 1>: three tasks of A, two of B.
    demand = np.array([[0, 0], [100, 400], [300, 100]], np.int64)
    got = fairshare.shares(ints(-1, 0, 0), ints(1, 1, 1), demand, ints(9, 18))
    assert got == [(9, 14), (3, 12), (6, 2)]


def test_shares_of_a_tree_follow_weights_and_pass_on_what_is_not_asked() -> None:
    # root > (a weight 2 > a1, a2), b weight 1; a2 asks for little, a1 takes the rest of a's.
    parent, weight = ints(-1, 0, 0, 1, 1), ints(1, 2, 1, 1, 1)
    demand = np.array([[0], [0], [90], [90], [5]], np.int64)
    assert fairshare.shares(parent, weight, demand, ints(90)) == [(90,), (60,), (30,), (55,), (5,)]
