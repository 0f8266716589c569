"""What runs on a node's GPUs by the driver's own account (NVML), which sees what never asked Ray for a device.

`processes` and `end` run on the node itself, as Ray tasks. This module imports nothing but the standard library and,
when called, the copy of pynvml inside Ray: a node of a cluster that was joined need not have Moorage installed, so the
module is sent along by value. Linux only: processes are read from /proc.

NVML numbers a machine's devices; Ray's index is the place in the raylet's CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MIB = 1024 * 1024
COMMAND_CHARACTERS = 200
RAYLET = "RAY_RAYLET_PID"
DRIVERS_FILES = "/dev/nvidia"
FIRST_NAMESPACE = 0xEFFFFFFC
"""The inode of a machine's own PID namespace (`PROC_PID_INIT_INO` in the kernel's proc_ns.h)."""


def processes() -> list[dict[str, Any]] | None:
    """The processes with a context on one of this node's devices; None where NVML does not answer.

    Each is {"device": Ray's index, "pid", "started": ticks since boot, "mib" (-1: the driver does not say),
    "command", "job": Ray's job id or "", "submission": the attempt or ""}. A process of another raylet of this machine
    is left out, and one that this process may not read: of another user, or outside its container.
    """
    try:
        found = _on_devices()
    except Exception:  # no library, no driver, a lost device: all of them are "cannot see"
        return None
    raylet = os.environ.get(RAYLET) or str(os.getppid())
    ray_index = order(_environment(raylet).get("CUDA_VISIBLE_DEVICES"), [uuid for uuid, _ in found])
    said = []
    for index, (_, running) in enumerate(found):
        for pid, mib in running:
            one = _process(pid, raylet) if index in ray_index else None
            if one is not None:
                said.append({"device": ray_index[index], "mib": mib, **one})
    return said


def end(pid: int, started: int) -> bool:
    """SIGKILL exactly that process; False when it is gone, or its number is another process's by now."""
    if _started(pid) != started:
        return False
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def order(visible: str | None, uuids: Sequence[str]) -> dict[int, int]:
    """NVML's index -> Ray's, from the raylet's CUDA_VISIBLE_DEVICES (None: unset, all devices in NVML's order)."""
    if visible is None:
        return {index: index for index in range(len(uuids))}
    wanted = [part.strip() for part in visible.split(",") if part.strip()]
    found = {}
    for place, name in enumerate(wanted):
        index = (
            int(name) if name.isdigit() else next((i for i, u in enumerate(uuids) if u.startswith(name)), -1)
        )
        if 0 <= index < len(uuids):
            found[index] = place
    return found


def _on_devices() -> list[tuple[str, list[tuple[int, int]]]]:
    """(UUID, [(pid, MiB)]) by NVML's index."""
    from ray._private.thirdparty.pynvml import pynvml

    pynvml.nvmlInit()
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            device = pynvml.nvmlDeviceGetHandleByIndex(index)
            uuid = pynvml.nvmlDeviceGetUUID(device)
            running = pynvml.nvmlDeviceGetComputeRunningProcesses(device)
            found.append(
                (
                    uuid.decode() if isinstance(uuid, bytes) else str(uuid),
                    [(int(one.pid), _mib(one.usedGpuMemory)) for one in running],
                )
            )
        return found
    finally:
        pynvml.nvmlShutdown()


def _mib(used: int | None) -> int:
    return -1 if used is None else used // MIB


def _process(pid: int, raylet: str) -> dict[str, Any] | None:
    started = _started(pid)
    try:
        environment = _environment(str(pid))
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    if started is None or environment.get(RAYLET, raylet) != raylet:
        return None
    if not _numbers_are_the_machines() and not _has_driver_open(pid):
        return None  # another process, which happens to have that number in here
    ours = environment.get("MOORAGE_JOB_ID"), environment.get("MOORAGE_ATTEMPT")
    return {
        "pid": pid,
        "started": started,
        "command": b" ".join(words).decode(errors="replace").strip()[:COMMAND_CHARACTERS],
        "job": environment.get("RAY_JOB_ID", ""),
        "submission": "-".join(part for part in ours if part) if all(ours) else "",
    }


def _numbers_are_the_machines() -> bool:
    """False in a container with a PID namespace of its own: NVML may still say the machine's numbers there."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino == FIRST_NAMESPACE
    except OSError:
        return False


def _has_driver_open(pid: int) -> bool:
    """As each process with a context on a device does."""
    try:
        return any(
            os.readlink(file).startswith(DRIVERS_FILES) for file in list(Path(f"/proc/{pid}/fd").iterdir())
        )
    except OSError:  # it may end meanwhile
        return False


def _environment(pid: str) -> Mapping[str, str]:
    """What a process was started with. Raises OSError when it may not be read."""
    pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(pair.decode(errors="replace").split("=", 1) for pair in pairs if b"=" in pair)


def _started(pid: int) -> int | None:
    """When a process began, in clock ticks since boot (field 22 of proc(5)'s stat); None when there is none, or only
    its exit code is left."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2]
    except OSError:
        return None
    fields = after_name.split()
    return None if fields[0] in "ZX" else int(fields[19])
