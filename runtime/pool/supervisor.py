"""The one parent of a pool's processes: starts them, starts them again when they die, ends them in order.

Run as `python -m moorage.runtime.pool.supervisor --home H` in a session of its own. It is the only writer of
pool.json once it runs. It is a subreaper (prctl(2)): what its children leave behind comes to it and not to
init, so nothing of the pool is lost sight of. Its children get SIGTERM from the kernel when it dies.

When `ray` ends, its cluster is over. The pool is `degraded` and says why; what the cluster's end left behind is killed
first, so that nothing of it still works when a new, empty one starts. The control plane then runs again, from its own
store, what the old one had not finished.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import psutil

from moorage.cluster.paths import read_json
from moorage.errors import MoorageError
from moorage.runtime.pool.environment import plain_environment, ray_environment, serve_environment
from moorage.runtime.pool.home import PoolHome, PoolRecord, ProcessId, find_home, read_pool, write_pool

LOG = logging.getLogger("moorage.runtime.pool.supervisor")
TICK_S = 0.1
PROBE_S = 0.5
# Who ran for STEADY_S is started again at once: what dies faster than that, over and over, after ever longer pauses.
FIRST_BACKOFF_S, LAST_BACKOFF_S, STEADY_S = 0.2, 10.0, 10.0
GRACE_S = {"control": 10.0, "agent": 5.0, "ray": 25.0}
LEFTOVER_GRACE_S = 2.0
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LIBC = ctypes.CDLL(None, use_errno=True)


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


@dataclass(slots=True)
class Child:
    """One supervised process. `identity` is None while it does not run; `next_start` is on the monotonic
    clock."""

    name: str
    command: list[str]
    environment: dict[str, str]
    identity: ProcessId | None = None
    started: float = 0.0
    next_start: float = 0.0
    backoff: float = FIRST_BACKOFF_S
    restarts: int = -1


def children_of(home: PoolHome, settings: dict[str, Any]) -> dict[str, Child]:
    """What this pool consists of, by name, in the order of starting."""

    def python(module: str, *arguments: object) -> list[str]:
        # -P: the current folder must not shadow our modules. A flag, not the variable: jobs inherit
        # variables.
        return [sys.executable, "-P", "-m", module, "--home", str(home.root), *map(str, arguments)]

    address, passed = settings.get("address"), settings.get("pass_env", ())
    # A cluster on loopback is joined under its own switch: without it Ray rewrites 127.0.0.1 to this host's
    # address.
    local = not address or address.startswith(("127.", "localhost:", "[::1]"))
    with_ray = ray_environment(home, local=local, passed=passed) | serve_environment(home, settings)
    agent = ["--serve-port", settings["serve_port"], *(["--address", address] if address else [])]
    control = ["--port", settings["port"], *(["--standby"] if settings.get("standby") else [])]
    if home.teams_yaml.exists():
        control += ["--teams", home.teams_yaml]
    found = {
        "control": Child("control", python(settings["control"], *control), plain_environment()),
        "agent": Child("agent", python("moorage.cluster.agent", *agent), with_ray),
    }
    if not address:
        shape = (
            "nodes",
            "logical_gpus",
            "gpu_model",
            "device_mib",
            "cpus_per_node",
            "object_store_mib",
            "gcs_storage",
        )
        flags = [part for key in shape for part in (f"--{key.replace('_', '-')}", settings[key])]
        flags += ["--dashboard-port", settings["dashboard_port"]]
        ray = Child("ray", python("moorage.cluster.local", *flags), with_ray)
        found = {"ray": ray, **found}
    return found


class Supervisor:
    """Single-threaded: children must be spawned by the main thread, to whose end PR_SET_PDEATHSIG is tied."""

    def __init__(self, home: PoolHome, record: PoolRecord) -> None:
        self._home, self._record = home, record
        self._settings = dict(record.settings)
        self._children = children_of(home, self._settings)
        self._ending = False
        self._next_probe = 0.0
        self._agent = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(home.agent_sock)), base_url="http://agent", timeout=2.0
        )
        self._door = httpx.Client(base_url=record.front_door, timeout=2.0, trust_env=False)

    def run(self) -> int:
        """Until SIGTERM, or until the pool could not come up. Returns the exit status."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._end)
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._change(processes=(ProcessId.of("supervisor", os.getpid()),))
        failed = False
        try:
            while not self._ending and not failed:
                self._reap()
                self._start_due()
                self._probe()
                failed = self._record.state == "failed"
                time.sleep(TICK_S)
        finally:
            self._stop_all()
        return 1 if failed else 0

    def _end(self, *_: object) -> None:
        self._ending = True

    def _change(self, **changes: Any) -> None:
        changed = replace(self._record, **changes)
        if changed != self._record:
            self._record = changed
            self._write()

    def _write(self) -> None:
        """A full disk must not end the pool: it is tried again with each probe."""
        try:
            write_pool(self._home, self._record)
        except OSError as error:
            LOG.warning("pool.json could not be written: %s", error)

    def _kept(self) -> bool:
        """Whether pool.json says what is true: the disk may have been full, or somebody may have damaged it."""
        with contextlib.suppress(MoorageError, TypeError, OSError):
            return read_pool(self._home) == self._record
        return False

    # -- starting

    def _start_due(self) -> None:
        now = time.monotonic()
        for child in self._children.values():
            if child.identity is None and now >= child.next_start:
                self._start(child)

    def _start(self, child: Child) -> None:
        with open(self._home.log(child.name), "ab") as log:
            process = subprocess.Popen(
                child.command,
                env=child.environment,
                cwd=self._home.root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # safe: this process has one thread
            )
        process.returncode = 0  # reaped by `_reap`, not by subprocess
        with contextlib.suppress(psutil.NoSuchProcess):
            child.identity = ProcessId.of(child.name, process.pid)
        child.identity = child.identity or ProcessId(name=child.name, pid=process.pid, create_time=0.0)
        child.started, child.restarts = time.monotonic(), child.restarts + 1
        LOG.info("started %s as %d", child.name, process.pid)
        self._record = self._record.with_process(child.identity)
        restarts = {name: c.restarts for name, c in self._children.items() if c.restarts > 0}
        self._change(restarts=restarts)
        self._write()

    # -- watching

    def _reap(self) -> None:
        """Collect everything that ended, orphans of our children too."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for child in self._children.values():
                if child.identity is not None and child.identity.pid == pid:
                    self._ended(child, os.waitstatus_to_exitcode(status))

    def _ended(self, child: Child, status: int) -> None:
        now = time.monotonic()
        child.identity = None
        if self._ending:
            return
        LOG.warning("%s ended with %d after %.1f s", child.name, status, now - child.started)
        if now - child.started > STEADY_S:
            child.backoff = FIRST_BACKOFF_S
        child.next_start = now + child.backoff
        child.backoff = min(child.backoff * 2, LAST_BACKOFF_S)
        error = f"{child.name} ended with status {status}; see logs/{child.name}.log"
        if self._record.state == "starting" and (child.name == "ray" or child.restarts >= 2):
            self._change(state="failed", error=error)
        elif child.name == "ray":
            self._change(state="degraded", error=error, serve="")
            self._clear_after_ray()

    def _clear_after_ray(self) -> None:
        """Before a new cluster: the old one's address, its driver (the agent), and processes of its jobs, which came to
        us as subreaper."""
        self._home.ray_json.unlink(missing_ok=True)
        agent = self._children["agent"]
        if agent.identity is not None:
            agent.backoff = FIRST_BACKOFF_S
            self._signal_and_wait(agent, signal.SIGKILL, 5.0)
        ours = {child.identity.pid for child in self._children.values() if child.identity is not None}
        deadline = time.monotonic() + LEFTOVER_GRACE_S
        while time.monotonic() < deadline:
            self._reap()
            orphans = [p for p in psutil.Process().children() if p.pid not in ours]
            if not orphans:
                return
            for orphan in orphans:
                with contextlib.suppress(psutil.NoSuchProcess):
                    for process in (*orphan.children(recursive=True), orphan):
                        LOG.info("signal %d to leftover %d", signal.SIGKILL, process.pid)
                        process.kill()
            time.sleep(TICK_S / 4)

    def _ray(self) -> dict[str, Any]:
        found: dict[str, Any] = read_json(self._home.ray_json) or {}
        return found

    def _probe(self) -> None:
        """Fill in what has become known, and say `up` once the front door and the agent answer."""
        if time.monotonic() < self._next_probe:
            return
        self._next_probe = time.monotonic() + PROBE_S
        if not self._kept():
            self._write()
        ray = self._ray()
        if ray.get("dashboard"):
            keys = ("ray_address", "ray_version", "dashboard")
            self._change(
                **{key: ray[key] for key in keys},
                nodes=tuple(ray.get("nodes", ())),
                metrics=f"{self._record.front_door}/metrics",
            )
        if ray.get("dead") and self._record.state == "up":
            self._change(state="degraded", error="Ray processes have ended: " + ", ".join(ray["dead"]))
        whole = ray.get("dashboard") and not ray.get("dead")
        if self._record.state in ("starting", "degraded") and whole:
            if self._agent_answers() and self._front_door_answers():
                self._change(state="up", error="")
                LOG.info("up")
        elif self._record.state == "up" and not self._record.serve:
            self._serve_probe()

    def _agent_answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self._agent.get("/health").status_code == 200
        return False

    def _front_door_answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self._door.get("/healthz").status_code == 200
        return False

    def _serve_probe(self) -> None:
        with contextlib.suppress(httpx.TransportError, ValueError):
            self._change(serve=self._agent.get("/serve").json().get("url", ""))

    # -- ending

    def _stop_all(self) -> None:
        """Control first (no new effects), then the agent, Ray last; then whatever they left behind."""
        self._ending = True
        if self._record.state != "failed":
            self._change(state="stopping")
        LOG.info("stopping")
        for name in ("control", "agent", "ray"):
            child = self._children.get(name)
            if child is not None and child.identity is not None:
                self._signal_and_wait(child, signal.SIGTERM, GRACE_S[name])
                if child.identity is not None:
                    LOG.warning("%s did not end in %.0f s: killed", name, GRACE_S[name])
                    self._signal_and_wait(child, signal.SIGKILL, 5.0)
        self._stop_leftovers()
        LOG.info("stopped")

    def _signal_and_wait(self, child: Child, signum: int, within_s: float) -> None:
        with contextlib.suppress(ProcessLookupError):
            if child.identity is not None:
                os.kill(child.identity.pid, signum)
        deadline = time.monotonic() + within_s
        while child.identity is not None and time.monotonic() < deadline:
            self._reap()
            time.sleep(TICK_S / 4)

    def _stop_leftovers(self) -> None:
        """Descendants that outlived their parents came to us as subreaper: users' processes, mostly."""
        for signum in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + LEFTOVER_GRACE_S
            told: set[int] = set()
            while time.monotonic() < deadline:
                self._reap()
                left = psutil.Process().children(recursive=True)
                if not left:
                    return
                for process in left:
                    if process.pid not in told:
                        told.add(process.pid)
                        LOG.info("signal %d to leftover %d", signum, process.pid)
                        with contextlib.suppress(psutil.NoSuchProcess):
                            process.send_signal(signum)
                time.sleep(TICK_S)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m moorage.runtime.pool.supervisor")
    parser.add_argument("--home", type=Path, required=True)
    home = find_home(parser.parse_args(arguments).home)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    record = read_pool(home)
    if record is None:
        LOG.error("no pool.json in %s: start pools with `moorage up`", home.root)
        return 2
    with open(home.supervisor_lock, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            LOG.error("another supervisor holds this home")
            return 2
        return Supervisor(home, record).run()


if __name__ == "__main__":
    sys.exit(main())
