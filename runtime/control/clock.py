"""Two clocks: wall time for people, control time for rules. Control time never decreases, not over restarts either."""

from __future__ import annotations

import threading
import time
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
    """Wall time of the machine; control time follows it, and creeps (1 ns a call) while it is set back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def now(self) -> Now:
        wall = time.time_ns()
        with self._lock:
            self._last = max(self._last + 1, wall)
            return Now(wall, self._last)

    def advance_to(self, control_ns: int) -> None:
        with self._lock:
            self._last = max(self._last, control_ns)


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
