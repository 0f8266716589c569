"""The flights endpoint's contract says no to whatever its feature code would say no to (V1, D4)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "flights"))

import flights_features
from flights_endpoint import FlightRequest
from flights_schema import EVENT, departure_minutes

from moorage.errors import DataError

GOOD: dict[str, Any] = {
    "year": 2013,
    "month": 7,
    "day": 31,
    "sched_dep_time": 2359,
    "sched_arr_time": 2400,
    "carrier": "UA",
    "flight": 1545,
    "tailnum": None,
    "origin": "EWR",
    "dest": "IAH",
    "distance": 1400.0,
}


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("year", {"year": 1989}),
        ("month", {"month": 13}),
        ("day", {"month": 2, "day": 29}),
        ("day", {"month": 6, "day": 31}),
        ("sched_dep_time", {"sched_dep_time": 1275}),
        ("sched_dep_time", {"sched_dep_time": 2400}),
        ("sched_dep_time", {"month": 3, "day": 10, "sched_dep_time": 230}),  # the clocks go forward
        ("sched_arr_time", {"sched_arr_time": 1160}),
        ("distance", {"distance": 0.5}),
        ("distance", {"distance": 12_500.0}),
        ("distance", {"distance": float("nan")}),
    ],
)
def test_what_the_features_refuse_is_refused_by_name(field: str, change: dict[str, Any]) -> None:
    """V1: such a row must be a 422 that names its field; past the contract it would be a 500."""
    row = {**GOOD, **change}
    assert not features_take(row)
    with pytest.raises(ValidationError) as refused:
        FlightRequest.model_validate(row)
    assert [error["loc"] for error in refused.value.errors()] == [(field,)]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"year": 2016, "month": 2, "day": 29},
        {"sched_dep_time": 0},
        {"month": 11, "day": 3, "sched_dep_time": 130},
    ],
)
def test_what_the_features_take_is_taken(change: dict[str, Any]) -> None:
    row = {**GOOD, **change}
    assert features_take(row)
    assert FlightRequest.model_validate(row).model_dump() == row


def features_take(row: dict[str, Any]) -> bool:
    """Whether `FlightFeatures.transform` would compute this row: its own checks, without a state."""
    try:
        rows = flights_features._events(pa.table({name: [row[name]] for name in EVENT.names}, EVENT))
    except DataError:
        return False
    return bool(departure_minutes(rows)[1].all())
