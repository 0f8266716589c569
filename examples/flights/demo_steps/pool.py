"""The demo's own pool: brought up fresh by `moorage up`, asked over HTTP, taken down by `moorage down`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

from demo_steps.checks import StepFailed

NODES, GPUS_PER_NODE = 2, 4
TEAMS = Path(__file__).resolve().parents[1] / "teams.yaml"
SETTINGS = Path(__file__).resolve().parents[1] / "pool.yaml"
USUAL_PORT = 8470
ANSWERS_WITHIN_S = 60.0
LONGEST_SOCKET_PATH, SOCKET_NAME = 107, "control.sock"
MARKER = "made-by-the-flights-demo"


def tool(name: str) -> str:
    """The command installed beside this interpreter."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise StepFailed("pool", f"the command {name!r} is not installed beside {sys.executable}")
    return found


def choose_home(wanted: Path) -> Path:
    """`wanted`, or a folder with a short path: the pool's Unix sockets live in its home."""
    home = wanted.absolute()
    if len(os.fsencode(home / SOCKET_NAME)) <= LONGEST_SOCKET_PATH:
        return home
    return Path(tempfile.gettempdir()) / f"moorage-demo-{os.getuid()}"


def free_port() -> int:
    """The usual port, or any that is free."""
    for port in (USUAL_PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise StepFailed("pool", "no port is free on 127.0.0.1")


def _patiently(ask: Callable[[], httpx.Response]) -> Any:
    """The JSON of the answer; who is busy (503) or does not answer is asked again for a while."""
    deadline = time.monotonic() + ANSWERS_WITHIN_S
    while True:
        late = time.monotonic() > deadline
        try:
            answer = ask()
            if answer.status_code != 503 or late:
                return answer.raise_for_status().json()
        except httpx.TransportError:
            if late:
                raise
        time.sleep(0.5)


class Pool:
    """One pool in `home`. Everything its commands print goes to `logs/pool.log`."""

    def __init__(self, home: Path, logs: Path) -> None:
        self.home, self.log = home, logs / "pool.log"
        self.record: dict[str, Any] = {}
        self._http = httpx.Client(timeout=30.0, trust_env=False)
        self._agent: httpx.Client | None = None

    @property
    def url(self) -> str:
        return str(self.record["front_door"])

    @property
    def data(self) -> Path:
        return self.home / "data"

    def clear(self) -> None:
        """Remove the last run's home. Refuses a folder that the demo did not make, or whose pool is still up."""
        if self.home.exists() and any(self.home.iterdir()):
            if not (self.home / MARKER).exists():
                raise StepFailed(
                    "pool", f"{self.home} was not made by the demo: set MOORAGE_DEMO_HOME to another folder"
                )
            if self._moorage("status", "--json").returncode == 0:
                raise StepFailed(
                    "pool",
                    f"the last demo's pool is still up; stop it with: MOORAGE_HOME={self.home} moorage down",
                )
            self._moorage(
                "down", "--json"
            )  # what a killed pool may have left running is found through its home
            shutil.rmtree(self.home)
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.home / MARKER).touch()

    def up(self) -> None:
        shape = ["--nodes", str(NODES), "--logical-gpus", str(GPUS_PER_NODE), "--teams", str(TEAMS)]
        shape += ["--pool", str(SETTINGS)]
        done = self._moorage("up", *shape, "--port", str(free_port()), "--json")
        if done.returncode:
            raise StepFailed(
                "pool", "`moorage up` failed", str(self.log), tuple(done.stderr.splitlines()[-8:])
            )
        self.record = json.loads(done.stdout)

    def down(self) -> list[str]:
        """What still lives afterwards of the pool and all its descendants, by name; [] when it is down.

        Never raises: it runs while other errors are on their way.
        """
        self._http.close()
        before = self._processes()
        try:
            if self._moorage("down", "--json", timeout=120).returncode:
                return ["`moorage down` failed"]
        except (OSError, subprocess.SubprocessError) as error:
            return [str(error)]
        _, alive = psutil.wait_procs(before, timeout=5)
        return [f"{process.pid}" for process in alive]

    def _processes(self) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        with contextlib.suppress(OSError, ValueError):
            self.record |= json.loads((self.home / "pool.json").read_text(encoding="utf-8"))
        for recorded in self.record.get("processes", ()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(recorded["pid"])
                if abs(process.create_time() - recorded["create_time"]) < 1.0:
                    found += [process, *process.children(recursive=True)]
        return list(dict.fromkeys(found))

    def _moorage(self, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MOORAGE_", "RAY_"))}
        done = subprocess.run(
            [tool("moorage"), *arguments],
            env={**environment, "MOORAGE_HOME": str(self.home)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            start_new_session=True,  # Ctrl-C is ours to handle: it must not kill `moorage down` halfway
        )
        with open(self.log, "a", encoding="utf-8") as log:
            log.write(f"$ moorage {' '.join(arguments)}\n{done.stderr}[exit {done.returncode}]\n")
        return done

    def token_file(self, principal: str) -> Path:
        return self.home / "tokens" / f"{principal}.token"

    def environment(self, team: str) -> dict[str, str]:
        """What a person of `team` would export before using Ray's own command."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MOORAGE_", "RAY_"))}
        return clean | {
            "RAY_API_SERVER_ADDRESS": self.url,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file(team)),
            "PYTHONUNBUFFERED": "1",
            "NO_COLOR": "1",
        }

    def get(self, path: str, principal: str = "admin", **query: Any) -> Any:
        """The JSON that the front door answers to `principal`."""
        token = self.token_file(principal).read_text(encoding="utf-8").strip()
        headers = {"Authorization": f"Bearer {token}"}
        return _patiently(lambda: self._http.get(self.url + path, params=query, headers=headers))

    def job(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"/moorage/v1/jobs/{job_id}")
        return found

    def events(self) -> list[dict[str, Any]]:
        """The whole audit record, oldest first."""
        every: list[dict[str, Any]] = []
        while page := self.get("/moorage/v1/events", after=every[-1]["seq"] if every else 0, limit=1000):
            every += page
        return every

    def ray_gpus(self) -> tuple[float, float]:
        """(GPUs that Ray itself has booked now, GPUs of the cluster): from Ray's own figures, not from our ledger."""
        if self._agent is None:
            socket_path = str(self.home / "agent.sock")
            self._agent = httpx.Client(transport=httpx.HTTPTransport(uds=socket_path), timeout=15.0)
        agent = self._agent
        nodes = _patiently(lambda: agent.get("http://agent/observe"))["nodes"]
        total = sum(node["devices"] for node in nodes)
        return total - sum(node["free_milli_gpu"] for node in nodes) / 1000, total
