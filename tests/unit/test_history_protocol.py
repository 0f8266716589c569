"""The openb protocol: Go's generator, the arrivals of a seed, and how the allocation is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import traces
from hypothesis import given
from hypothesis import strategies as st

from moorage.runtime.history import openb as reader
from moorage.scheduling.simulator.gorand import GoRand
from moorage.scheduling.simulator.model import COLUMNS, Kind, Workload
from moorage.scheduling.simulator.openb import acceptance, arrivals, curve


def jobs(milli: list[int], names: tuple[str, ...] | None = None) -> Workload:
    zero = np.zeros(len(milli), np.int64)
    columns = dict.fromkeys(COLUMNS, zero) | {"milli_gpu": np.array(milli), "workers": zero + 1}
    return Workload(**columns, names=names, teams=("t",), model_sets=((),), kind=Kind.ARRIVALS)


def test_the_generator_is_gos() -> None:
    """The numbers every Go program saw before 1.20, and those of Go's own regression test for seed 0."""
    rand = GoRand(1)
    assert [rand.int63() for _ in range(3)] == [5577006791947779410, 8674665223082153551, 6129484611666145821]
    rand = GoRand(1)
    assert [rand.intn(100) for _ in range(10)] == [81, 87, 47, 59, 81, 18, 25, 40, 56, 0]
    rand = GoRand(0)
    first = [rand.intn(n) for n in (1, 10, 32, 1 << 20, (1 << 20) + 1, 10**9, 1 << 30, 2**31 - 2, 2**31 - 1)]
    assert first == [0, 4, 25, 310570, 857611, 621654496, 413258767, 1407315077, 1926657288]
    rand = GoRand(0)
    assert [rand.perm(n).tolist() for n in (0, 1, 5, 8)] == [
        [],
        [0],
        [0, 4, 1, 3, 2],
        [3, 1, 0, 4, 7, 5, 2, 6],
    ]
    assert GoRand(2**31 - 1).int63() == GoRand(0).int63(), "Go takes seeds modulo 2^31 - 1"


def test_the_generator_goes_on_beyond_what_it_draws_ahead() -> None:
    """Against the recurrence itself: y[k] = y[k - 607] + y[k - 273]."""
    rand = GoRand(7)
    drawn = [rand.int63() for _ in range(3000)]
    assert all((drawn[k] - drawn[k - 607] - drawn[k - 273]) % 2**63 == 0 for k in range(607, 3000))


@given(n=st.integers(0, 200), seed=st.integers(0, 2**31))
def test_a_shuffle_loses_nothing(n: int, seed: int) -> None:
    assert sorted(GoRand(seed).shuffle(n).tolist()) == sorted(GoRand(seed).perm(n).tolist()) == list(range(n))


@given(
    milli=st.lists(st.sampled_from([0, 100, 500, 1000, 2000, 8000]), min_size=1, max_size=60).filter(any),
    gpus=st.integers(8, 60),
    demand=st.floats(0.1, 3.0),
    seed=st.integers(0, 99),
)
def test_arrivals_reach_the_demand_and_no_more(milli: list[int], gpus: int, demand: float, seed: int) -> None:
    work, capacity = jobs(milli), gpus * 1000
    come = arrivals(work, ["n1", "n0"], capacity, demand, seed)
    total = int(work.gpus()[come.order].sum())
    if sum(milli) >= demand * capacity:
        assert total <= demand * capacity, "removed until it is within"
        assert len(set(come.order.tolist())) == len(come.order)
        removed = max((int(m) for at, m in enumerate(milli) if at not in set(come.order.tolist())), default=0)
        assert total + removed > demand * capacity or total == sum(milli), "and not one job more"
    else:
        assert sorted(come.order[: len(milli)].tolist()) == list(range(len(milli))), (
            "the list itself comes first"
        )
        # the source compares the next job's milli-GPU per device, so the last one may lead above
        assert demand * capacity - 1000 < total <= demand * capacity + 7000
    assert sorted(come.tie.tolist()) == [0, 1]
    again = arrivals(work, ["n1", "n0"], capacity, demand, seed)
    assert np.array_equal(come.order, again.order) and np.array_equal(come.tie, again.tie)


