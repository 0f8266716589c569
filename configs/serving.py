"""models.yaml: models to be served with their request rates, and the devices they may share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from moorage.configs.problems import explain, refuse_unknown
from moorage.configs.yamlio import load_mapping
from moorage.errors import InvalidRequest

MOST_MODELS = 200
MOST_DEVICES = 200
_STRICT = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Known(BaseModel):
    model_config = _STRICT

    @model_validator(mode="before")
    @classmethod
    def _keys(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(
                f"must be a mapping, not {type(value).__name__}"
            )  # pydantic catches ValueError only
        refuse_unknown(value, cls, "models.yaml")
        return value


class Served(_Known):
    """One model. Times in ms, rates per second."""

    mib: int = Field(ge=0, le=2**40)
    service_ms: float = Field(gt=0, le=1e9)
    rate: float = Field(ge=0, le=1e9)
    target_ms: float = Field(gt=0, le=1e9)
    service_scv: float = Field(default=0.0, ge=0, le=1e6)
    burst_scv: float = Field(default=1.0, ge=0, le=1e6)


class Devices(_Known):
    """Equal devices."""

    count: int = Field(ge=1, le=MOST_DEVICES)
    mib: int = Field(ge=0, le=2**40)


class Serving(_Known):
    """The whole file."""

    devices: list[Devices] = Field(min_length=1, max_length=MOST_DEVICES)
    models: dict[str, Served] = Field(min_length=1, max_length=MOST_MODELS)
    attained: float = Field(default=0.99, gt=0, lt=1)
    most_load: float = Field(default=0.8, gt=0, lt=1)

    @model_validator(mode="after")
    def _few(self) -> Serving:
        count = sum(d.count for d in self.devices)
        if count > MOST_DEVICES:
            raise ValueError(f"devices: {count} in all; at most {MOST_DEVICES}")
        return self


def load_serving(path: Path) -> Serving:
    """The file, checked; InvalidRequest names what is wrong and where."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidRequest(f"cannot read {path}", why=str(why), code="unreadable-file") from None
    try:
        return Serving.model_validate(load_mapping(text, path.name))
    except ValidationError as error:
        raise explain(error, path.name) from None
