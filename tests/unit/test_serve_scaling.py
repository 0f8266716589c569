"""How many replicas a load wants, and when that is acted upon (V4)."""

from __future__ import annotations

from typing import Any

import pytest

from moorage.errors import InvalidRequest
from moorage.serve.load import LoadMeter, Reading, mean_ongoing, quantile
from moorage.serve.scaling import ScalePolicy, Wanted, proposal

LATE = ScalePolicy(max_replicas=8, target_ongoing=10, target_latency_ms=100)


@pytest.mark.parametrize(
    ("ongoing", "wanted"), [(0, 1), (10, 1), (10.01, 2), (30, 3), (30 + 1e-12, 3), (79.9, 8), (1e6, 8)]
)
def test_as_many_as_bring_the_rows_in_flight_to_the_target(ongoing: float, wanted: int) -> None:
    policy = ScalePolicy(max_replicas=8, target_ongoing=10)
    assert proposal(policy, 1, ongoing, 9e9) == wanted, "without a latency target latency says nothing"


@pytest.mark.parametrize(
    ("serving", "ongoing", "latency", "wanted"),
    [
        (2, 5, 109, 2),  # within the tolerance: stays, and is not taken away
        (2, 5, 111, 3),
        (2, 5, 190, 4),
        (2, 5, 900, 4),  # twofold at most
        (2, 5, 71, 2),
        (2, 5, 69, 1),  # comfortable: the rows in flight decide
        (2, 50, 69, 5),
        (2, 5, None, 1),  # nothing was answered lately
        (8, 5, 900, 8),
        (0, 5, 900, 1),
    ],
)
def test_latency_asks_for_more_and_holds_but_never_shrinks(
    serving: int, ongoing: float, latency: float | None, wanted: int
) -> None:
    assert proposal(LATE, serving, ongoing, latency) == wanted


def run(policy: ScalePolicy, loads: list[tuple[float, float]]) -> list[int]:
    wanted = Wanted(policy)
    return [wanted.decide(at, 1, ongoing, None) for at, ongoing in loads]


def test_a_short_peak_starts_nothing_and_a_short_dip_ends_nothing() -> None:
    policy = ScalePolicy(max_replicas=8, target_ongoing=1, upscale_delay_s=2, downscale_delay_s=4)
    peak = [(0, 1), (1, 1), (2, 9), (3, 1), (4, 1), (5, 1)]
    assert run(policy, peak) == [1] * 6
    rises = [(0, 1), (2, 1), (3, 3), (4, 5), (5, 4), (6, 4)]
    assert run(policy, rises) == [1, 1, 1, 1, 3, 4], "what the whole window asked for at least"
    dip = [(0, 5), (2, 5), (3, 1), (4, 5), (5, 2), (6, 3), (7, 2), (8, 2), (9, 2), (10, 1), (13, 1)]
    assert run(policy, dip) == [1, 5, 5, 5, 5, 5, 5, 5, 3, 3, 2]


def test_the_first_window_must_be_full() -> None:
    policy = ScalePolicy(max_replicas=8, target_ongoing=1, upscale_delay_s=5, downscale_delay_s=5)
    assert run(policy, [(100, 8), (103, 8), (105, 8)]) == [1, 1, 8]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_replicas": 0},
        {"max_replicas": 2, "min_replicas": 3},
        {"max_replicas": 2, "min_replicas": 0},
        {"max_replicas": 2, "target_ongoing": 0},
        {"max_replicas": 2, "target_ongoing": float("nan")},
        {"max_replicas": 2, "target_latency_ms": -1},
        {"max_replicas": 2, "downscale_delay_s": -1},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        ScalePolicy(**wrong)
    assert refused.value.code == "scale-policy"


def test_the_meter_knows_the_mean_between_any_two_readings() -> None:
    now = [0.0]
    meter = LoadMeter(lambda: now[0])
    first = meter.read("n", (3,))
    a = meter.begin()
    now[0] = 1.0
    b = meter.begin()
    now[0] = 3.0
    meter.end(a)
    now[0] = 4.0
    second = meter.read()
    assert (first.node, first.devices, first.latency_ms) == ("n", (3,), None)
    assert (second.ongoing, second.rows, second.latency_ms) == (1, 1, 3000)
    assert mean_ongoing(first, second) == (1 * 1 + 2 * 2 + 1 * 1) / 4
    meter.end(b)
    now[0] = 12.0
    assert meter.read().latency_ms == 3000, "of the row that ended eight seconds ago"
    now[0] = 15.0
    assert meter.read().latency_ms is None, "rows that ended long ago say nothing of now"


def test_a_replica_that_was_started_anew_begins_anew() -> None:
    before = Reading(at_s=50, ongoing=1, row_seconds=99, rows=9, latency_ms=None)
    after = Reading(at_s=60, ongoing=4, row_seconds=3, rows=1, latency_ms=None)
    assert mean_ongoing(before, after) == 4 and mean_ongoing(None, after) == 4
    assert mean_ongoing(after, after) == 4


def test_quantiles_are_by_nearest_rank() -> None:
    assert [quantile([5, 1, 4, 2, 3], q) for q in (0.2, 0.21, 0.95, 1.0)] == [1, 2, 5, 5]
    assert quantile([7], 0.95) == 7
    assert quantile(list(range(1, 101)), 0.95) == 95
