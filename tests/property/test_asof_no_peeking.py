"""D4, D8 (headline): no feature of the flights demo sees anything that was not known before scheduled departure.

Real flights of January. Two proofs that share no code with what they test: each window recomputed by brute
force from the raw file, and the future erased from the raw file with every feature unchanged.
"""

from __future__ import annotations

from functools import lru_cache

import flights_case
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from moorage.errors import DataError

flights_case.importable()
import flights_features  # noqa: E402
import flights_schema  # noqa: E402
import flights_state  # noqa: E402
from flights_features import FlightFeatures  # noqa: E402

OUTCOMES = ("dep_time", "dep_delay", "arr_time", "arr_delay", "air_time")
INTEGERS = ("year", "month", "day", "sched_dep_time", "sched_arr_time", "flight", *OUTCOMES)


@lru_cache(maxsize=1)
def january() -> pd.DataFrame:
    frame = flights_case.outcomes()
    return frame[frame.month == 1].reset_index(drop=True)


@lru_cache(maxsize=1)
def observations() -> pd.DataFrame:
    """Weather by the instant from which it may be used: the end of the hour that it is stamped with and sums over."""
    frame = flights_case.raw_weather()
    frame = frame[(frame.month == 1) & ~(frame.wind_speed > 150)].copy()
    frame["usable"] = pd.to_datetime(frame.time_hour) + pd.Timedelta(hours=1)
    return frame.reset_index(drop=True)


def built(flights: pd.DataFrame, weather: pd.DataFrame) -> FlightFeatures:
    planes = pd.read_csv(flights_case.DATA / "planes.csv")[["tailnum", "year", "seats"]]
    airports = pd.read_csv(flights_case.DATA / "airports.csv")[["faa", "tzone"]]
    raw = flights.drop(columns=["sched", "departed", "arrived"])
    features, _ = flights_state.fit(
        flights_case.arrow(raw, INTEGERS),
        flights_case.arrow(weather.drop(columns=["usable"]), ()),
        flights_case.arrow(planes, ("year", "seats")),
        flights_case.arrow(airports, ()),
    )
    return features


@lru_cache(maxsize=1)
def whole() -> FlightFeatures:
    return built(january(), observations())


def events(rows: pd.DataFrame) -> pa.Table:
    return flights_case.arrow(rows[flights_schema.EVENT.names], INTEGERS).cast(flights_schema.EVENT)


def test_each_window_equals_brute_force_over_what_was_known_strictly_before() -> None:
    flights = january()
    sample = flights[flights.day > 8].sample(80, random_state=20130101)
    got = whole().transform(events(sample)).to_pandas()
    impute = whole().constants["impute"]
    known = {
        "departures": (flights[["departed", "sched"]].max(axis=1, skipna=False), flights.dep_delay),
        "arrivals": (flights[["arrived", "sched"]].max(axis=1, skipna=False), flights.arr_delay),
    }
    filled = 0
    for name, key, history, hours in flights_features.WINDOWS:
        instants, delays = known[history]
        for position, (_, row) in enumerate(sample.iterrows()):
            same = np.logical_and.reduce([(flights[k] == row[k]).to_numpy() for k in key])
            for width in hours:
                start = row.sched - pd.Timedelta(hours=width)
                seen = delays[same & (instants >= start).to_numpy() & (instants < row.sched).to_numpy()]
                column = f"{name}_{width}h"
                assert got[f"{column}_n"].iloc[position] == len(seen), (column, row.flight_id)
                delay = seen.clip(-60, 180).mean() if len(seen) else impute[f"{column}_delay"]
                late = (seen > 15).mean() if len(seen) else impute[f"{column}_late"]
                assert got[f"{column}_delay"].iloc[position] == pytest.approx(delay, rel=1e-6), (
                    column,
                    row.flight_id,
                )
                assert got[f"{column}_late"].iloc[position] == pytest.approx(late, rel=1e-6), (
                    column,
                    row.flight_id,
                )
                filled += len(seen) > 0
    assert filled > 600, "the sample must exercise the windows, not their fallbacks"


def test_weather_is_the_last_hour_that_was_over() -> None:
    sample = january().sample(300, random_state=7)
    got = whole().transform(events(sample)).to_pandas()
    weather = observations()
    for position, (_, row) in enumerate(sample.iterrows()):
        usable = weather[(weather.origin == row.origin) & (weather.usable <= row.sched)]
        usable = usable[usable.usable >= row.sched - pd.Timedelta(hours=6)]
        if len(usable):
            last = usable.sort_values("usable").iloc[-1]
            assert got.weather_temp.iloc[position] == np.float32(last.temp)
            assert got.weather_precip.iloc[position] == np.float32(last.precip)
            assert got.weather_age.iloc[position] == (row.sched - last.usable).total_seconds() / 60


def test_erasing_the_future_from_the_files_changes_no_feature() -> None:
    flights, weather = january(), observations()
    busy = flights[flights.day > 2].groupby("sched").size().nlargest(40).index
    compared = 0
    for moment in busy[[0, 13, 26, 39]]:
        past = flights.copy()
        past.loc[~(past.departed < moment), list(OUTCOMES)] = np.nan
        past.loc[~(past.arrived < moment), ["arr_time", "arr_delay", "air_time"]] = np.nan
        blind = FlightFeatures(built(past, weather[weather.usable <= moment])._state, whole().constants)
        now = events(flights[flights.sched == moment])
        with_future, without = whole().transform(now), blind.transform(now)
        for name in with_future.column_names:
            assert with_future[name].equals(without[name]), f"{name} at {moment} knew the future"
        compared += now.num_rows
    assert compared > 60


def test_a_flight_that_leaves_early_does_not_see_its_own_departure() -> None:
    early = january()[january().dep_delay < -5].head(50)
    kept = whole().transform(events(early))
    for position, flight_id in enumerate(early.flight_id.head(5)):
        alone = built(january()[january().flight_id != flight_id], observations())
        other = FlightFeatures(alone._state, whole().constants).transform(events(early))
        for name in kept.column_names:
            assert kept[name][position] == other[name][position], (
                f"{name} of {flight_id} saw the flight itself"
            )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("month", 13),
        ("day", 32),
        ("sched_dep_time", 2460),
        ("sched_arr_time", 1275),
        ("sched_dep_time", -1),
        ("distance", float("nan")),
        ("distance", None),
        ("carrier", None),
        ("year", 10**15),
    ],
)
def test_an_event_that_cannot_be_is_refused_with_its_field(field: str, value: object) -> None:
    table = events(january().head(3))
    column = table[field].to_pylist()
    column[1] = value
    broken = table.set_column(table.column_names.index(field), field, pa.array(column, table[field].type))
    with pytest.raises(DataError) as caught:
        whole().transform(broken)
    assert caught.value.extra["field"] == field


def test_a_departure_the_clocks_skipped_or_a_missing_column_is_refused() -> None:
    table = events(january().head(1).assign(month=3, day=10, sched_dep_time=230))
    with pytest.raises(DataError, match="skipped"):
        whole().transform(table)
    with pytest.raises(DataError, match="lack distance"):
        whole().transform(table.drop_columns(["distance"]))
