"""The flights demo's inputs: what a row of each file must look like to be believed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moorage.runtime.features.clock import civil_minutes, days_in_month, local_to_utc
from moorage.runtime.features.history import ints
from moorage.runtime.features.schema import Field, Mask, Rule, TableSchema

ORIGIN_ZONE = "America/New_York"  # EWR, JFK and LGA
DAY = 24 * 60
Minutes = NDArray[np.int64]

# What a request says of a flight: the published schedule, nothing that only the day itself tells.
EVENT = pa.schema(
    [
        ("year", pa.int64()),
        ("month", pa.int64()),
        ("day", pa.int64()),
        ("sched_dep_time", pa.int64()),
        ("sched_arr_time", pa.int64()),
        ("carrier", pa.string()),
        ("flight", pa.int64()),
        ("tailnum", pa.string()),
        ("origin", pa.string()),
        ("dest", pa.string()),
        ("distance", pa.float64()),
    ]
)


def clock_minutes(column: pa.ChunkedArray) -> Minutes:
    """HHMM (up to 2400) as minutes of the day; null as -1."""
    values = column.fill_null(-1).to_numpy().astype(np.int64)
    return np.where(values < 0, -1, values // 100 * 60 + values % 100)


def _is_clock(name: str) -> Rule:
    def holds(rows: pa.Table) -> Mask:
        values = rows[name].fill_null(0).to_numpy()
        return np.asarray(values % 100 < 60)

    return Rule(name=f"{name}: no clock reading", holds=holds)


def _day_exists(rows: pa.Table) -> Mask:
    year, month, day = (ints(rows, name) for name in ("year", "month", "day"))
    return np.asarray(day <= days_in_month(year, month))


def departure_minutes(rows: pa.Table) -> tuple[Minutes, Mask]:
    """(scheduled departure in UTC minutes, whether the local clocks showed that reading)."""
    year, month, day = (ints(rows, name) for name in ("year", "month", "day"))
    return local_to_utc(civil_minutes(year, month, day, clock_minutes(rows["sched_dep_time"])), ORIGIN_ZONE)


def _reading_exists(rows: pa.Table) -> Mask:
    return _sane(rows, lambda good: departure_minutes(good)[1])


def _agrees_with_utc(rows: pa.Table) -> Mask:
    """The file's own UTC hour says the same as the local clock reading by the zone's rules."""

    def agrees(good: pa.Table) -> Mask:
        stated = pc.strptime(good["time_hour"], "%Y-%m-%dT%H:%M:%SZ", "s", error_is_null=True)
        hours = stated.cast(pa.int64()).fill_null(-1).to_numpy() // 3600
        return np.asarray(hours == departure_minutes(good)[0] // 60)

    return _sane(rows, agrees)


def _sane(rows: pa.Table, holds: Callable[[pa.Table], Mask]) -> Mask:
    """Applies a rule to the rows whose date and times can be computed with; the others already have their reason."""
    columns = [c for c in ("year", "month", "day", "sched_dep_time", "time_hour") if c in rows.column_names]
    usable = np.logical_and.reduce([np.asarray(rows[c].is_valid()) for c in columns])
    answer = np.ones(rows.num_rows, dtype=bool)
    answer[usable] = holds(rows.filter(pa.array(usable)))
    return answer


FLIGHTS = TableSchema(
    name="flights",
    fields=(
        Field(name="year", type="int", low=1990, high=2100),
        Field(name="month", type="int", low=1, high=12),
        Field(name="day", type="int", low=1, high=31),
        Field(name="dep_time", type="int", nullable=True, low=0, high=2400),
        Field(name="sched_dep_time", type="int", low=0, high=2359),
        Field(name="dep_delay", type="int", nullable=True, low=-120, high=3 * DAY),
        Field(name="arr_time", type="int", nullable=True, low=0, high=2400),
        Field(name="sched_arr_time", type="int", low=0, high=2400),
        Field(name="arr_delay", type="int", nullable=True, low=-240, high=3 * DAY),
        Field(name="carrier", type="string"),
        Field(name="flight", type="int", low=0),
        Field(name="tailnum", type="string", nullable=True),
        Field(name="origin", type="string", one_of=("EWR", "JFK", "LGA")),
        Field(name="dest", type="string"),
        Field(name="air_time", type="int", nullable=True, low=1, high=DAY),
        Field(name="distance", type="float", low=1, high=12_000),
        Field(name="time_hour", type="string"),
    ),
    rules=(
        Rule(name="day: not in that month", holds=_day_exists),
        _is_clock("sched_dep_time"),
        _is_clock("sched_arr_time"),
        _is_clock("dep_time"),
        _is_clock("arr_time"),
        Rule(name="sched_dep_time: skipped by the clocks that day", holds=_reading_exists),
        Rule(name="time_hour: disagrees with the local schedule", holds=_agrees_with_utc),
    ),
)
WEATHER_SCHEMA = TableSchema(
    name="weather",
    fields=(
        Field(name="origin", type="string", one_of=("EWR", "JFK", "LGA")),
        Field(name="time_hour", type="string"),
        Field(name="temp", type="float", nullable=True, low=-60, high=130),
        Field(name="dewp", type="float", nullable=True, low=-80, high=110),
        Field(name="humid", type="float", nullable=True, low=0, high=100),
        Field(name="wind_dir", type="float", nullable=True, low=0, high=360),
        Field(name="wind_speed", type="float", nullable=True, low=0, high=150),
        Field(name="wind_gust", type="float", nullable=True, low=0, high=250),
        Field(name="precip", type="float", nullable=True, low=0, high=15),
        Field(name="pressure", type="float", nullable=True, low=850, high=1100),
        Field(name="visib", type="float", nullable=True, low=0, high=100),
    ),
)
PLANES = TableSchema(
    name="planes",
    fields=(
        Field(name="tailnum", type="string"),
        Field(name="year", type="int", nullable=True, low=1940, high=2100),
        Field(name="seats", type="int", low=1, high=900),
    ),
)
AIRPORTS = TableSchema(
    name="airports",
    fields=(Field(name="faa", type="string"), Field(name="tzone", type="string", nullable=True)),
)
