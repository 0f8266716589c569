"""How busy a replica is: rows in flight over time, and how long rows took. No Ray.

The meter keeps the integral of the rows in flight, so whoever reads it twice knows the exact mean in between, however
seldom they read (Little's law then relates it to rate and latency). One event loop uses it: there are no locks.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

KEPT_S = 10.0
MOST_KEPT = 4096
"""Latencies of rows that ended within `KEPT_S`, the newest so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """`row_seconds` is the integral of the rows in flight up to `at_s`; `latency_ms` (the 95th percentile) is None when
    no row ended lately. `node` (Ray's id) and `devices` (indexes, the raylet's own book) say where the replica is."""

    at_s: float
    ongoing: int
    row_seconds: float
    rows: int
    latency_ms: float | None
    node: str = ""
    devices: tuple[int, ...] = ()

    @classmethod
    def of(cls, told: Mapping[str, object]) -> Reading:
        """From its JSON."""
        return cls(**{**told, "devices": tuple(told["devices"])})  # type: ignore[arg-type]


class LoadMeter:
    """`begin` when a row comes, `end` when it was answered, however; `read` at any time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ongoing, self._rows = 0, 0
        self._row_seconds, self._at = 0.0, clock()
        self._latencies: deque[tuple[float, float]] = deque(maxlen=MOST_KEPT)

    def begin(self) -> float:
        """What `end` wants to know."""
        now = self._advance()
        self._ongoing += 1
        return now

    def end(self, began: float) -> None:
        now = self._advance()
        self._ongoing -= 1
        self._rows += 1
        self._latencies.append((now, now - began))

    def read(self, node: str = "", devices: tuple[int, ...] = ()) -> Reading:
        now = self._advance()
        while self._latencies and self._latencies[0][0] < now - KEPT_S:
            self._latencies.popleft()
        taken = [seconds for _, seconds in self._latencies]
        return Reading(
            at_s=now,
            ongoing=self._ongoing,
            row_seconds=self._row_seconds,
            rows=self._rows,
            latency_ms=1000 * quantile(taken, 0.95) if taken else None,
            node=node,
            devices=devices,
        )

    def _advance(self) -> float:
        now = self._clock()
        self._row_seconds += self._ongoing * (now - self._at)
        self._at = now
        return now


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed (nearest rank)."""
    ordered = sorted(values)
    rank = -int(-share * len(ordered) // 1)  # the ceiling, without a float's rounding up of whole numbers
    return ordered[max(0, min(rank, len(ordered)) - 1)]


def mean_ongoing(before: Reading | None, now: Reading) -> float:
    """Rows in flight between two readings of one replica; as of now, when it is another process than before."""
    if before is None or now.at_s <= before.at_s or now.row_seconds < before.row_seconds:
        return float(now.ongoing)
    return (now.row_seconds - before.row_seconds) / (now.at_s - before.at_s)
