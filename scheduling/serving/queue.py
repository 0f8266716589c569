"""The wait on one device that several models share; the formulas and their sources are at the head of the package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from moorage.scheduling.serving.model import Model


@dataclass(frozen=True, slots=True)
class Wait:
    """The queue of one device."""

    load: float
    mean_ms: float

    def within(self, ms: float) -> float:
        """The share of requests that wait no longer."""
        if ms < 0:
            return 0.0
        if self.mean_ms <= 0:
            return 1.0
        return 1.0 - self.load * math.exp(-self.load * ms / self.mean_ms)

    def quantile(self, share: float) -> float:
        """The wait that this share of requests stays within."""
        if self.mean_ms <= 0 or self.load <= 1 - share:
            return 0.0
        return self.mean_ms / self.load * math.log(self.load / (1 - share))


def wait(streams: Sequence[tuple[Model, int]]) -> Wait:
    """The queue of a device which serves one of `k` replicas of each model: `(model, k)`.

    The load must be below 1.
    """
    rate = sum(m.rate / k for m, k in streams)
    if rate <= 0:
        return Wait(0.0, 0.0)
    mean = sum(m.rate / k * m.service_ms for m, k in streams) / rate
    square = sum(m.rate / k * m.service_ms**2 * (1 + m.service_scv) for m, k in streams) / rate
    arrivals = sum(m.rate / k * (1 + (m.burst_scv - 1) / k) for m, k in streams) / rate
    load = rate * mean / 1000
    service = square / mean**2 - 1
    return Wait(load, load / (1 - load) * mean * (arrivals + service) / 2)
