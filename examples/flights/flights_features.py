"""Features of a flight at its scheduled departure: one definition for the training set and for the endpoint.

    features = FlightFeatures.load(version_dir)     # what the features job wrote
    table = features.transform(events)              # events: the columns of EVENT, as a published schedule has them

Whatever happened before the scheduled departure comes from the state beside the version: weather observations,
departures and arrivals, each with the minute from which it was known. All instants are minutes since the epoch
in UTC.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from flights_schema import DAY, EVENT, ORIGIN_ZONE, Minutes, clock_minutes, departure_minutes
from numpy.typing import NDArray

from moorage.errors import DataError
from moorage.runtime.features.clock import days_in_month, utc_offsets
from moorage.runtime.features.history import AsofTable, History, Vocabulary, floats, ints

Floats = NDArray[np.float64]
# Destinations that the airports file lacks, all in Puerto Rico and the Virgin Islands.
MORE_ZONES = dict.fromkeys(("SJU", "BQN", "STT", "PSE"), "America/Puerto_Rico")
HOUR = 60
LATE_MINUTES = 15
CLIP = (-60, 180)  # a wild delay must not own a window's mean; the late rate counts it all the same
GROUND_LIMIT = 5 * 60
WEATHER_TOLERANCE = 6 * 60
WEATHER = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")
MEASURES = ("delay", "late")
# (name, key, history, widths in hours): what became known in the hours before.
WINDOWS: tuple[tuple[str, tuple[str, ...], str, tuple[int, ...]], ...] = (
    ("dep_origin", ("origin",), "departures", (1, 3)),
    ("dep_origin_carrier", ("origin", "carrier"), "departures", (2, 6)),
    ("dep_dest", ("dest",), "departures", (3,)),
    ("arr_origin", ("origin",), "arrivals", (3, 24)),
    ("arr_carrier", ("carrier",), "arrivals", (3, 24)),
    ("arr_route", ("origin", "dest"), "arrivals", (24, 24 * 7)),
    ("arr_dest", ("dest",), "arrivals", (3,)),
    ("arr_flight", ("carrier", "flight"), "arrivals", (24 * 14,)),
    ("arr_tail", ("tailnum",), "arrivals", (24, 24 * 7)),
)
TEXT_CATEGORIES = ("carrier", "origin", "dest")
CATEGORICALS = (*TEXT_CATEGORIES, "weekday", "hour")
UNKNOWN = "<unknown>"
_STATE = ("weather", "departures", "arrivals", "schedule", "planes", "zones")
# Sines come from tables over whole minutes and degrees: vector code may round an element by its place in the array.
_SIN = {n: np.sin(2 * np.pi * np.arange(n) / n) for n in (360, 7, DAY)}
_COS = {n: np.cos(2 * np.pi * np.arange(n) / n) for n in (360, 7, DAY)}


class FlightFeatures:
    """The state of one version and the function from events to features."""

    def __init__(self, state: dict[str, pa.Table], constants: dict[str, Any]) -> None:
        self._state, self.constants = state, constants
        self._zones = dict(zip(*(state["zones"][c].to_pylist() for c in ("faa", "zone")), strict=True))
        self._planes = Vocabulary(state["planes"]["tailnum"].combine_chunks())
        self._plane = {name: floats(state["planes"], name) for name in ("year", "seats")}
        self._weather = AsofTable(state["weather"], by=("origin",), known="known", values=WEATHER)
        self._windows = [
            (name, History(state[events], by=by, known="known", measures=MEASURES), hours)
            for name, by, events, hours in WINDOWS
        ]
        self._schedule = History(state["schedule"], by=("origin",), known="known", measures=())
        self._categories = {c: Vocabulary(pa.array(constants["vocabulary"][c][1:])) for c in TEXT_CATEGORIES}

    @property
    def names(self) -> list[str]:
        """The numeric feature columns, in order."""
        return list(self.constants["features"])

    def save(self, folder: Path) -> None:
        """Writes the state tables and constants; `load` of the version's folder reads them back."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in _STATE:
            pq.write_table(self._state[name], folder / f"{name}.parquet", compression="zstd")
        (folder / "constants.json").write_text(json.dumps(self.constants, indent=1) + "\n")

    @classmethod
    def load(cls, version_dir: str | Path) -> FlightFeatures:
        """From a version's folder. Raises DataError (code `data-unreadable`) naming the file that cannot be read."""
        folder = Path(version_dir) / "state"
        path = folder / "constants.json"
        try:
            constants = json.loads(path.read_text())
            state = {}
            for name in _STATE:
                path = folder / f"{name}.parquet"
                state[name] = pq.read_table(path)
        except (OSError, ValueError) as error:
            raise DataError(
                f"Cannot read {path}", why=str(error), todo="recompute the version", code="data-unreadable"
            ) from error
        return cls(state, constants)

    def transform(self, events: pa.Table) -> pa.Table:
        """The features of each event: float32 columns `names`, all finite, then int32 columns CATEGORICALS.

        Raises DataError when a column of EVENT is missing, of another type, or null (only `tailnum` may be
        null), or when a scheduled departure names a local time that the clocks skipped.
        """
        rows = _events(events)
        at, exists = departure_minutes(rows)
        if not exists.all():
            raise DataError(
                "sched_dep_time names a minute the clocks skipped that day",
                code="data-invalid",
                field="sched_dep_time",
            )
        columns = self._numeric(rows, at)
        impute = self.constants["impute"]
        out: dict[str, NDArray[Any]] = {}
        for name in self.constants["features"]:
            values = columns[name]
            out[name] = np.where(np.isfinite(values), values, impute.get(name, 0.0)).astype(np.float32)
        out |= self._categorical(rows)
        return pa.table(out)

    def _numeric(self, rows: pa.Table, at: Minutes) -> dict[str, Floats]:
        minute = clock_minutes(rows["sched_dep_time"])
        columns: dict[str, Floats] = {
            "minute_sin": _SIN[DAY][minute % DAY],
            "minute_cos": _COS[DAY][minute % DAY],
            "distance": floats(rows, "distance"),
            "block_minutes": self._block_minutes(rows, at).astype(np.float64),
        }
        weekday = _weekday(rows)
        columns |= {"weekday_sin": _SIN[7][weekday], "weekday_cos": _COS[7][weekday]}
        columns |= self._plane_columns(rows) | self._weather_columns(rows, at)
        columns["sched_origin_1h_n"] = self._schedule.before(rows, at, [HOUR])[0]["n"]
        for name, history, hours in self._windows:
            for width, stats in zip(hours, history.before(rows, at, [h * HOUR for h in hours]), strict=True):
                columns |= {f"{name}_{width}h_{stat}": values for stat, values in stats.items()}
        return columns

    def _block_minutes(self, rows: pa.Table, at: Minutes) -> Minutes:
        """Scheduled minutes gate to gate; a destination whose zone nobody knows is taken to be in the origin's."""
        zones = np.array([self._zones.get(d, ORIGIN_ZONE) for d in rows["dest"].to_pylist()], dtype=object)
        departs = at.copy()
        for zone in sorted(set(zones.tolist())):
            there = zones == zone
            departs[there] += utc_offsets(at[there], zone)
        return (clock_minutes(rows["sched_arr_time"]) - departs) % DAY

    def _plane_columns(self, rows: pa.Table) -> dict[str, Floats]:
        code = self._planes.encode(rows["tailnum"].combine_chunks())
        known, index = code >= 0, np.maximum(code, 0)
        built = np.where(known, self._plane["year"][index], np.nan)
        return {
            "plane_age": np.maximum(floats(rows, "year") - built, 0.0),
            "plane_seats": np.where(known, self._plane["seats"][index], np.nan),
            "plane_known": known.astype(np.float64),
        }

    def _weather_columns(self, rows: pa.Table, at: Minutes) -> dict[str, Floats]:
        values, age = self._weather.lookup(rows, at, tolerance=WEATHER_TOLERANCE)
        wind = values.pop("wind_dir")
        degrees = np.where(np.isfinite(wind), wind, 0.0).astype(np.int64) % 360
        columns = {f"weather_{name}": column for name, column in values.items()}
        columns["weather_wind_sin"] = np.where(np.isfinite(wind), _SIN[360][degrees], 0.0)
        columns["weather_wind_cos"] = np.where(np.isfinite(wind), _COS[360][degrees], 0.0)
        # No gust is reported when there is none to speak of: the steady wind is then the gust.
        columns["weather_wind_gust"] = np.fmax(columns["weather_wind_gust"], columns["weather_wind_speed"])
        columns["weather_age"] = np.where(np.isfinite(age), age, float(WEATHER_TOLERANCE))
        return columns

    def _categorical(self, rows: pa.Table) -> dict[str, NDArray[np.int32]]:
        codes = {c: v.encode(rows[c].combine_chunks()) + 1 for c, v in self._categories.items()}
        codes["weekday"] = _weekday(rows)
        codes["hour"] = clock_minutes(rows["sched_dep_time"]) // HOUR % 24
        return {name: codes[name].astype(np.int32) for name in CATEGORICALS}


