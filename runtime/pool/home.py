"""The pool's home: where each file lies, what `pool.json` says, and how a process is told from its successor.

A process is named by pid *and* create time: pids are reused, and `down` must never signal a stranger.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from moorage.cluster.paths import MAX_SOCKET_PATH, ClusterPaths, read_json, write_json
from moorage.errors import InvalidRequest, NotFound

HOME_VARIABLE = "MOORAGE_HOME"
DEFAULT_PORT = 8470
_CLOCK_TOLERANCE_S = 0.05


@dataclass(frozen=True, slots=True)
class PoolHome(ClusterPaths):
    """Every path of the pool below `root` (mode 0700)."""

    @property
    def pool_json(self) -> Path:
        return self.root / "pool.json"

    @property
    def supervisor_lock(self) -> Path:
        """Held (flock) by the supervisor for as long as it lives: one per home."""
        return self.root / "supervisor.lock"

    @property
    def up_lock(self) -> Path:
        """Held by `up` while it starts a pool, so that two of them do not start two."""
        return self.root / "up.lock"

    @property
    def teams_yaml(self) -> Path:
        """The copy of the teams file that the pool was started with."""
        return self.root / "teams.yaml"

    @property
    def pool_yaml(self) -> Path:
        """The copy of the settings file that the pool was started with (prices, limits)."""
        return self.root / "pool.yaml"

    @property
    def tokens(self) -> Path:
        return self.root / "tokens"

    def token(self, principal: str) -> Path:
        """The token file of a team, or of `admin`. The control plane writes it."""
        return self.tokens / f"{principal}.token"

    @property
    def control_db(self) -> Path:
        return self.root / "control.db"

    @property
    def control_sock(self) -> Path:
        return self.root / "control.sock"

    @property
    def packages(self) -> Path:
        """Spooled working_dir archives."""
        return self.root / "packages"

    @property
    def data(self) -> Path:
        """What jobs see as MOORAGE_DATA: features/, artifacts/, checkpoints/, mlflow.db."""
        return self.root / "data"

    def log(self, process: str) -> Path:
        return self.logs / f"{process}.log"

    def make(self) -> None:
        """Create the folders; refuses a home whose sockets the kernel could not name (code
        `home-too-long`)."""
        if len(os.fsencode(self.control_sock)) > MAX_SOCKET_PATH:
            raise InvalidRequest(
                f"the pool's home {self.root} is too long a path",
                why=f"Unix sockets live in it and their paths end at {MAX_SOCKET_PATH} bytes",
                todo=f"set {HOME_VARIABLE} or --home to a shorter path",
                code="home-too-long",
            )
        ClusterPaths.make(self)
        for folder in (self.tokens, self.packages, self.data):
            folder.mkdir(mode=0o700, exist_ok=True)
            folder.chmod(0o700)


def find_home(given: str | Path | None = None) -> PoolHome:
    """The home that `--home`, MOORAGE_HOME or the default `~/.moorage` names; it need not exist."""
    chosen = given or os.environ.get(HOME_VARIABLE) or "~/.moorage"
    return PoolHome(Path(os.path.abspath(os.path.expanduser(chosen))))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessId:
    """A process by pid and create time (seconds since the epoch, as psutil gives it)."""

    name: str
    pid: int
    create_time: float

    @classmethod
    def of(cls, name: str, pid: int) -> ProcessId:
        return cls(name=name, pid=pid, create_time=psutil.Process(pid).create_time())

    def find(self) -> psutil.Process | None:
        """The very process, or None when it has ended (a zombie has) or its pid is another's now."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.create_time) <= _CLOCK_TOLERANCE_S
            if same and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def alive(self) -> bool:
        return self.find() is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRecord:
    """`pool.json`: what runs, where it answers. URLs are without a trailing slash; `ray_address` is the GCS's
    host:port."""

    name: str
    version: str
    front_door: str
    started_at: str
    state: str = "starting"
    dashboard: str = ""
    serve: str = ""
    metrics: str = ""
    ray_address: str = ""
    ray_version: str = ""
    joined: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    processes: tuple[ProcessId, ...] = ()
    restarts: Mapping[str, int] = field(default_factory=dict)
    nodes: tuple[Mapping[str, Any], ...] = ()
    error: str = ""

    def process(self, name: str) -> ProcessId | None:
        return next((p for p in self.processes if p.name == name), None)

    def with_process(self, process: ProcessId) -> PoolRecord:
        others = tuple(p for p in self.processes if p.name != process.name)
        return replace(self, processes=(*others, process))

    def supervised(self) -> bool:
        """Whether this pool's supervisor lives: what `up` and `down` go by."""
        supervisor = self.process("supervisor")
        return supervisor is not None and supervisor.alive()


def read_pool(home: PoolHome) -> PoolRecord | None:
    """What `pool.json` says, or None without one. It may describe a pool that has died: see `supervised`. DataError
    (`state-file-damaged`) when it cannot be read."""
    raw = read_json(home.pool_json, strict=True)
    if raw is None:
        return None
    known = {key: raw[key] for key in PoolRecord.__dataclass_fields__ if key in raw}
    known["processes"] = tuple(ProcessId(**process) for process in raw.get("processes", ()))
    known["nodes"] = tuple(raw.get("nodes", ()))
    return PoolRecord(**known)


def write_pool(home: PoolHome, record: PoolRecord) -> None:
    write_json(home.pool_json, asdict(record))


def running_pool(home: PoolHome) -> PoolRecord:
    """The record of a pool that is up; `NotFound` (code `pool-not-up`) otherwise."""
    record = read_pool(home)
    if record is None or not record.supervised():
        raise NotFound(f"no pool is up in {home.root}", todo="start one with: moorage up", code="pool-not-up")
    return record
