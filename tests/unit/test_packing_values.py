"""S4: what holes are worth, the mix of classes, and the rules by name."""

from __future__ import annotations

import numpy as np
import pytest

from moorage.kernels import placing_scores as kernel
from moorage.kernels.placing import find, fresh_scores, take
from moorage.kernels.placing_scores import Classes, Nodes, Scoring
from moorage.kernels.placing_values import best_pattern, fillings
from moorage.scheduling.packing import scorings
from moorage.scheduling.packing.classes import Mix
from moorage.scheduling.packing.values import Pool, _asked, _size_prices, fewest_devices, tables

POOL = Pool(milli_by_model=(0, 80_000), width=8, milli_cpu=1_000_000)


def column(*values: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.array(values, np.int64)


def mix(*tasks: tuple[int, int, int], models: int = -1) -> Mix:
    """(milli-GPU, milli-CPU, count) each."""
    milli, cpu, count = (column(*c) for c in zip(*tasks, strict=True))
    return Mix.of(milli, cpu, np.zeros_like(milli), np.full_like(milli, models), count)


def nodes(milli: list[list[int]], cpu: list[int]) -> Nodes:
    free = np.array(milli, np.int64)
    count = len(milli)
    devices = np.full(count, free.shape[1], np.int64)
    return Nodes(
        free,
        np.full_like(free, 1000),
        devices,
        np.full(count, 1000),
        np.ones(count, np.int64),
        column(*cpu),
        np.full(count, 10**6),
    )


def one_class(milli: int, cpu: int, count: int) -> Classes:
    return Classes(column(milli), column(0), column(cpu), column(0), np.ones((1, count), np.bool_))


def chosen(pool: Nodes, scoring: Scoring, milli: int, cpu: int = 0) -> tuple[int, int]:
    classes = one_class(milli, cpu, len(pool.model))
    scores = fresh_scores(pool, classes, scoring)
    found = find(pool, classes, scores, scoring, 0, -1, False)
    return int(found[0]), int(found[1])


@pytest.mark.parametrize(
    ("sizes", "demand", "prices"),
    [
        ((500,), (1,), (500,)),
        ((470,), (1,), (500,)),  # two fill a device as far as it can be filled
        ((400, 600), (1, 3), (0, 1000)),  # each 600 needs a device, a 400 comes for nothing
        ((400, 600), (3, 1), (500, 500)),
        ((1000,), (7,), (1000,)),
    ],
)
def test_a_size_costs_the_part_of_a_device_it_takes(
    sizes: tuple[int, ...], demand: tuple[int, ...], prices: tuple[float, ...]
) -> None:
    assert _size_prices(sizes, demand) == pytest.approx(prices)


def test_prices_never_claim_more_than_one_device_per_device() -> None:
    rng = np.random.default_rng(5)
    for _ in range(10):
        sizes = np.unique(rng.integers(1, 1001, 12))
        demand = rng.integers(1, 100, len(sizes))
        prices = np.array(_size_prices(tuple(sizes.tolist()), tuple(demand.tolist())))
        worth, pattern = best_pattern(sizes, prices, 1000)
        assert worth <= 1000 * (1 + 1e-6)
        assert pattern @ sizes <= 1000
        # weak duality: the devices that all tasks need, were they liquid, are no more than the prices say
        assert prices @ demand >= sizes @ demand * (1 - 1e-6)


@pytest.mark.parametrize(
    ("tasks", "devices"),
    [
        ((), 0),
        ((0, 0), 0),  # tasks without a GPU
        ((1000, 8000), 9),
        ((810, 810, 810), 3),  # two never share one
        ((470, 470, 470), 1.5),  # a bound, not a count
        ((810, 190, 600, 400), 2),
        ((1000, 500, 500, 500), 2.5),
    ],
)
def test_fewest_devices_of_any_placement(tasks: tuple[int, ...], devices: float) -> None:
    assert fewest_devices(column(*tasks)) == pytest.approx(devices)


def test_no_packing_uses_fewer_devices_than_the_bound() -> None:
    rng = np.random.default_rng(8)
    for _ in range(20):
        tasks = np.sort(rng.integers(1, 1001, 30))[::-1]
        bins: list[int] = []
        for task in tasks.tolist():  # first fit decreasing: a packing, so never below a true bound
            at = next((i for i, used in enumerate(bins) if used + task <= 1000), len(bins))
            bins[at : at + 1] = [(bins[at] if at < len(bins) else 0) + task]
        bound = fewest_devices(tasks)
        assert tasks.sum() / 1000 * (1 - 1e-6) <= bound <= len(bins) + 1e-6


def test_a_task_of_a_device_and_a_half_has_no_bound() -> None:
    with pytest.raises(ValueError, match="whole devices"):
        fewest_devices(column(1500))


def test_a_hole_is_worth_its_best_filling() -> None:
    out = fillings(column(300, 500), np.array([[3.0, 1.0], [6.0, 1.0]]), 1000)
    assert out[299].tolist() == [0, 0]
    assert out[600].tolist() == [6, 2]
    assert out[1000].tolist() == [12, 3]


def test_the_same_tasks_in_any_order_are_the_same_mix() -> None:
    rows = np.random.default_rng(1).integers(0, 3, (40, 3)) * 250
    shuffled = np.random.default_rng(2).permutation(rows)
    a, b = (Mix.of(r[:, 0], r[:, 1], r[:, 2], np.full(40, 6)) for r in (rows, shuffled))
    assert all((getattr(a, f) == getattr(b, f)).all() for f in ("milli", "cpu", "mib", "models", "count"))
    assert a.count.sum() == 40
    assert set(a.models[a.milli == 0].tolist()) <= {-1}, "a task without a GPU may use every model"


def test_a_full_node_is_worth_nothing_and_more_room_never_less() -> None:
    value, price, stages = tables(mix((470, 4000, 3), (810, 2000, 5), (1000, 9000, 9)), POOL)
    assert value.shape == (4, 1000 + 2 + 8, 12)
    assert (value[:, 0] == 0).all()
    assert (value[:, 1000] == 0).all()
    assert (np.diff(value[:, :1000], axis=1) >= 0).all()
    assert (np.diff(value[:, 1001:], axis=1) > 0).all()
    assert (price >= 0).all()
    assert 0 < stages[0] < POOL.milli_gpu


def test_a_model_that_no_task_may_use_has_no_value() -> None:
    value, _, _ = tables(mix((500, 1000, 1), models=2), POOL)
    assert (value[0] == 0).all()
    assert value[1].max() > 0


def test_a_model_is_dearer_the_further_it_is_spoken_for() -> None:
    """Rows 1 and 2 have a device each; row 3 has none. The mix counts as if it filled both."""

    def asked(*tasks: tuple[int, int]) -> list[float]:
        models, count = (np.array(column, np.int64) for column in zip(*tasks, strict=True))
        none = np.zeros(len(models), np.int64)
        mix = Mix.of(np.full(len(models), 1000, np.int64), none, none, models, count)
        return _asked(mix, Pool(milli_by_model=(0, 1000, 1000, 0), width=1, milli_cpu=0)).tolist()

    row_1, row_2, row_3, both = 2, 4, 8, 6
    assert asked((-1, 7)) == [0, 0, 0, 0]
    assert asked((-1, 30), (row_2, 10)) == [0, 0, 0.5, 0]
    assert asked((-1, 10), (row_2, 30)) == [0, 0, 1, 0], "more than all of it is no more than all"
    assert asked((row_1, 10), (row_2, 30)) == [0, 0, 0.5, 0], "less the least: half of row 1 is spoken for"
    assert asked((both, 10), (-1, 10)) == [0, 0, 0, 0], "who names all there is names none"
    assert asked((row_3, 10), (-1, 10)) == [0, 0, 0, 0], "there is none of it"


def test_the_potential_keeps_the_hole_that_a_frequent_task_fits() -> None:
    rule = scorings.potential(np.arange(2), mix((300, 0, 1), (540, 0, 50), (460, 0, 50)), POOL)
    # 540 free and 700 free: the 300 leaves 240, worth nothing, or 400, worth nothing; but it spoils the 540
    assert chosen(nodes([[540], [840]], [9000, 9000]), rule, 300) == (1, 1)
    assert chosen(nodes([[540], [840]], [9000, 9000]), scorings.best_fit(np.arange(2)), 300) == (0, 1)


def test_the_potential_sends_cpu_work_where_gpus_cannot_use_the_cpu() -> None:
    rule = scorings.potential(np.arange(2), mix((500, 8000, 10), (0, 8000, 5)), POOL)
    full_then_idle = nodes([[1000, 1000], [0, 0]], [32_000, 16_000])
    assert chosen(full_then_idle, rule, 0, cpu=8000)[0] == 1


def test_stages_begin_by_what_is_free_in_the_pool() -> None:
    rule = scorings.potential(
        np.arange(1), mix((500, 100, 1)), Pool(milli_by_model=(0, 1000), width=1, milli_cpu=9)
    )
    pool, classes = nodes([[1000]], [9000]), one_class(500, 100, 1)
    scores = fresh_scores(pool, classes, rule)
    assert find(pool, classes, scores, rule, 0, -1, False)[0] == 0
    assert scores.clock[3] == 0
    take(pool, classes, scores, 0, 0, 1, -1)
    take(pool, classes, scores, 0, 0, 1, -1)
    find(pool, classes, scores, rule, 0, -1, False)
    assert scores.clock[3] == 1


def test_a_mix_without_a_single_gpu_task_falls_back_to_best_fit() -> None:
    assert scorings.potential(np.arange(2), mix((0, 100, 3), (2000, 100, 1)), POOL).kind == kernel.BEST_FIT
    with pytest.raises(ValueError, match="no task of one GPU or less"):
        tables(mix((0, 100, 3)), POOL)


def test_fgd_looks_at_the_shapes_that_make_up_most_of_the_tasks() -> None:
    rule = scorings.fgd(np.arange(1), mix((500, 1000, 90), (1000, 2000, 6), (4000, 3000, 4)))
    assert rule.typical[:, 1].tolist() == [1, 1]
    assert rule.typical[:, 3].sum() == pytest.approx(2**20, abs=2)
    assert rule.steps[49] == 0, "no gain scores 50 percent"


def test_too_many_nodes_are_refused() -> None:
    many = 1 << kernel.TIE_BITS
    empty = np.broadcast_to(np.zeros(1, np.int64), (many,))
    pool = Nodes(
        np.broadcast_to(np.zeros((1, 1), np.int64), (many, 1)), empty, empty, empty, empty, empty, empty
    )
    with pytest.raises(ValueError, match="at most"):
        fresh_scores(pool, one_class(0, 0, 1), scorings.first(empty))