def _events(events: pa.Table) -> pa.Table:
    missing = [name for name in EVENT.names if name not in events.column_names]
    if missing:
        raise DataError(
            f"The events lack {', '.join(missing)}",
            todo="give all columns of EVENT",
            code="data-schema",
            field=missing[0],
        )
    try:
        rows = events.select(EVENT.names).cast(EVENT)
    except pa.ArrowException as error:
        raise DataError("The events do not have EVENT's types", why=str(error), code="data-schema") from error
    for name in EVENT.names:
        if name != "tailnum" and rows[name].null_count:
            raise DataError(f"{name} is missing in an event", code="data-invalid", field=name)
    for name, sound in _expectations(rows).items():
        if not sound.all():
            row = int(np.argmin(sound))
            raise DataError(
                f"{name} of event {row} cannot be: {rows[name][row].as_py()}", code="data-invalid", field=name
            )
    return rows


def _expectations(rows: pa.Table) -> dict[str, NDArray[np.bool_]]:
    """Per column, which rows have a value that a calendar, a clock or a map can have."""
    year, month, day = (ints(rows, name) for name in ("year", "month", "day"))
    distance = floats(rows, "distance")
    sound = {
        "year": (year >= 1990) & (year <= 2100),
        "month": (month >= 1) & (month <= 12),
        "day": (day >= 1) & (day <= days_in_month(year, month)),
        "distance": (distance >= 1) & (distance <= 12_000),
    }
    for name, last in (("sched_dep_time", 2359), ("sched_arr_time", 2400)):
        clock = ints(rows, name)
        sound[name] = (clock >= 0) & (clock <= last) & (clock % 100 < 60)
    return sound


def _weekday(rows: pa.Table) -> Minutes:
    """0 is Monday, by the local date."""
    year, month, day = (ints(rows, name) for name in ("year", "month", "day"))
    months = ((year - 1970) * 12 + month - 1).astype("datetime64[M]")
    return (months.astype("datetime64[D]").astype(np.int64) + day - 1 + 3) % 7  # 1970-01-01 was a Thursday


def split_of(month: Minutes) -> NDArray[np.str_]:
    """January to June trains, July is the gate's holdout, the rest is only reported on."""
    return np.where(month <= 6, "train", np.where(month == 7, "gate", "test"))
