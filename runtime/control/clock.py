"""Two clocks: wall time for people, control time for rules.

Control time never decreases, not over restarts either, and runs as the machine's monotonic clock does: setting the
wall clock, forward or back, expires nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Now:
    """One instant on both clocks, nanoseconds since 1970."""

    wall_ns: int
    control_ns: int


class Clock(Protocol):
    def now(self) -> Now:
        """The instant; `control_ns` is at least that of every earlier call."""

    def wall_ns(self) -> int:
        """Wall time alone."""

    def advance_to(self, control_ns: int) -> None:
        """Never answer less than this again: the last control time found in the store."""

    def go_on(self, control_ns: int, elapsed_ns: int) -> None:
        """Another control plane's clock said `control_ns`, and that was `elapsed_ns` ago."""


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

    def wall_ns(self) -> int:
        return self._wall()

    def advance_to(self, control_ns: int) -> None:
        with self._lock:
            self._last = max(self._last, control_ns)
            self._ahead = max(self._ahead, control_ns - self._monotonic())

    def go_on(self, control_ns: int, elapsed_ns: int) -> None:
        with self._lock:
            self._ahead = control_ns + elapsed_ns - self._monotonic()


class ManualClock:
    """A clock that only `tick` moves: for the simulated pool."""

    def __init__(self, start_ns: int = 10**18) -> None:
        self._now = start_ns

    def now(self) -> Now:
        return Now(self._now, self._now)

    def wall_ns(self) -> int:
        return self._now

    def advance_to(self, control_ns: int) -> None:
        self._now = max(self._now, control_ns)

    def go_on(self, control_ns: int, elapsed_ns: int) -> None:
        self.advance_to(control_ns)

    def tick(self, seconds: float) -> None:
        self._now += int(seconds * 1e9)


def machine() -> dict[str, Any]:
    """What tells, later, how long ago this was: the boot and its monotonic clock (ns)."""
    boot = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return {"boot": boot, "monotonic_ns": time.monotonic_ns()}


def time_since(said: Mapping[str, Any], wall_ns: int, server_ns: int | None) -> tuple[int, int] | None:
    """(control time, ns since then) of what a leader said of its clocks; None when it said nothing.

    By the monotonic clock of the same boot, else by the database server's clock, else by wall time, which somebody may
    have set in between. Never negative.
    """
    if "control_ns" not in said:
        return None
    here = machine()
    if here["boot"] and said.get("boot") == here["boot"] and here["monotonic_ns"] >= said["monotonic_ns"]:
        elapsed = here["monotonic_ns"] - said["monotonic_ns"]
    elif server_ns is not None and said.get("server_ns"):
        elapsed = server_ns - said["server_ns"]
    else:
        elapsed = wall_ns - said["wall_ns"]
    return int(said["control_ns"]), max(0, elapsed)
