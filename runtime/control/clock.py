"""Two clocks: wall time for people, control time for rules.

Control time never decreases, not over restarts either, and runs as the machine's monotonic clock does: setting the
wall clock, forward or back, expires nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Now:
    """One instant on both clocks, nanoseconds since 1970."""

    wall_ns: int
    control_ns: int


class Clock(Protocol):
    def now(self) -> Now:
        """The instant; `control_ns` is at least that of every earlier call."""

    def advance_to(self, control_ns: int) -> None:
        """Never answer less than this again: the last control time found in the store."""


class SystemClock:
    """Wall time of the machine; control time begins as wall time when the process starts, and then goes its own way.
    `wall` and `monotonic` answer nanoseconds."""

    def __init__(
        self, wall: Callable[[], int] = time.time_ns, monotonic: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._lock = threading.Lock()
        self._wall, self._monotonic = wall, monotonic
        self._ahead = wall() - monotonic()
        """Of control time to the monotonic clock."""
        self._last = 0

    def now(self) -> Now:
        with self._lock:
            self._last = max(self._last + 1, self._ahead + self._monotonic())
            return Now(self._wall(), self._last)

    def advance_to(self, control_ns: int) -> None:
        with self._lock:
            self._last = max(self._last, control_ns)
            self._ahead = max(self._ahead, control_ns - self._monotonic())


class ManualClock:
    """A clock that only `tick` moves: for the simulated pool."""

    def __init__(self, start_ns: int = 10**18) -> None:
        self._now = start_ns

    def now(self) -> Now:
        return Now(self._now, self._now)

    def advance_to(self, control_ns: int) -> None:
        self._now = max(self._now, control_ns)

    def tick(self, seconds: float) -> None:
        self._now += int(seconds * 1e9)
