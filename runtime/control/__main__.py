"""`python -m moorage.runtime.control --home H --port P --teams FILE`: the control plane and its front door.

One process: the reconcile loop in a thread, the front door on 127.0.0.1. It may be killed at any moment; the next
start goes on from the store. SIGTERM ends it cleanly. Exit codes: 0 ended, 2 cannot start (one line says why).
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import fcntl
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import IO

from aiohttp import web

from moorage.cluster import binding
from moorage.cluster.client import RayBackend
from moorage.configs.pool import PoolSettings, load_pool
from moorage.configs.teams import Teams, load_teams, parse_teams
from moorage.errors import Conflict, MoorageError
from moorage.runtime.control import logs, tokens
from moorage.runtime.control.launching import LaunchSettings
from moorage.runtime.control.service import Service
from moorage.runtime.control.store import sqlite_url
from moorage.runtime.frontdoor import app as frontdoor
from moorage.runtime.frontdoor.settings import MIB, Settings
from moorage.runtime.pool.home import DEFAULT_PORT, PoolHome, read_pool
from moorage.scheduling.warm import warm_up

log = logging.getLogger("moorage.control")
HOST = "127.0.0.1"
DEFAULT_TEAMS = "teams: {default: {}}"


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; the exit code."""
    options = _options(arguments)
    os.umask(0o077)
    logs.to_stderr()
    home = PoolHome(Path(os.path.abspath(options.home)))
    try:
        home.make()
        with _OnlyOne(home.root / "control.lock"):
            asyncio.run(_serve(home, options))
    except MoorageError as error:
        log.error("%s", error)
        return 2
    return 0


async def _serve(home: PoolHome, options: argparse.Namespace) -> None:
    teams, settings = _teams(home, options.teams), _pool(home, options.pool)
    service = Service(
        url=options.database or settings.database or sqlite_url(home.control_db),
        teams=teams,
        backend=RayBackend(home.root),
        token_folder=home.tokens,
        where=LaunchSettings(
            url=f"http://{HOST}:{options.port}",
            data=str(home.data),
            secret=tokens.secret_file(home.root / "control.secret"),
            inject=str(Path(binding.__file__).parent / "inject"),
        ),
        settings=settings,
        guard=settings.guard.policy(joined=_joined(home)),
    )
    door = Settings(
        home=home.root,
        max_package=settings.package_limit_mib * MIB,
        requests_per_s=settings.requests_per_s,
        request_burst=5 * settings.requests_per_s,
    )
    runner = web.AppRunner(frontdoor.create_app(service, None, door), access_log=None, shutdown_timeout=3.0)
    try:
        await runner.setup()
        await _listen(runner, options.port)
        service.start()
        threading.Thread(target=warm_up, name="warm-up", daemon=True).start()
        log.info("front door on http://%s:%d, teams: %s", HOST, options.port, ", ".join(sorted(teams.teams)))
        await _ended()
        log.info("stopping")
    finally:
        await runner.cleanup()
        await asyncio.to_thread(service.close)


async def _listen(runner: web.AppRunner, port: int) -> None:
    try:
        await web.TCPSite(runner, HOST, port).start()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise Conflict(
            f"port {port} is taken",
            why="another program listens there",
            todo="choose another --port",
            code="port-taken",
        ) from None


async def _ended() -> None:
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    await ending.wait()


class _OnlyOne:
    """Holds the home's lock: two control planes on one store would each start every job."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def __enter__(self) -> None:
        self._file = self._path.open("a")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Conflict(
                f"a control plane already runs in {self._path.parent}",
                todo="moorage down stops it",
                code="already-up",
            ) from None

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _teams(home: PoolHome, given: str | None) -> Teams:
    path = Path(given) if given else home.teams_yaml
    return load_teams(path) if given or path.exists() else parse_teams(DEFAULT_TEAMS, "the default teams")


def _pool(home: PoolHome, given: str | None) -> PoolSettings:
    path = Path(given) if given else home.root / "pool.yaml"
    return load_pool(path) if given or path.exists() else PoolSettings()


def _joined(home: PoolHome) -> bool:
    """Whether the Ray cluster is one that `up` joined: others' work may run there."""
    record = read_pool(home)
    return record is not None and record.joined


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m moorage.runtime.control", description=__doc__)
    parser.add_argument("--home", required=True, help="the pool's home")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="port of the front door on 127.0.0.1")
    parser.add_argument("--teams", help="teams file (default: teams.yaml in the home)")
    parser.add_argument("--pool", help="pool settings file (default: pool.yaml in the home)")
    parser.add_argument(
        "--database", help="its URL (default: `database` of the pool settings, else control.db)"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
