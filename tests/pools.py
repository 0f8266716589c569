"""Real pools for tests: the real command line in folders of their own. `from pools import Pool, start,
discard`.

Most tests want the `pool` fixture of tests/ray/conftest.py (one pool per module) and nothing else from here.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from moorage.runtime.pool.home import PoolHome, PoolRecord, ProcessId, read_pool

TEAMS = """\
teams:
  ops: {quota: 4, limit: 6}
  research: {quota: 2, limit: 2}
"""
UP_WITHIN_S = 260
"""More than `up` itself takes to give up and to stop what it has started."""
PORTS = range(20_000, 32_000)
"""Above those that Ray gives its workers, below those that the kernel gives to whoever asks for any."""
_DROPPED = ("RAY_", "MOORAGE_")


_given: set[int] = set()


def free_port() -> int:
    """One that nobody listens on, and that no other worker of `pytest -n` is given, nor this one again."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    mine = [port for port in PORTS if port % 16 == worker % 16 and port not in _given]
    while True:
        port = secrets.choice(mine)
        _given.add(port)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def moorage(
    *arguments: str | Path, home: Path, timeout: float = UP_WITHIN_S, extra: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the real command line in a folder that is not the repository, with `extra` variables."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "moorage.cli", *map(str, arguments)],
        cwd=tempfile.gettempdir(),
        env=clean_environment() | {"MOORAGE_HOME": str(home)} | (extra or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def clean_environment() -> dict[str, str]:
    """Ours without what would point a child at another cluster or pool."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_DROPPED)}


def short_folder() -> Path:
    """A new private folder with a path short enough for Unix sockets (pytest's own are not)."""
    return Path(tempfile.mkdtemp(prefix="mrg-", dir="/tmp"))


@dataclass
class Pool:
    """A running pool as tests use it. `home` is its folder, `url` its front door."""

    home: Path
    port: int
    up_seconds: float = 0.0
    printed: dict[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def files(self) -> PoolHome:
        return PoolHome(self.home)

    def record(self) -> PoolRecord:
        """pool.json now."""
        record = read_pool(self.files)
        assert record is not None, f"no pool.json in {self.home}"
        return record

    def process(self, name: str) -> ProcessId:
        """`supervisor`, `ray`, `agent` or `control` as recorded now."""
        found = self.record().process(name)
        assert found is not None, f"pool.json names no {name}"
        return found

    def tree(self) -> list[psutil.Process]:
        """The supervisor and everything below it."""
        supervisor = psutil.Process(self.process("supervisor").pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def token(self, principal: str) -> str:
        """The token of a team, or of `admin`."""
        return self.files.token(principal).read_text(encoding="utf-8").strip()

    def env(self, principal: str) -> dict[str, str]:
        """The whole environment for a subprocess that acts as `principal`, the stock `ray job` command
        included."""
        return clean_environment() | {
            "RAY_API_SERVER_ADDRESS": self.url,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.files.token(principal)),
            "MOORAGE_HOME": str(self.home),
        }

    def http(self, principal: str | None) -> httpx.Client:
        """A client of the front door, authenticated unless `principal` is None. Close it."""
        headers = {} if principal is None else {"Authorization": f"Bearer {self.token(principal)}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False)

    def ray_job(
        self, principal: str, *arguments: str, timeout: float = 120, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """The stock CLI: `pool.ray_job("ops", "submit", "--no-wait", "--", "echo", "hi")`."""
        return subprocess.run(
            [str(Path(sys.executable).with_name("ray")), "job", *arguments],
            cwd=cwd or tempfile.gettempdir(),
            env=self.env(principal),
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def moorage(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return moorage(*arguments, home=self.home, timeout=timeout)

    def logs(self) -> str:
        """The ends of the pool's logs, for a failing test's message."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(encoding='utf-8', errors='replace')[-3000:]}"
            for path in sorted(self.files.logs.glob("*.log"))
        )


def start(wishes: dict[str, Any]) -> Pool:
    """`moorage up` with `wishes` (see the `pool` fixture); fails the test with the logs when it does not.

    Two more wishes: `environment`, variables of the operator's shell; `again`, a pool that is down and comes up again.
    """
    pool = wishes.get("again") or Pool(home=short_folder(), port=free_port())
    teams = pool.home / "given-teams.yaml"
    teams.write_text(wishes.get("teams", TEAMS), encoding="utf-8")
    shape = ["--nodes", str(wishes.get("nodes", 2)), "--logical-gpus", str(wishes.get("logical_gpus", 4))]
    more = [str(option) for option in wishes.get("options", ())]
    if "settings" in wishes:
        settings = pool.home / "given-pool.yaml"
        settings.write_text(wishes["settings"], encoding="utf-8")
        more += ["--pool", str(settings)]
    began = time.monotonic()
    try:
        done = moorage(
            *("up", "--json", "--port", str(pool.port), "--serve-port", "0", "--teams", teams, *shape, *more),
            home=pool.home,
            extra=wishes.get("environment"),
        )
    except subprocess.TimeoutExpired:
        discard(pool)
        raise
    pool.up_seconds = time.monotonic() - began
    if done.returncode != 0:
        logs = pool.logs()
        discard(pool)
        pytest.fail(f"moorage up: {done.returncode}\n{done.stdout}{done.stderr}\n{logs}", pytrace=False)
    pool.printed = json.loads(done.stdout)
    return pool


def discard(pool: Pool) -> None:
    """`moorage down`, then the folder; asserts that it worked."""
    done = pool.moorage("down", timeout=90)
    temp = pool.files.ray_temp
    try:
        assert done.returncode == 0, f"moorage down: {done.stdout}{done.stderr}\n{pool.logs()}"
    finally:
        shutil.rmtree(pool.home, ignore_errors=True)
        shutil.rmtree(temp, ignore_errors=True)
