"""The application: layers, routes, and what starts and stops with it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from logging.handlers import RotatingFileHandler

from aiohttp import web

from moorage.runtime.control.api import Control
from moorage.runtime.frontdoor import metrics, ownapi, page, proxy, raydash, rayjobs
from moorage.runtime.frontdoor.context import CONTEXT, Context
from moorage.runtime.frontdoor.middleware import LAYERS, access, log
from moorage.runtime.frontdoor.packages import prune
from moorage.runtime.frontdoor.settings import Settings
from moorage.runtime.frontdoor.spool import Spool
from moorage.runtime.frontdoor.upstream import Upstream

PRUNE_EVERY_S = 3600.0


def spool_of(settings: Settings) -> Spool:
    """The spool of a pool's home."""
    return Spool(settings.packages, settings.max_package, settings.max_unpacked, settings.max_spool)


def create_app(control: Control, spool: Spool | None, settings: Settings) -> web.Application:
    """The front door over `control`. Run it on a loopback address with `aiohttp.web`; nothing here blocks the loop."""
    measured = metrics.RequestMetrics()
    app = web.Application(middlewares=[measured.middleware(), *LAYERS], client_max_size=settings.max_body)
    app[CONTEXT] = Context(control, spool or spool_of(settings), settings, Upstream(settings))
    rayjobs.add(app)
    ownapi.add(app)
    proxy.add(app)
    raydash.add(app)
    page.add(app)
    app.router.add_get("/healthz", metrics.healthz)
    app.router.add_get("/readyz", metrics.readyz)
    app.router.add_get("/metrics", measured.metrics)
    app.cleanup_ctx.append(_running)
    app.on_shutdown.append(_cut_followers)
    return app


async def _running(app: web.Application) -> AsyncIterator[None]:
    ours = app[CONTEXT]
    handler = _access_handler(ours.settings)
    await ours.upstream.start()
    pruning = asyncio.create_task(_prune_for_ever(ours))
    yield
    pruning.cancel()
    await ours.upstream.close()
    ours.calls.shutdown(wait=False, cancel_futures=True)
    ours.waits.shutdown(wait=False, cancel_futures=True)
    access.removeHandler(handler)
    handler.close()


async def _prune_for_ever(ours: Context) -> None:
    while True:
        try:
            await ours.call(prune, ours, time.time())
        except Exception:
            log.exception("the spool was not pruned")
        await asyncio.sleep(PRUNE_EVERY_S)


async def _cut_followers(app: web.Application) -> None:
    """aiohttp would close them with 1001, which the stock client takes for the job's end."""
    for transport in list(app[CONTEXT].followers):
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


def _access_handler(settings: Settings) -> logging.Handler:
    settings.access_log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handler = RotatingFileHandler(
        settings.access_log, maxBytes=16 << 20, backupCount=3, encoding="utf-8", delay=True
    )
    handler.setFormatter(logging.Formatter("%(message)s"))
    access.addHandler(handler)
    access.setLevel(logging.INFO)
    access.propagate = False
    return handler
