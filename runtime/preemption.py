"""What a running job hears of the pool's wish for its devices, and how it leaves. No Ray, no database.

    while step < total:
        step = one_more(step)
        if moorage.preemption():
            save(step)
            moorage.leave(step)          # ends the process with exit code 75: the pool queues the job again

One thread per process waits at the front door. Of the ranks of a distributed run only the first does: it leaves what it
hears in the pool's data folder, where the others look.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from moorage.errors import Forbidden, MoorageError, NotFound, Unauthenticated
from moorage.runtime.asking import TOKEN_VARIABLE, URL_VARIABLE
from moorage.runtime.client import Client

RELEASED = 75
"""The exit code of an entrypoint that leaves on notice."""
JOB_VARIABLE, ATTEMPT_VARIABLE, DATA_VARIABLE = "MOORAGE_JOB_ID", "MOORAGE_ATTEMPT", "MOORAGE_DATA"
_WAIT_S = 25
_AGAIN_S, _AGAIN_MOST_S = 1.0, 15.0
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """The pool told this job to leave. `deadline` is Unix time, of this machine's clock; then it is stopped."""

    reason: str
    rule: str
    for_job: str
    deadline: float

    @property
    def left_s(self) -> float:
        """Seconds of the grace that are left."""
        return max(0.0, self.deadline - time.time())


class Watcher:
    """Waits for the notice of one attempt in a thread of its own; `notice` is what it heard."""

    def __init__(
        self, job: str, ask: Callable[[], Mapping[str, Any] | None], relay: Path | None = None
    ) -> None:
        self.notice: Notice | None = None
        self._job, self._ask, self._relay = job, ask, relay
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="moorage-notice", daemon=True).start()

    def stop(self) -> None:
        self._ended.set()

    def _run(self) -> None:
        pause = _AGAIN_S
        while not self._ended.is_set():
            try:
                said = self._ask()
                pause = _AGAIN_S
            except (Unauthenticated, Forbidden, NotFound):
                return  # the attempt is over, or this process is no job of the pool
            except MoorageError:  # the control plane is away: the notice will still be there
                self._ended.wait(pause)
                pause = min(2 * pause, _AGAIN_MOST_S)
                continue
            if said is not None:
                self.notice = Notice(
                    reason=said["text"],
                    rule=said["rule"],
                    for_job=said["for_job"],
                    deadline=time.time() + said["left_s"],
                )
                if self._relay is not None:
                    _leave_for_others(self._relay, self.notice)
                return


class Onlooker:
    """For the other ranks: looks for what the first one left, at most twice a second."""

    def __init__(self, relay: Path) -> None:
        self._relay, self._looked, self._notice = relay, 0.0, None

    @property
    def notice(self) -> Notice | None:
        now = time.monotonic()
        if self._notice is None and now - self._looked >= _LOOK_S:
            self._looked = now
            with suppress(OSError, ValueError, TypeError):
                self._notice = Notice(**json.loads(self._relay.read_text(encoding="utf-8")))
        return self._notice

    _notice: Notice | None


_lock = threading.Lock()
_watch: Watcher | Onlooker | None = None


def preemption() -> Notice | None:
    """The notice to leave, once the pool has given one; None until then, and outside of a pool's job.

    Costs nothing after the first call, which starts the one thread that waits. In a distributed run (`RANK` is set)
    every rank may call it; call it from rank 0 too, and let the ranks agree before they act on it.
    """
    global _watch
    if _watch is None:
        with _lock:
            if _watch is None:
                _watch = _begin()
    return None if _watch is None else _watch.notice


def leave(step: int | None = None) -> NoReturn:
    """End this process so that the pool queues the job again with its progress kept. Call it in the entrypoint, after
    the checkpoint of `step` was written. Raises SystemExit(75)."""
    say("leaving", step)
    sys.exit(RELEASED)


def checkpointed(step: int | None = None) -> None:
    """Say that the checkpoint of `step` was written on the notice, for the job's events."""
    say("checkpointed", step)


def say(said: str, step: int | None = None) -> None:
    """Tell the pool what was done on the notice, for the job's events; nothing if it does not answer."""
    job = os.environ.get(JOB_VARIABLE)
    if not job or not os.environ.get(URL_VARIABLE) or not os.environ.get(TOKEN_VARIABLE):
        return
    with suppress(MoorageError), Client.from_env() as client:
        client.answer_notice(job, said, step)


def _begin() -> Watcher | Onlooker | None:
    job = os.environ.get(JOB_VARIABLE)
    if not job or not os.environ.get(URL_VARIABLE) or not os.environ.get(TOKEN_VARIABLE):
        return None
    data, attempt = os.environ.get(DATA_VARIABLE), os.environ.get(ATTEMPT_VARIABLE, "1")
    relay = Path(data) / "notices" / f"{job}-{attempt}.json" if data else None
    if relay is not None and os.environ.get("RANK", "0") != "0":
        return Onlooker(relay)
    client = Client.from_env()
    return Watcher(job, lambda: client.notice(job, wait_s=_WAIT_S), relay)


def _leave_for_others(relay: Path, notice: Notice) -> None:
    with suppress(OSError):
        relay.parent.mkdir(parents=True, exist_ok=True)
        half = relay.with_suffix(f".{os.getpid()}")
        half.write_text(json.dumps(asdict(notice)), encoding="utf-8")
        os.replace(half, relay)
