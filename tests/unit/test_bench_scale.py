"""The planner's benchmarks run in little, and the parts of them that a figure hangs on are right."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
NAMES = ("planner_scale", "planner_speed", "fairness", "simulator_scale")
HELPERS = ("_frame", "_planner")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[dict[str, ModuleType]]:
    """As scripts see each other, without leaving a trace in the modules of other tests."""
    before = {name: sys.modules.get(name) for name in (*HELPERS, *NAMES)}
    yield {name: load(name) for name in (*HELPERS, *NAMES)}
    for name, module in before.items():
        if module is None:
            del sys.modules[name]
        else:
            sys.modules[name] = module


@pytest.mark.parametrize("name", NAMES)
def test_a_quick_run_prints_every_figure(
    benchmarks: dict[str, ModuleType], name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    module = benchmarks[name]
    assert benchmarks["_frame"].main(module.measure, name, ["--quick", "--json"]) == 0
    figures = json.loads(capfd.readouterr().out)
    assert len(figures) >= 5
    assert not [f["metric"] for f in figures if f["ours"] is None], "every row has its figure"


def test_the_floor_of_kueues_sets_is_their_work_over_the_quota(benchmarks: dict[str, ModuleType]) -> None:
    scale = benchmarks["planner_scale"]
    assert scale.kueue_floor_s(scale.BASELINE) == pytest.approx(66.0)
    fleet, created, runtime = scale.kueue_pool(scale.BASELINE)
    assert len(created) == len(runtime) == 15_000
    assert int(fleet.ledger.capacity()[0]) == 30 * 20 * 1000
    assert sum(k.count for k in scale.LARGE.kinds) * scale.LARGE.cohorts * scale.LARGE.queues == 50_000


def test_a_replay_runs_every_workload_and_books_no_more_than_the_pool(
    benchmarks: dict[str, ModuleType],
) -> None:
    scale = benchmarks["planner_scale"]
    kinds = (scale.Kind(3, 100, 200, 50, 1), scale.Kind(2, 100, 500, 100, 20))
    given = scale.KueueSet("two", 1, 2, kinds, 1.0, 1.0, 1.0)
    got = scale.kueue(given)
    useful = 2 * (3 * 0.2 * 1 + 2 * 0.5 * 20)
    assert got.held - got.lost == pytest.approx(useful)
    assert got.held <= 40 * got.makespan_s
    assert got.makespan_s >= scale.kueue_floor_s(given)


def test_jains_index(benchmarks: dict[str, ModuleType]) -> None:
    jain = benchmarks["fairness"].jain
    assert jain(np.array([5, 5, 5, 5])) == 1.0
    assert jain(np.array([8, 0, 0, 0])) == 0.25


def test_gpu_time_is_booked_to_the_windows_it_ran_in(benchmarks: dict[str, ModuleType]) -> None:
    fairness = benchmarks["fairness"]
    window = fairness.WINDOW
    hour = fairness.Hour(got=np.zeros((3, fairness.TEAMS), np.int64))
    hour.book(1, 2, window // 2, 2 * window + 7)
    assert hour.got[:, 1].tolist() == [window, 2 * window, 14]
    assert not hour.got[:, 0].any()
