"""Waiting in tests: for a condition, with a deadline, never for a time.

from waiting import until
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def until(predicate: Callable[[], T], timeout: float, what: str, *, every: float = 0.05) -> T:
    """Poll `predicate` until it answers something true, and return that.

    `timeout` and `every` in seconds. An AssertionError with `what` and the last answer when the time is up. A server
    that does not answer in time has not answered yet; any other exception from `predicate` is not swallowed.
    """
    deadline = time.monotonic() + timeout
    idle = threading.Event()
    while True:
        answer: Any
        try:
            answer = predicate()
        except Exception as error:
            if not _is_away(error):
                raise
            answer = None
            last = repr(error)
        else:
            last = repr(answer)
        if answer:
            return answer  # type: ignore[no-any-return]
        if time.monotonic() >= deadline:
            raise AssertionError(f"waited {timeout:g} s for {what}; the last answer was {last}")
        idle.wait(every)


def _is_away(error: Exception) -> bool:
    """Whether a process that was asked did not answer: by the classes of those modules that anybody has imported."""
    names = {"httpx": ("NetworkError", "TimeoutException", "RemoteProtocolError")}
    names["moorage.cluster.backend"] = ("BackendUnavailable",)
    kinds = [
        getattr(sys.modules[module], name)
        for module, found in names.items()
        if module in sys.modules
        for name in found
    ]
    return isinstance(error, tuple(kinds)) or _is_busy(error)


def _is_busy(error: Exception) -> bool:
    """`raise_for_status` of an answer that says: try again."""
    answer = getattr(error, "response", None)
    return getattr(answer, "status_code", None) == 503


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
