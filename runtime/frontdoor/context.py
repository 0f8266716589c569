"""What every handler can reach: the control plane (off the loop), the spool, the dashboard, the caller."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp import web

from moorage.errors import Unavailable
from moorage.runtime.control.api import Caller, Control, EndpointView
from moorage.runtime.frontdoor.cache import ADDRESS_S, Remembered, mark
from moorage.runtime.frontdoor.limits import RateLimit
from moorage.runtime.frontdoor.settings import Settings
from moorage.runtime.frontdoor.spool import Spool
from moorage.runtime.frontdoor.upstream import Upstream

if TYPE_CHECKING:
    from moorage.runtime.frontdoor.raydash import View

T = TypeVar("T")
CALL_THREADS = 16
WAIT_THREADS = 256
"""Threads that may sit in a blocking `grow`; each waiting `lease(...)` holds one."""


@dataclass(slots=True)
class Context:
    """One per application. `followers` are the connections of open tail websockets,
    cut when the server stops."""

    control: Control
    spool: Spool
    settings: Settings
    upstream: Upstream
    calls: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(CALL_THREADS, "control-call")
    )
    waits: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(WAIT_THREADS, "lease-wait"))
    log_slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(4))
    followers: set[asyncio.BaseTransport] = field(default_factory=set)
    in_flight: int = 0
    at_routes: Counter[str] = field(default_factory=Counter)
    """Requests under way by the route of Serve they went to; routes without any are not in it."""
    turn: int = 0
    made_room_s: float = float("-inf")
    """When packages were last pruned because there was no room (monotonic)."""
    views: dict[str, View] = field(default_factory=dict)
    """Who looks at Ray's dashboard (`raydash`), by the views' names."""
    limit: RateLimit = field(init=False)
    callers: Remembered[bytes, Caller] = field(init=False)
    endpoints: Remembered[str, EndpointView] = field(init=False)
    addresses: Remembered[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.limit = RateLimit(self.settings.requests_per_s, self.settings.request_burst)
        keep_s = self.settings.endpoint_cache_s
        self.callers, self.endpoints = Remembered(keep_s), Remembered(keep_s)
        self.addresses = Remembered(min(keep_s, ADDRESS_S))

    async def call(self, function: Callable[..., T], *args: Any, **named: Any) -> T:
        """Run a synchronous control-plane call on a worker thread: the loop never waits for the database.

        Unavailable (code `overloaded`) when too many wait already: better refused now than answered when nobody waits.
        """
        if self.in_flight >= self.settings.most_in_flight:
            raise Unavailable(
                f"{self.in_flight} requests are under way",
                todo="ask again in a moment",
                code="overloaded",
                retry_after_s=1,
            )
        self.in_flight += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self.calls, partial(function, *args, **named))
        finally:
            self.in_flight -= 1

    async def endpoint_caller(self, token: str) -> Caller:
        """Who asks an endpoint: as `control.authenticate`, up to `endpoint_cache_s` old."""
        key, asked_at = mark(token), time.monotonic()
        found = self.callers.get(key)
        if found is None:
            found = await self.call(self.control.authenticate, token)
            self.callers.put(key, found, asked_at)
        return found

    async def endpoint(self, name: str) -> EndpointView:
        """As `control.endpoint`, up to `endpoint_cache_s` old."""
        asked_at = time.monotonic()
        found = self.endpoints.get(name)
        if found is None:
            found = await self.call(self.control.endpoint, name)
            if found.live:
                self.endpoints.put(name, found, asked_at)
        return found

    def forget(self) -> None:
        """After a change that came through this front door: what is remembered may be wrong now."""
        self.callers.clear()
        self.endpoints.clear()

    @contextmanager
    def route_of(self, view: EndpointView) -> Iterator[str]:
        """The replica's route with the fewest requests under way, counted while the block lasts. Of equals each in
        turn: a count of zero says nothing of who was just asked."""
        self.turn += 1
        routes = view.routes
        places = range(len(routes))
        best = min(places, key=lambda at: (self.at_routes[routes[at]], (at + self.turn) % len(routes)))
        route = routes[best]
        self.at_routes[route] += 1
        try:
            yield route
        finally:
            self.at_routes[route] -= 1
            if not self.at_routes[route]:
                del self.at_routes[route]

    def serve_address(self) -> str | None:
        """Serve's base URL, up to a second old."""
        found = self.addresses.get("serve") or self.settings.address("serve")
        if found is not None and self.addresses.get("serve") is None:
            self.addresses.put("serve", found)
        return found

    async def wait(self, function: Callable[..., T], *args: Any) -> T:
        """Same, for calls that block until something is granted; they have threads of their own."""
        return await asyncio.get_running_loop().run_in_executor(self.waits, partial(function, *args))


CONTEXT: web.AppKey[Context] = web.AppKey("context", Context)
_CALLER: web.RequestKey[Caller] = web.RequestKey("caller", Caller)


def context(request: web.BaseRequest) -> Context:
    assert isinstance(request, web.Request)
    return request.app[CONTEXT]


def caller(request: web.BaseRequest) -> Caller:
    """Set by the authentication layer; a handler that asks without one is a bug."""
    return request[_CALLER]


def set_caller(request: web.BaseRequest, who: Caller) -> None:
    request[_CALLER] = who


def principal(request: web.BaseRequest) -> str:
    """For logs: who asked, or "-" before authentication."""
    found = request.get(_CALLER)
    return "-" if found is None else found.principal
