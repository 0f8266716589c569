"""Named places where a test may kill this process: every commit point, before and after.

`MOORAGE_FAILPOINT=name:kill` dies by SIGKILL at the first hit, `name:kill:3` at the third. Unset: no effect.
"""

from __future__ import annotations

import os
import signal

NAMES = (
    "submit.before-commit",
    "submit.after-commit",
    "admit.before-commit",
    "admit.after-commit",
    "preempt.before-commit",
    "preempt.after-commit",
    "promise.before-commit",
    "promise.after-commit",
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
    "guard.before-commit",
    "guard.after-commit",
    "guard.after-effect",
)
VARIABLE = "MOORAGE_FAILPOINT"


def _armed(text: str) -> tuple[str, int]:
    if not text:
        return "", 0
    name, _, rest = text.partition(":")
    action, _, count = rest.partition(":")
    if name not in NAMES or action != "kill":
        raise ValueError(f"{VARIABLE}={text!r}: write one of {', '.join(NAMES)} followed by ':kill'")
    return name, int(count or 1)


_name, _left = _armed(os.environ.get(VARIABLE, ""))


def arm(text: str) -> None:
    """Arm as the variable would ("" disarms); ValueError for a name that is not a failpoint."""
    global _name, _left
    _name, _left = _armed(text)


def hit(name: str) -> None:
    """Die here if this failpoint is armed and its count is reached."""
    global _left
    if name == _name:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
