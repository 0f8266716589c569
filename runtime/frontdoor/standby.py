"""What a control plane answers on its port while it stands by: that it does, and who leads."""

from __future__ import annotations

from aiohttp import web

from moorage.errors import Unavailable
from moorage.runtime.frontdoor.middleware import problem_response

RETRY_AFTER_S = 2


class Waiting:
    """`leader` is the URL of the leader's front door, "" while none is known."""

    def __init__(self) -> None:
        self.leader = ""
        self.generation = 0

    def app(self) -> web.Application:
        """Needs no token: nothing of the pool is said but who leads."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_route("*", "/{path:.*}", self._refuse)
        return app

    async def _healthz(self, request: web.Request) -> web.Response:
        """200: it does what it is there for."""
        found = {"ok": True, "role": "standby", "leader": self.leader, "generation": self.generation}
        return web.json_response(found)

    async def _refuse(self, request: web.Request) -> web.Response:
        led = f"generation {self.generation} at {self.leader}" if self.leader else "nobody that is known"
        error = Unavailable(
            "This control plane stands by",
            why=f"it is led by {led}",
            todo="ask the leader; if it has died, try again in a moment",
            code="standby",
            leader=self.leader,
            retry_after_s=RETRY_AFTER_S,
        )
        return problem_response(error)
