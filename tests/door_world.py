"""The whole way of a command: `moorage ...` over HTTP to a front door on a real socket, the real control plane behind
it, and a simulated pool behind that. Nothing happens by itself: a test calls `pool.run(seconds)`."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import control_world
from aiohttp import web
from click.testing import CliRunner, Result

from moorage.cli import cli
from moorage.runtime.client import Client
from moorage.runtime.frontdoor.app import create_app
from moorage.runtime.frontdoor.settings import Settings


@dataclass
class Door:
    pool: control_world.World
    url: str

    def token(self, who: str) -> str:
        return (self.pool.tokens / f"{who}.token").read_text().strip()

    def client(self, who: str = "admin") -> Client:
        return Client(self.url, self.token(who))

    def run(self, *arguments: str, who: str = "admin", ok: bool = True) -> Result:
        """One command line; a refusal is its error in `exception` and no output."""
        environment = {"MOORAGE_URL": self.url, "MOORAGE_TOKEN": self.token(who)}
        done = CliRunner().invoke(cli, list(arguments), env=environment)
        assert (done.exit_code == 0) == ok, (done.output, done.exception)
        return done

    def json(self, *arguments: str, who: str = "admin") -> Any:
        return json.loads(self.run(*arguments, "--json", who=who).stdout)


@contextmanager
def door(tmp_path: Path, **options: Any) -> Iterator[Door]:
    """`options`: of `control_world.world`."""
    (tmp_path / "ray.token").write_text("x")
    with control_world.world(tmp_path, **options) as pool, serving(pool, tmp_path) as url:
        yield Door(pool, url)


@contextmanager
def serving(pool: control_world.World, home: Path) -> Iterator[str]:
    """Its URL. Requests are answered in a thread of their own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> tuple[web.AppRunner, str]:
        runner = web.AppRunner(create_app(pool.service, None, Settings(home=home)))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"

    try:
        runner, url = asyncio.run_coroutine_threadsafe(start(), loop).result(20)
        try:
            yield url
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(20)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()
