"""`python -m moorage.runtime.control --home H --port P --teams FILE`: the control plane and its front door.

One process: the reconcile loop in a thread, the front door on 127.0.0.1. It may be killed at any moment; the next
start goes on from the store. With --standby it waits while another one leads, and takes over when that dies or stalls.
SIGTERM ends it cleanly. Exit codes: 0 ended, 2 cannot start, 3 another one has taken over, 4 its loop hung (one line
says why).
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from aiohttp import web

from moorage.cluster import binding
from moorage.cluster.backend import Backend
from moorage.cluster.client import RayBackend
from moorage.configs.pool import PoolSettings, load_pool
from moorage.configs.teams import Teams, load_teams, parse_teams
from moorage.errors import Conflict, InvalidRequest, MoorageError
from moorage.runtime.control import logs, tokens, watchdog
from moorage.runtime.control.launching import LaunchSettings
from moorage.runtime.control.leadership import Fenced, Interrupted, Leader, Standing
from moorage.runtime.control.loop import THREAD as LOOP
from moorage.runtime.control.service import Service
from moorage.runtime.control.store import sqlite_url
from moorage.runtime.frontdoor import app as frontdoor
from moorage.runtime.frontdoor.settings import MIB, Settings
from moorage.runtime.frontdoor.standby import Waiting
from moorage.runtime.pool.home import DEFAULT_PORT, PoolHome, read_pool
from moorage.scheduling.warm import warm_up

log = logging.getLogger("moorage.control")
HOST = "127.0.0.1"
DEFAULT_TEAMS = "teams: {default: {}}"


def main(arguments: list[str] | None = None, backend: Callable[[Path], Backend] = RayBackend) -> int:
    """Run until SIGTERM or SIGINT, or until another control plane leads; the exit code. `backend`: of a home."""
    options = _options(arguments)
    os.umask(0o077)
    logs.to_stderr()
    home = PoolHome(Path(os.path.abspath(options.home)))
    try:
        home.make()
        asyncio.run(_serve(home, options, backend(home.root)))
    except Interrupted:
        return 0
    except MoorageError as error:
        log.error("%s", error)
        return 3 if isinstance(error, Fenced) else 2
    return 0


async def _serve(home: PoolHome, options: argparse.Namespace, backend: Backend) -> None:
    teams, settings = _teams(home, options.teams), _pool(home, options.pool)
    ending = _ending()
    service = await _lead(home, options, teams, settings, backend, ending)
    loop, lost = asyncio.get_running_loop(), service.store.leader.lost
    service.store.leader.when_lost(partial(_tell, loop, ending))
    door = Settings(
        home=home.root,
        max_package=settings.package_limit_mib * MIB,
        max_spool=settings.spool_limit_mib * MIB,
        requests_per_s=settings.requests_per_s,
        request_burst=5 * settings.requests_per_s,
        ray_dashboard=settings.ray_dashboard,
        grafana=settings.grafana,
    )
    runner = web.AppRunner(frontdoor.create_app(service, None, door), access_log=None, shutdown_timeout=3.0)
    watch = watchdog.Watchdog(lambda: service.loop.at, settings.stuck_s, partial(watchdog.end, LOOP))
    try:
        await runner.setup()
        await _listen(runner, options.port)
        service.start()
        watch.start()
        threading.Thread(target=warm_up, name="warm-up", daemon=True).start()
        log.info(
            "front door on http://%s:%d, generation %d, teams: %s",
            HOST,
            options.port,
            service.store.leader.generation,
            ", ".join(sorted(teams.teams)),
        )
        await ending.wait()
        log.info("stopping")
    finally:
        await runner.cleanup()
        await asyncio.to_thread(service.close)
        watch.stop()
    if lost.is_set():
        service.store.leader.confirm()


async def _lead(
    home: PoolHome,
    options: argparse.Namespace,
    teams: Teams,
    settings: PoolSettings,
    backend: Backend,
    ending: asyncio.Event,
) -> Service:
    """The service, once this control plane leads. Until then the port says who does."""
    waiting, loop = Waiting(), asyncio.get_running_loop()
    own = settings.front_door or f"http://{HOST}:{options.port}"
    waits = asyncio.Event()

    def told(leader: Leader) -> None:
        if leader.generation and options.standby and not any(home.tokens.glob("*.token")):
            raise InvalidRequest(  # else a takeover would issue new ones, and everybody's would be void
                f"{home.tokens} has no tokens, and the pool that is led has some",
                todo="copy tokens/, control.secret and packages/ from the leader's home, then start this one again",
                code="tokens-missing",
            )
        waiting.leader, waiting.generation = str(leader.about.get("door", "")), leader.generation
        log.info("standing by for generation %d at %s", waiting.generation, waiting.leader)
        _tell(loop, waits)

    standing = Standing(standby=options.standby, stall_s=settings.takeover_s, door=own, told=told)
    made = partial(
        Service,
        url=options.database or settings.database or sqlite_url(home.control_db),
        teams=teams,
        backend=backend,
        token_folder=home.tokens,
        where=LaunchSettings(
            url=own,
            data=str(home.data),
            secret=tokens.secret_file(home.root / "control.secret"),
            inject=str(Path(binding.__file__).parent / "inject"),
        ),
        settings=settings,
        guard=settings.guard.policy(joined=_joined(home)),
        standing=standing,
    )
    service = asyncio.ensure_future(asyncio.to_thread(made))
    others = [asyncio.ensure_future(waits.wait()), asyncio.ensure_future(ending.wait())]
    runner = web.AppRunner(waiting.app(), access_log=None, shutdown_timeout=0.5)
    try:
        await asyncio.wait([service, *others], return_when=asyncio.FIRST_COMPLETED)
        if options.standby and not service.done():
            await runner.setup()
            await _listen(runner, options.port)
            await asyncio.wait([service, others[1]], return_when=asyncio.FIRST_COMPLETED)
        if ending.is_set():
            standing.ended.set()
        return await service
    finally:
        standing.ended.set()
        for other in others:
            other.cancel()
        await runner.cleanup()


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


def _tell(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    """Set an event of the loop from any thread."""
    loop.call_soon_threadsafe(event.set)


def _ending() -> asyncio.Event:
    """Set by SIGTERM and SIGINT."""
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    return ending


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
    parser.add_argument(
        "--standby", action="store_true", help="wait while another one leads, and take over from it"
    )
    parser.add_argument("--teams", help="teams file (default: teams.yaml in the home)")
    parser.add_argument("--pool", help="pool settings file (default: pool.yaml in the home)")
    parser.add_argument(
        "--database", help="its URL (default: `database` of the pool settings, else control.db)"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