def test_arrivals_go_by_name_not_by_row() -> None:
    """The source sorts both lists by name before it shuffles them."""
    milli = [1000, 500, 0, 8000, 200]
    names = ("c", "a", "e", "b", "d")
    by_row = arrivals(jobs(milli, names), ["z", "x", "y"], 12_000, 1.3, 42)
    order = np.argsort(names)
    by_name = arrivals(
        jobs([milli[i] for i in order], tuple(sorted(names))), ["x", "y", "z"], 12_000, 1.3, 42
    )
    assert by_row.order.tolist() == order[by_name.order].tolist()
    assert by_row.tie[[1, 2, 0]].tolist() == by_name.tie.tolist()


def test_a_demand_that_can_never_be_reached_is_refused() -> None:
    with pytest.raises(ValueError, match="counted in GPUs"):
        arrivals(jobs([0, 0]), ["n"], 1000, 1.3, 42)
    with pytest.raises(ValueError, match="counted in GPUs"):
        arrivals(jobs([1000]), ["n"], 0, 1.3, 42)


def test_the_allocation_is_the_mean_of_what_rounds_to_the_demand() -> None:
    # 10 GPUs; the arrived percents are 5, 10, 10, 50, 130.4, 131
    milli = np.array([500, 500, 0, 4000, 8040, 60])
    taken = np.array([True, False, True, True, False, True])
    found = curve(milli, taken, 10_000, 1.3)
    assert len(found) == 131
    assert found[5] == 5 and found[10] == 5 and found[50] == 45 and found[130] == 45
    assert found[0] == 0 and found[4] == 5 and found[9] == 5, (
        "one percent beside counts where nothing rounds there"
    )
    assert found[20] == 5 and found[129] == 45, "between arrivals nothing changes"
    assert curve(milli, taken, 10_000, 1.31)[131] == pytest.approx(45.6)


def test_halves_round_to_even_as_the_source_does() -> None:
    found = curve(np.array([25, 5, 5]), np.array([True, True, True]), 1000, 0.04)
    assert found[2] == 2.5 and found[3] == 3.0 and found[4] == 3.5, "2.5 rounds to 2, 3.5 to 4"


def test_the_numbers_are_drawn_in_the_sources_order() -> None:
    """One number logged, the shuffle, the jobs appended, then the nodes: or every seed is another."""
    milli, capacity = [1000, 500, 0, 2000, 200], 9_000
    come = arrivals(jobs(milli), ["a", "b", "c"], capacity, 1.3, 42)
    rand = GoRand(42)
    rand.int63()
    order, asked = rand.shuffle(5).tolist(), sum(milli)
    while asked + min(milli[drawn := rand.intn(5)], 1000) <= 1.3 * capacity:
        order.append(drawn)
        asked += milli[drawn]
    assert come.order.tolist() == order and len(order) > 5
    assert come.tie.tolist() == rand.perm(3).tolist()


def test_a_demand_that_is_met_exactly_is_met() -> None:
    come = arrivals(jobs([1000] * 20), ["a"], 10_000, 1.0, 42)
    assert len(come.order) == 10
    assert sorted(arrivals(jobs([1000] * 20), ["a"], 20_000, 1.0, 42).order.tolist()) == list(range(20))


def test_acceptance_counts_every_arrival() -> None:
    work = jobs([0, 300, 1000, 2000, 4000, 8000, 3000])
    order = np.array([5, 5, 0, 1, 2, 3, 4, 6])
    found = acceptance(work, order, np.array([True, False, True, True, False, True, True, True]))
    assert found.arrived.tolist() == [1, 1, 1, 1, 1, 2, 1]
    assert found.accepted.tolist() == [1, 1, 0, 1, 1, 1, 1]
    assert acceptance(replace(work), order[:0], np.zeros(0, np.bool_)).arrived.sum() == 0


def test_the_real_list_reaches_its_demand() -> None:
    folder: Path = traces.folder() / "openb"
    nodes = reader.read_nodes(folder / "openb_node_list_gpu_node.csv")
    work = reader.read_jobs(folder / "openb_pod_list_default.csv").workload
    come = arrivals(work, [node.name for node in nodes], 6_212_000, 1.3, 42)
    percent = work.gpus()[come.order].sum() / 62_120
    assert 129.9 < percent < 130.2 and len(come.order) == 10866
    assert sorted(come.order[: len(work)].tolist()) == list(range(len(work)))
