"""`moorage cost --by`: the same bill by team, by job and by GPU model, over HTTP from the real control plane (L5)."""

from __future__ import annotations

from pathlib import Path

from door_world import door

from moorage.configs.pool import PoolSettings
from moorage.runtime.control.cost import Bill
from moorage.runtime.control.simbackend import SimNode


def test_each_way_sums_to_the_same_total(tmp_path: Path) -> None:
    """L4 at 3.6 dollars an hour is 1000 micro-dollars a second, A100 at 7.2 twice that; starts are a tick apart."""
    settings = PoolSettings(prices={"gpus": 9, "L4": 3.6, "A100": 7.2})
    nodes = (SimNode(name="a"), SimNode(name="b", gpu_model="A100"))
    with door(tmp_path, settings=settings, nodes=nodes) as ours:
        ours.pool.submit("ops", job="cheap", workers=2, gpu_model="L4", seconds="10")
        ours.pool.submit("ops", job="dear", gpu_model="A100", seconds="20")
        ours.pool.submit("research", job="other", gpus=0.5, gpu_model="A100", seconds="20")
        ours.pool.run(40)
        by = {name: ours.json("cost", "--by", name) for name in ("team", "job", "model")}
        money = {
            "team": [("ops", 60_000), ("research", 20_500)],
            "job": [("dear", 40_000), ("other", 20_500), ("cheap", 20_000)],
            "model": [("A100", 60_500), ("L4", 20_000)],
        }
        for name, key in (("team", "team"), ("job", "job"), ("model", "gpu_model")):
            rows = by[name][name + "s"]
            assert [(row[key], row["micro_dollars"]) for row in rows] == money[name]
            assert by[name]["total"]["micro_dollars"] == sum(row["micro_dollars"] for row in rows) == 80_500
            assert by[name]["total"]["milli_gpu_ns"] == sum(row["milli_gpu_ns"] for row in rows)
        shown = [line.split() for line in ours.run("cost", "--by", "model").stdout.splitlines()]
        assert shown == [
            ["model", "GPU", "seconds", "cost"],
            ["A100", "30.2", "$0.0605"],
            ["L4", "20.0", "$0.0200"],
            ["total", "50.2", "$0.0805"],
        ]
        jobs = [line.split() for line in ours.run("cost", "--by", "job", who="ops").stdout.splitlines()]
        assert [row[:2] for row in jobs[1:]] == [["dear", "ops"], ["cheap", "ops"], ["total", "40.0"]]
        assert "cheap" in ours.run("cost").stdout and "(all)" in ours.run("cost").stdout


def test_a_lease_over_two_models_is_billed_to_the_last_micro_dollar_and_so_when_resized() -> None:
    """7 and 5 micro-dollars an hour: an hour and a half is 18 in all, 10.5 and 7.5 apart."""
    hour = 3600 * 10**9
    tasks = [
        {"gpu_model": "A", "milli_gpu": 1000, "price": 7},
        {"gpu_model": "B", "milli_gpu": 1000, "price": 5},
    ]
    bill = Bill(lease="l", team="t", job="j", since_ns=0)
    bill.holds(tasks)
    assert bill.amounts(hour * 3 // 2) == {"A": (1500 * hour, 11), "B": (1500 * hour, 7)}
    bill.resized(hour * 3 // 2, tasks[1:])
    assert bill.amounts(2 * hour) == {"A": (1500 * hour, 10), "B": (2000 * hour, 10)}
    bill.until_ns = 2 * hour
    assert bill.amounts(9 * hour) == bill.amounts(2 * hour)
