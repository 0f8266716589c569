"""Whether the reconcile loop gets on. A process whose loop hangs beats and answers, and nothing starts or ends.

A round may take long: it has as many effects as the outbox has rows. So it is not rounds that are watched but steps:
each part of a round and each effect is one.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable

log = logging.getLogger(__name__)
STUCK = 4
"""Exit status of a control plane whose loop hung."""
_DEEP = 4


class Watchdog:
    """Calls `stuck(seconds)` once if `at` answers the same number for `stuck_s` seconds; None: there is nothing to do.

    Time in which this thread itself did not run does not count: a process that was stopped, or a machine that slept,
    does not wake up to a loop that has hung.
    """

    def __init__(self, at: Callable[[], int | None], stuck_s: float, stuck: Callable[[float], None]) -> None:
        self._at, self._stuck_s, self._stuck = at, stuck_s, stuck
        self._every_s = min(1.0, stuck_s / 10)
        self._seen: int | None = None
        self._silent_s = 0.0
        self._ending = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        self._ending.set()

    def look(self, gap_s: float) -> bool:
        """`gap_s`: since the last look. Whether the loop counts as stuck."""
        now = self._at()
        same = now is not None and now == self._seen
        self._silent_s = self._silent_s + min(gap_s, 2 * self._every_s) if same else 0.0
        self._seen = now
        return self._silent_s >= self._stuck_s

    def _run(self) -> None:
        looked = time.monotonic()
        while not self._ending.wait(self._every_s):
            now = time.monotonic()
            gap, looked = now - looked, now
            if self.look(gap):
                self._stuck(self._silent_s)
                return


def end(thread: str, silent_s: float) -> None:
    """End this process at once, and say where the thread of that name hangs.

    Not by unwinding: what hangs may hold the lock that everybody needs. A control plane may die at any moment: its seat
    is free then, so a standby takes over, or the supervisor starts the next one.
    """
    where = "it has ended"
    frames = sys._current_frames()
    for one in threading.enumerate():
        if one.name == thread and one.ident in frames:
            stack = traceback.extract_stack(frames[one.ident])[-_DEEP:]
            where = " > ".join(
                f"{frame.name} ({os.path.basename(frame.filename)}:{frame.lineno})" for frame in stack
            )
    log.critical(
        "the reconcile loop has not got on for %.0f s: this control plane ends. It hangs in %s",
        silent_s,
        where,
    )
    logging.shutdown()
    os._exit(STUCK)
