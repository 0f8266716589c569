"""What each worker did, as JSON lines in a file of its own: evidence that does not depend on any database.

A line is written in one `write`, so it survives the SIGKILL of its writer whole; `fsync` comes every
`sync_every` lines, for power loss.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any


class StepLog:
    """Append-only `steps-rank<r>.jsonl` in `folder`: {step, rank, pid, attempt, start, loss, time, ...}.

    `start` is the step this process began at: above 0 it resumed. `time` is Unix seconds.
    """

    def __init__(
        self,
        folder: Path | str,
        rank: int,
        *,
        attempt: int = 1,
        start: int = 0,
        sync_every: int = 50,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = Path(folder) / f"steps-rank{rank}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fixed = {"rank": rank, "pid": os.getpid(), "attempt": attempt, "start": start}
        self._sync_every, self._clock, self._lines = sync_every, clock, 0
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, step: int, loss: float, **more: Any) -> None:
        line = {"step": step, **self._fixed, "loss": loss, "time": round(self._clock(), 4), **more}
        os.write(self._fd, (json.dumps(line) + "\n").encode())
        self._lines += 1
        if self._lines % self._sync_every == 0:
            os.fsync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.fsync(self._fd)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> StepLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


def read_steps(path: Path | str) -> Iterator[dict[str, Any]]:
    """The lines of a step log; a torn last line (the machine died) ends it."""
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if not line.endswith("\n"):
                return
            yield json.loads(line)
