"""The one table of job state transitions, each edge with the reasons it may be taken for. Pure.

`records.transition` is the only function that writes a job's state, and it asks this table first.
"""

from __future__ import annotations

from collections.abc import Mapping

from moorage.errors import MoorageError
from moorage.runtime.control.api import (
    ADMITTED,
    FAILED,
    FINAL,
    PENDING,
    PREEMPTING,
    QUARANTINED,
    RUNNING,
    STARTING,
    STOPPED,
    SUCCEEDED,
)

NEW = ""
"""Before the first state."""

TRANSITIONS: Mapping[tuple[str, str], tuple[str, ...]] = {
    (NEW, PENDING): ("submitted",),
    (PENDING, ADMITTED): ("lease-granted",),
    (PENDING, STOPPED): ("stopped-by-user",),
    (ADMITTED, STARTING): ("launch-accepted", "launch-observed"),
    (ADMITTED, PENDING): ("node-lost",),
    (ADMITTED, FAILED): ("launch-refused",),
    (ADMITTED, STOPPED): ("stopped-by-user",),
    (ADMITTED, QUARANTINED): ("launch-failed",),
    (STARTING, RUNNING): ("observed-running",),
    (STARTING, PENDING): ("attempt-lost", "attempt-failed"),
    (STARTING, SUCCEEDED): ("observed-succeeded",),
    (STARTING, FAILED): ("observed-failed", "max-runtime", "guard-stopped"),
    (STARTING, STOPPED): ("stopped-by-user", "stopped-on-ray"),
    (STARTING, QUARANTINED): ("attempts-exhausted",),
    (RUNNING, SUCCEEDED): ("observed-succeeded",),
    (RUNNING, FAILED): ("observed-failed", "max-runtime", "guard-stopped"),
    (RUNNING, STOPPED): ("stopped-by-user", "stopped-on-ray"),
    (RUNNING, PREEMPTING): ("preempted", "attempt-lost", "attempt-failed"),
    (RUNNING, QUARANTINED): ("attempts-exhausted",),
    (PREEMPTING, PENDING): ("requeued",),
    (PREEMPTING, SUCCEEDED): ("observed-succeeded",),
    (PREEMPTING, FAILED): ("observed-failed", "max-runtime", "guard-stopped"),
    (PREEMPTING, STOPPED): ("stopped-by-user", "stopped-on-ray"),
    (PREEMPTING, QUARANTINED): ("attempts-exhausted",),
}

WITH_ATTEMPT = frozenset({ADMITTED, STARTING, RUNNING, PREEMPTING})
"""States in which a job holds a lease and has an attempt."""

ON_RAY = frozenset({STARTING, RUNNING, PREEMPTING})
"""States in which Ray has taken the attempt."""


class IllegalTransition(MoorageError):
    """A bug: somebody asked for an edge the table does not have."""

    code = "illegal-transition"


def check(before: str, after: str, reason: str) -> None:
    """Raise `IllegalTransition` unless the table has the edge for that reason."""
    if reason not in TRANSITIONS.get((before, after), ()):
        raise IllegalTransition(f"{before or 'nothing'} -> {after} for {reason!r} is not in the table")


def final(state: str) -> bool:
    return state in FINAL
