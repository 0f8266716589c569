"""What the end of an attempt on Ray means for its job. Pure.

A user's error (its exit code, its environment) fails the job; what the infrastructure did is tried again.
"""

from __future__ import annotations

from dataclasses import dataclass

USER_STOP, MAX_RUNTIME, NODE_LOST, PREEMPT = "user", "max_runtime", "node_lost", "preempt"
NOT_BEGUN = "not_begun"
"""Ray took it and did not run it in time."""
GUARD = "guard"
"""Its tasks held more GPUs than its leases."""

RELEASED = 75
"""The exit code by which an entrypoint says that it left on notice (EX_TEMPFAIL of sysexits.h: try again later)."""

_USERS_OWN = (
    "entrypoint command failed",
    "runtime_env setup failed",
    "set up runtime environment",
    "runtime_env failed",
)
_NOT_THEIRS = ("runtime env agent", "runtime_env agent")
"""Ray words its own agent's failures like those of the environment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`kind`: succeeded, failed, stopped (final); lost (infrastructure), retry (user's error, asked to repeat),
    released (it left for another job)."""

    kind: str
    reason: str
    message: str


def judge(
    status: str, message: str, exit_code: int | None, stop_reason: str, failures_left: int = 0
) -> Outcome:
    """The outcome of an ended attempt: `status` is Ray's SUCCEEDED, FAILED or STOPPED.

    `failures_left` is how many more times the user asked a failing entrypoint to be run (max_attempts).
    """
    if status == "SUCCEEDED":
        return Outcome(kind="succeeded", reason="observed-succeeded", message=message)
    if stop_reason == PREEMPT:
        return Outcome(kind="released", reason="preempted", message=_left(status, exit_code))
    if stop_reason == NODE_LOST:
        return Outcome(kind="lost", reason="attempt-lost", message="a node of its lease was lost")
    if stop_reason == NOT_BEGUN:
        text = "Ray did not begin it within the pool's start_timeout_s"
        return Outcome(kind="lost", reason="attempt-lost", message=text)
    if stop_reason == MAX_RUNTIME:
        return Outcome(
            kind="failed", reason="max-runtime", message="stopped: it ran longer than its max_runtime"
        )
    if stop_reason == GUARD:
        text = "stopped by the guard: its tasks held more GPUs than it has leased (see its events)"
        return Outcome(kind="failed", reason="guard-stopped", message=text)
    if status == "STOPPED" and stop_reason == USER_STOP:
        return Outcome(kind="stopped", reason="stopped-by-user", message="stopped by its user")
    if status == "STOPPED":
        return Outcome(kind="stopped", reason="stopped-on-ray", message="stopped on Ray, not through Moorage")
    if stop_reason == USER_STOP:
        return Outcome(
            kind="stopped", reason="stopped-by-user", message=f"stopped by its user; Ray: {message}"
        )
    if exit_code is None and not _users_own(message.lower()):
        return Outcome(kind="lost", reason="attempt-lost", message=message)
    if failures_left > 0:
        return Outcome(kind="retry", reason="attempt-failed", message=message)
    return Outcome(kind="failed", reason="observed-failed", message=message)


def _left(status: str, exit_code: int | None) -> str:
    if exit_code == RELEASED:
        return "left on notice, its progress saved"
    if status == "STOPPED":
        return "stopped: it was told to leave, and its grace was over"
    return "ended after it was told to leave" + ("" if exit_code is None else f", with exit code {exit_code}")


def _users_own(message: str) -> bool:
    return any(mark in message for mark in _USERS_OWN) and not any(mark in message for mark in _NOT_THEIRS)
