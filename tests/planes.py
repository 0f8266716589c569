"""Control planes as processes over one simulated pool, killed and stopped from outside. `from planes import Site`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from pools import free_port
from waiting import until

TEAMS = "teams: {ops: {quota: 8}}\n"
POOL = "tick_ms: 50\ntakeover_s: 10\n"
SERVER = Path(__file__).with_name("control_server.py")


class Nursery:
    """Forks control planes off one process that has imported everything."""

    def __init__(self) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MOORAGE_")}
        kept["NUMBA_DISABLE_JIT"] = (
            "1"  # pools this small need no compiled kernels, and nobody waits for the compiler
        )
        command = [sys.executable, "-P", str(SERVER), "--nursery"]
        self._process = subprocess.Popen(
            command, env=kept, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **question: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


@dataclass
class Plane:
    """One process; `log` is its stderr. It may be started again on the same port."""

    site: Site
    name: str
    port: int
    pid: int = 0
    status: int | None = None

    @property
    def log(self) -> str:
        file = self.site.folder / f"{self.name}.log"
        return file.read_text() if file.exists() else ""

    def start(self, *options: str, wait: bool = True, **environment: str) -> Plane:
        site = self.site
        command = [str(site.journal), "--home", str(site.home), "--port", str(self.port), *options]
        command += ["--database", site.database] if site.database else []
        (site.folder / f"{self.name}.log").touch()
        log = str(site.folder / f"{self.name}.log")
        self.status = None
        self.pid = site.nursery.ask(start=command, environment=environment | site.environment, log=log)
        if wait:
            until(self.answers, 60, f"{self.name} to answer")
        return self

    def answers(self) -> bool:
        assert self.poll() is None, f"{self.name} ended: {self.log}"
        answer = self.get("/healthz")
        return answer is not None and answer.status_code == 200

    def poll(self) -> int | None:
        """How it ended, negative for a signal; None while it lives."""
        if self.pid and self.status is None:
            self.status = self.site.nursery.ask(poll=self.pid)
        return self.status

    def wait(self, timeout: float) -> int:
        until(lambda: self.poll() is not None, timeout, f"{self.name} to end")
        assert self.status is not None
        return self.status

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, from this process to that one."""
        if self.pid and self.poll() is None:
            self.signal(signal.SIGKILL)
            self.wait(10)

    def get(self, path: str, **more: Any) -> httpx.Response | None:
        return self.request("GET", path, **more)

    def request(self, method: str, path: str, timeout: float = 10, **more: Any) -> httpx.Response | None:
        """None when nobody answers."""
        headers = more.pop("headers", {})
        with contextlib.suppress(FileNotFoundError):
            headers = {"Authorization": f"Bearer {self.site.token}"} | headers
        with contextlib.suppress(httpx.TransportError):
            url = f"http://127.0.0.1:{self.port}{path}"
            return httpx.request(method, url, headers=headers, timeout=timeout, trust_env=False, **more)
        return None

    def ready(self) -> bool:
        answer = self.get("/readyz", timeout=2)
        return answer is not None and answer.status_code == 200

    def submit(
        self, job: str, seconds: float = 0.3, gpus: str = "1", within_s: float = 60, **metadata: str
    ) -> httpx.Response | None:
        asked = {"team": "ops", "gpus_per_worker": gpus, "sim.seconds": str(seconds), **metadata}
        body = {"entrypoint": "true", "submission_id": job, "metadata": asked}
        return self.request("POST", "/api/jobs/", json=body, timeout=within_s)

    def jobs(self) -> dict[str, str]:
        """State by job id; empty while it does not answer."""
        answer = self.get("/api/jobs/")
        if answer is None or answer.status_code != 200:
            return {}
        return {job["submission_id"]: job["status"] for job in answer.json()}

    def known(self) -> dict[str, str]:
        """State by job id, once it answers and has any."""
        return until(self.jobs, 60, f"{self.name} to list its jobs")


@dataclass
class Site:
    """A home, a simulated pool, and the control planes over them, which it ends."""

    folder: Path
    nursery: Nursery
    database: str = ""
    pool: str = POOL
    teams: str = TEAMS
    environment: dict[str, str] = field(default_factory=dict)
    disk: Path | None = None
    """Where the home is, if not in the folder."""
    planes: list[Plane] = field(default_factory=list)

    def __enter__(self) -> Site:
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "pool.yaml").write_text(self.pool)
        (self.home / "teams.yaml").write_text(self.teams)
        return self

    def __exit__(self, *_: object) -> None:
        for plane in self.planes:
            plane.kill()

    @property
    def home(self) -> Path:
        return (self.disk or self.folder) / "home"

    @property
    def journal(self) -> Path:
        return self.folder / "journal.jsonl"

    @property
    def token(self) -> str:
        return (self.home / "tokens" / "admin.token").read_text().strip()

    def plane(self, name: str) -> Plane:
        made = Plane(self, name, free_port())
        self.planes.append(made)
        return made

    def effects(self) -> list[dict[str, Any]]:
        """What was done to the cluster, in order, by whom."""
        if not self.journal.exists():
            return []
        return [json.loads(line) for line in self.journal.read_text().splitlines()]

    def launches(self) -> Counter[str]:
        return Counter(one["submission_id"] for one in self.effects() if one["op"] == "launch")
