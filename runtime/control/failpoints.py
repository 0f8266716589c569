"""Named places where a test may kill this process: every commit point, before and after.

`MOORAGE_FAILPOINT=name:kill` dies by SIGKILL at the first hit, `name:kill:3` at the third; `name:stop` stops there
(SIGSTOP) until somebody sends SIGCONT; `name:hang` holds up the thread that came there, and no other. Unset: no effect.
"""

from __future__ import annotations

import os
import signal
import threading

NAMES = (
    "submit.before-commit",
    "submit.after-commit",
    "admit.before-commit",
    "admit.after-commit",
    "preempt.before-commit",
    "preempt.after-commit",
    "promise.before-commit",
    "promise.after-commit",
    "resize.before-commit",
    "resize.after-commit",
    "launch.begun",
    "launch.after-effect",
    "launch.after-commit",
    "observe.before-commit",
    "observe.after-commit",
    "stop.before-commit",
    "stop.after-commit",
    "stop.after-effect",
    "sublease.before-commit",
    "sublease.after-commit",
    "endpoint.before-commit",
    "endpoint.after-commit",
    "guard.before-commit",
    "guard.after-commit",
    "guard.after-effect",
    "quota.before-commit",
    "quota.after-commit",
    "drain.before-commit",
    "drain.after-commit",
    "delete.before-commit",
    "delete.after-commit",
    "takeover.before-commit",
    "takeover.after-commit",
)
EVERY = ("commit.before", "commit.after")
"""Around each commit of the control plane's state, named above or not: counted, they visit all that a run makes."""
VARIABLE = "MOORAGE_FAILPOINT"

_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "hang": None}


def _armed(text: str) -> tuple[str, signal.Signals | None, int]:
    if not text:
        return "", signal.SIGKILL, 0
    name, _, rest = text.partition(":")
    action, _, count = rest.partition(":")
    if name not in NAMES + EVERY or action not in _SIGNALS:
        raise ValueError(
            f"{VARIABLE}={text!r}: write one of {', '.join(NAMES + EVERY)} followed by ':kill', ':stop' or ':hang'"
        )
    return name, _SIGNALS[action], int(count or 1)


_name, _signal, _left = _armed(os.environ.get(VARIABLE, ""))


def arm(text: str) -> None:
    """Arm as the variable would ("" disarms); ValueError for a name that is not a failpoint."""
    global _name, _signal, _left
    _name, _signal, _left = _armed(text)


def hit(name: str) -> None:
    """Die or stop here if this failpoint is armed and its count is reached."""
    global _left
    if name == _name:
        _left -= 1
        if _left == 0:
            if _signal is None:
                threading.Event().wait()
            else:
                os.kill(os.getpid(), _signal)
