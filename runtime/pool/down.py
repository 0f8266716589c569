"""Stop exactly what `up` started: processes are named by pid and create time, so a reused pid is never
signalled."""

from __future__ import annotations

import contextlib
import signal
import time
from dataclasses import dataclass

import psutil

from moorage.errors import MoorageError
from moorage.runtime.pool.home import PoolHome, ProcessId, read_pool

STOP_WITHIN_S = 50.0
POLL_S = 0.05


class StillRunning(MoorageError):
    """Processes of the pool that even SIGKILL did not end in time."""

    code = "pool-still-running"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """What `down` did. `processes` counts what ran before; `forced` names what had to be killed."""

    was_up: bool
    processes: int
    forced: tuple[str, ...]
    seconds: float


def stop_pool(home: PoolHome) -> Stopped:
    """SIGTERM to the supervisor, wait, verify that its whole tree has ended. Idempotent; raises
    `StillRunning`."""
    began = time.monotonic()
    record = read_pool(home)
    if record is None:
        return Stopped(was_up=False, processes=0, forced=(), seconds=0.0)
    roots = [process for process in (p.find() for p in record.processes) if process is not None]
    tree = _with_descendants(roots)
    supervisor = record.process("supervisor")
    if supervisor is not None:
        _signal([supervisor], signal.SIGTERM)
        _await_end([supervisor], STOP_WITHIN_S)
    # A supervisor that was itself killed leaves children that the kernel has told to end; give them time,
    # then insist.
    left = _await_end(tree, 10.0)
    forced = tuple(f"{process.name} ({process.pid})" for process in left)
    _signal(left, signal.SIGKILL)
    left = _await_end(left, 5.0)
    if left:
        raise StillRunning(
            f"{len(left)} processes of the pool did not end",
            why=", ".join(str(process.pid) for process in left),
        )
    for path in (home.pool_json, home.ray_json, home.agent_sock, home.control_sock):
        path.unlink(missing_ok=True)
    return Stopped(was_up=bool(roots), processes=len(tree), forced=forced, seconds=time.monotonic() - began)


def _with_descendants(roots: list[psutil.Process]) -> list[ProcessId]:
    found: dict[int, ProcessId] = {}
    for root in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in (root, *root.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    found[process.pid] = ProcessId(
                        name=process.name(), pid=process.pid, create_time=process.create_time()
                    )
    return list(found.values())


def _signal(processes: list[ProcessId], signum: int) -> None:
    for identity in processes:
        process = identity.find()
        if process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signum)


def _await_end(processes: list[ProcessId], within_s: float) -> list[ProcessId]:
    """Those still alive after `within_s` seconds."""
    deadline = time.monotonic() + within_s
    left = [process for process in processes if process.alive()]
    while left and time.monotonic() < deadline:
        time.sleep(POLL_S)
        left = [process for process in left if process.alive()]
    return left
