"""What the features job learns from the files: when each thing was known, and constants from the training months."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from flights_features import (
    CATEGORICALS,
    CLIP,
    GROUND_LIMIT,
    HOUR,
    LATE_MINUTES,
    MEASURES,
    MORE_ZONES,
    TEXT_CATEGORIES,
    UNKNOWN,
    WEATHER,
    WINDOWS,
    FlightFeatures,
    split_of,
)
from flights_schema import DAY, Minutes, clock_minutes, departure_minutes
from numpy.typing import NDArray

from moorage.errors import DataError
from moorage.runtime.features.clock import utc_offsets
from moorage.runtime.features.history import Vocabulary, floats, ints

EVENT_COLUMNS = ("origin", "carrier", "dest", "flight", "tailnum")


def weather_state(weather: pa.Table) -> pa.Table:
    """The observations with `known`, the minute from which each may be used.

    An observation is stamped with the hour it falls in, its precipitation is the hour's sum, and the file does
    not say at which minute it was made: it is known when the hour is over.
    """
    stamp = pc.strptime(weather["time_hour"], "%Y-%m-%dT%H:%M:%SZ", "s").cast(pa.int64()).to_numpy() // 60
    return weather.select(["origin", *WEATHER]).append_column("known", pa.array(stamp + HOUR))


def arrival_minutes(flights: pa.Table, zones: dict[str, str]) -> tuple[Minutes, NDArray[np.bool_]]:
    """(instant of arrival in UTC minutes, whether it is certain) of flights; rows that did not land are not certain.

    The file gives the arrival as a local clock reading at the destination: it is the first such reading after
    the actual departure plus the time in the air. More than five hours between that and the reading is not
    believed.
    """
    scheduled, _ = departure_minutes(flights)
    landed = np.asarray(flights["arr_delay"].is_valid()) & np.asarray(flights["arr_time"].is_valid())
    airborne = scheduled + ints_or(flights, "dep_delay") + ints_or(flights, "air_time")
    zone = np.array([zones.get(d, "") for d in flights["dest"].to_pylist()], dtype=object)
    arrived, certain = airborne.copy(), np.zeros(flights.num_rows, dtype=bool)
    for name in sorted(set(zone.tolist()) - {""}):
        there = (zone == name) & landed
        local = airborne[there] + utc_offsets(airborne[there], name)
        ground = (clock_minutes(flights["arr_time"].filter(pa.array(there))) - local) % DAY
        arrived[there] += ground
        certain[there] = ground <= GROUND_LIMIT
    return arrived, certain


def ints_or(table: pa.Table, name: str, default: int = 0) -> Minutes:
    """A column as int64, null as `default`."""
    return table[name].fill_null(default).to_numpy().astype(np.int64)


def _history(flights: pa.Table, happened: Minutes, delay: Minutes, keep: NDArray[np.bool_]) -> pa.Table:
    """Events with `known`: when it happened, but not before the flight's own scheduled departure.

    More than half of the flights leave a few minutes early: without the second half a flight would see its own
    departure.
    """
    scheduled, _ = departure_minutes(flights)
    rows = flights.select(EVENT_COLUMNS)
    rows = rows.append_column("known", pa.array(np.maximum(happened, scheduled)))
    rows = rows.append_column("delay", pa.array(np.clip(delay, *CLIP)))
    rows = rows.append_column("late", pa.array((delay > LATE_MINUTES).astype(np.int64)))
    return rows.filter(pa.array(keep)).sort_by("known")


def fit(
    flights: pa.Table, weather: pa.Table, planes: pa.Table, airports: pa.Table
) -> tuple[FlightFeatures, dict[str, int]]:
    """The state and constants from checked tables, and how many flights each history took and left out."""
    zoned = airports.filter(airports["tzone"].is_valid())
    zones = MORE_ZONES | dict(zip(zoned["faa"].to_pylist(), zoned["tzone"].to_pylist(), strict=True))
    scheduled, _ = departure_minutes(flights)
    departed = np.asarray(flights["dep_delay"].is_valid())
    dep_delay, arr_delay = ints_or(flights, "dep_delay"), ints_or(flights, "arr_delay")
    arrived, certain = arrival_minutes(flights, zones)
    planes = planes.select(["tailnum", "year", "seats"])
    state = {
        "weather": weather_state(weather),
        "departures": _history(flights, scheduled + dep_delay, dep_delay, departed),
        "arrivals": _history(flights, arrived, arr_delay, certain),
        "schedule": flights.select(["origin"]).append_column("known", pa.array(scheduled)).sort_by("known"),
        "planes": planes,
        "zones": pa.table({"faa": list(zones), "zone": list(zones.values())}),
    }
    counts = {
        "departures": int(departed.sum()),
        "departures_none": int((~departed).sum()),
        "arrivals": int(certain.sum()),
        "arrivals_none_or_uncertain": int((~certain).sum()),
    }
    return FlightFeatures(state, _constants(flights, state)), counts


def _constants(flights: pa.Table, state: dict[str, pa.Table]) -> dict[str, Any]:
    """Vocabularies and what stands in for a missing value, from the training months alone."""
    train = flights.filter(pa.array(split_of(ints(flights, "month")) == "train"))
    if train["arr_delay"].null_count == train.num_rows:
        raise DataError(
            "No flight of January to June that arrived is left after the checks",
            why="vocabularies and medians come from those months",
            todo="look at the quarantine reasons above",
            code="data-empty",
        )
    end = int(departure_minutes(train)[0].max())
    past = {
        name: t.filter(pc.less_equal(t["known"], end))
        for name, t in state.items()
        if "known" in t.column_names
    }
    impute = {f"weather_{n}": _median(floats(past["weather"], n)) for n in WEATHER if n != "wind_dir"}
    fleet = dict(zip(state["planes"]["tailnum"].to_pylist(), range(state["planes"].num_rows), strict=True))
    used = np.array([fleet[t] for t in train["tailnum"].to_pylist() if t in fleet], dtype=np.int64)
    impute["plane_age"] = float(
        int(train["year"][0].as_py()) - _median(floats(state["planes"], "year")[used])
    )
    impute["plane_seats"] = _median(floats(state["planes"], "seats")[used])
    for name, _, events, hours in WINDOWS:
        for width in hours:
            for measure in MEASURES:
                impute[f"{name}_{width}h_{measure}"] = float(np.mean(floats(past[events], measure)))
    return {
        "features": feature_names(),
        "impute": impute,
        "vocabulary": {
            c: [UNKNOWN, *Vocabulary.of(train[c].combine_chunks()).values.to_pylist()]
            for c in TEXT_CATEGORIES
        },
    }


def _median(values: NDArray[np.float64]) -> float:
    return float(np.nanmedian(values))


def feature_names() -> list[str]:
    """The numeric features, in the order of their columns."""
    names = ["minute_sin", "minute_cos", "weekday_sin", "weekday_cos", "distance", "block_minutes"]
    names += ["plane_age", "plane_seats", "plane_known"]
    names += [f"weather_{n}" for n in WEATHER if n != "wind_dir"]
    names += ["weather_wind_sin", "weather_wind_cos", "weather_age", "sched_origin_1h_n"]
    return names + [f"{w}_{h}h_{s}" for w, _, _, hours in WINDOWS for h in hours for s in ("n", *MEASURES)]


def categoricals(constants: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """For the manifest: cardinality and vocabulary (the index is the code) of each categorical column."""
    words = dict(constants["vocabulary"])
    words["weekday"] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
    words["hour"] = [str(hour) for hour in range(24)]
    return {c: {"cardinality": len(words[c]), "vocabulary": words[c]} for c in CATEGORICALS}
