"""Waiting in tests: for a condition, with a deadline, never for a time.

from waiting import until
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(predicate: Callable[[], T], timeout: float, what: str, *, every: float = 0.05) -> T:
    """Poll `predicate` until it answers something true, and return that.

    `timeout` and `every` in seconds. An AssertionError with `what` and the last answer when the time is up. An
    exception from `predicate` is not swallowed: a condition that may not be readable yet says so by answering
    a false value.
    """
    deadline = time.monotonic() + timeout
    idle = threading.Event()
    while True:
        answer = predicate()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            raise AssertionError(f"waited {timeout:g} s for {what}; the last answer was {answer!r}")
        idle.wait(every)


def holds(predicate: Callable[[], object], span: float, what: str, *, every: float = 0.05) -> None:
    """Assert that `predicate` stays true for `span` seconds: for what must *not* happen."""
    deadline = time.monotonic() + span
    idle = threading.Event()
    while time.monotonic() < deadline:
        answer = predicate()
        assert answer, (
            f"{what} held until {deadline - time.monotonic():.1f} s before the end; then {answer!r}"
        )
        idle.wait(every)
