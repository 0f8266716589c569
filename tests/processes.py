"""Which processes a test run has started: each inherits a mark in its environment, also in a session of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Set

import psutil

# Named like a locale so that it passes where only known variables may: a pool hands Ray an allowlist.
VARIABLE = "LC_MOORAGE_TEST_RUN"


def new_mark() -> str:
    """A value of `VARIABLE` that no other run has."""
    return f"{os.getpid()}-{secrets.token_hex(8)}"


def marked(mark: str) -> list[psutil.Process]:
    """Live processes of this user that carry the mark, this one and its ancestors left out."""
    own = {os.getpid(), *(p.pid for p in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid in own or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.environ().get(VARIABLE) == mark:
                found.append(process)
    return found


def _others(mark: str, apart_from: Set[int]) -> list[psutil.Process]:
    found = []
    for process in marked(mark):
        with contextlib.suppress(psutil.Error):
            if process.pid not in apart_from and process.ppid() not in apart_from:
                found.append(process)
    return found


def wait_gone(mark: str, timeout: float, apart_from: Set[int] = frozenset()) -> list[str]:
    """Give the marked processes `timeout` seconds to end; what is left, one line each.

    `apart_from`: the processes that may stay, and what they start meanwhile.
    """
    deadline, idle = time.monotonic() + timeout, threading.Event()
    while (left := _others(mark, apart_from)) and time.monotonic() < deadline:
        idle.wait(0.2)
    lines = []
    for process in left:
        with contextlib.suppress(psutil.Error):
            lines.append(f"{process.pid} {' '.join(process.cmdline())[:160]}")
    return lines


def end(mark: str, apart_from: Set[int] = frozenset()) -> None:
    """Kill the marked processes but those of `apart_from`, and again what they started meanwhile."""
    for _ in range(5):
        left = _others(mark, apart_from)
        if not left:
            return
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=5)
