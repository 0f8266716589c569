"""The flights endpoint: what a caller sends and gets, and the model that answers. The same feature code as
training.

Used by serve_models.py (the job), load.py (the client) and the benchmark: one contract, three users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from flights_features import EVENT, FlightFeatures
from flights_schema import ORIGIN_ZONE
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from moorage.runtime.features.clock import civil_minutes, days_in_month, local_to_utc
from moorage.serve.batching import BatchLimits
from moorage.serve.contract import Answer, Request


def _clock_reading(value: int) -> int:
    if value % 100 >= 60:
        raise ValueError("minutes go to 59")
    return value


Code = Annotated[str, Field(min_length=2, max_length=3, pattern="^[A-Z0-9]+$")]
Departure = Annotated[
    int, Field(ge=0, le=2359, description="local time as HHMM"), AfterValidator(_clock_reading)
]
Arrival = Annotated[
    int, Field(ge=0, le=2400, description="local time as HHMM"), AfterValidator(_clock_reading)
]


class FlightRequest(Request):
    """A scheduled flight out of New York, as the published schedule has it: nothing the day itself tells.

    Refuses whatever `FlightFeatures.transform` would: there it fails a batch, here it names the field.
    """

    year: int = Field(ge=1990, le=2100)
    month: int = Field(ge=1, le=12)
    day: int = Field(ge=1, le=31)
    sched_dep_time: Departure
    sched_arr_time: Arrival
    carrier: Code
    flight: int = Field(ge=0, le=99999)
    tailnum: str | None = Field(max_length=10, description="null when no plane is assigned yet")
    origin: Code
    dest: Code
    distance: float = Field(ge=1, le=12_000, description="miles")

    @field_validator("day")
    @classmethod
    def _day_exists(cls, day: int, info: ValidationInfo) -> int:
        """`info.data` holds the fields before this one that were sound."""
        if {"year", "month"} <= info.data.keys() and day > int(
            days_in_month(_one(info.data["year"]), _one(info.data["month"]))[0]
        ):
            raise ValueError("that month has fewer days")
        return day

    @field_validator("sched_dep_time")
    @classmethod
    def _reading_exists(cls, reading: int, info: ValidationInfo) -> int:
        if {"year", "month", "day"} <= info.data.keys():
            date = [_one(info.data[name]) for name in ("year", "month", "day")]
            local = civil_minutes(*date, _one(reading // 100 * 60 + reading % 100))
            if not local_to_utc(local, ORIGIN_ZONE)[1][0]:
                raise ValueError("the clocks skipped this time that day")
        return reading


def _one(value: int) -> NDArray[np.int64]:
    return np.array([value], dtype=np.int64)


class FlightAnswer(Answer):
    """Will it arrive more than 15 minutes late?"""

    probability: float = Field(ge=0, le=1)
    late: bool = Field(description="probability above one half")


@dataclass(frozen=True)
class Artifact:
    """A model that the registry resolved: plain strings, so that it travels to a replica."""

    name: str
    version: str
    path: str
    sha256: str
    features: str  # directory of the feature version


class FlightsPredictor:
    """CPU pre-processing and inference: one `transform` and one forward per batch."""

    def __init__(self, artifact: Artifact) -> None:
        import flights_model
        import torch

        from moorage.runtime.registry.sealed import Damaged, verify

        torch.set_num_threads(1)  # replicas share the machine: more threads only fight
        if verify(Path(artifact.path)).sha256 != artifact.sha256:
            raise Damaged(f"{artifact.path} is not the artifact the registry resolved")
        self._flights_model, self._torch = flights_model, torch
        self._model, self._card = flights_model.load(artifact.path)
        self._features = FlightFeatures.load(artifact.features)
        self.name, self.version = artifact.name, artifact.version
        self.data_version = str(self._card["data_version"])
        self._numeric = flights_model.feature_names(self._card)
        self._categories = list(flights_model.cardinalities(self._card))

    def predict(self, rows: Sequence[FlightRequest]) -> list[Mapping[str, Any]]:
        columns = {field.name: [getattr(row, field.name) for row in rows] for field in EVENT}
        table = self._features.transform(pa.table(columns, schema=EVENT))
        batch = self._flights_model.Rows(
            self._stack(table, self._numeric, np.float32),
            self._stack(table, self._categories, np.int64),
            self._torch.empty(len(rows)),
        )
        probabilities = self._flights_model.predict(self._model, batch)
        return [{"probability": float(p), "late": bool(p > 0.5)} for p in probabilities]

    def _stack(self, table: pa.Table, names: Sequence[str], kind: type[np.generic]) -> Any:
        out = np.empty((table.num_rows, len(names)), kind)
        for place, name in enumerate(names):
            out[:, place] = table[name].to_numpy()
        return self._torch.from_numpy(out)


def loader(artifact: Artifact) -> partial[FlightsPredictor]:
    """What `HostSpec.load` wants: makes the predictor, on the worker."""
    return partial(FlightsPredictor, artifact)


# A batch costs 4 ms for one row and 6 ms for 64 (2 cores): under load it pays to wait for more rows.
LIMITS = BatchLimits(max_rows=64, wait_ms=8)
