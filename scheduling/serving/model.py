"""What is to be served, and what a placement of it says. Times in ms, rates per second, memory in MiB."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What is to be served. Times are in ms, rates per second."""

    name: str
    mib: int
    """Device memory of one replica: weights and what a request needs beside them."""
    service_ms: float
    """Mean time of one request on an otherwise idle device."""
    rate: float
    target_ms: float
    """A request answered within this time counts as attained."""
    service_scv: float = 0.0
    """Squared coefficient of variation (variance over mean squared) of the service time: 0 = always the same."""
    burst_scv: float = 1.0
    """That of the time between requests: 1 = Poisson, more = bursts."""

    def __post_init__(self) -> None:
        figures = (self.service_ms, self.rate, self.target_ms, self.service_scv, self.burst_scv)
        if not all(math.isfinite(f) for f in figures):
            raise ValueError(f"model {self.name}: every figure must be finite")
        if self.mib < 0 or self.service_ms <= 0 or self.rate < 0 or self.target_ms <= 0:
            raise ValueError(f"model {self.name}: needs mib >= 0, service_ms > 0, rate >= 0, target_ms > 0")
        if self.service_scv < 0 or self.burst_scv < 0:
            raise ValueError(f"model {self.name}: a squared coefficient of variation is not negative")

    @property
    def load(self) -> float:
        """Devices it keeps busy."""
        return self.rate * self.service_ms / 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a placement is measured by."""

    attained: float = 0.99
    """The share of a model's requests that should meet their target; beyond it only fewer devices count."""
    most_load: float = 0.8
    """The bound on interference: no device is loaded beyond it."""

    def __post_init__(self) -> None:
        if not 0 < self.attained < 1:
            raise ValueError(f"attained is a share between 0 and 1, got {self.attained:g}")
        if not 0 < self.most_load < 1:
            raise ValueError(f"most_load is a load between 0 and 1, got {self.most_load:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One copy of a model on a device. `milli_gpu` is its part of the load that the device may carry."""

    model: str
    device: int
    milli_gpu: int
    mib: int
    rate: float
    attained: float
    """Predicted share of its requests that meet their target."""
    latency_ms: float
    """Predicted latency that `Goal.attained` of its requests stay within."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unplaced:
    """A model that got no replica."""

    model: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What `pack` answers."""

    replicas: tuple[Replica, ...]
    attained: dict[str, float]
    """By model: predicted share of requests that meet their target; 0 for what is not placed."""
    load: tuple[float, ...]
    """By device."""
    unplaced: tuple[Unplaced, ...]

    @property
    def devices(self) -> int:
        """How many are used."""
        return len({r.device for r in self.replicas})
