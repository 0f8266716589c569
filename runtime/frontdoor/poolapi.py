"""Routes of the pool itself: what its guard found, its quotas, and nodes that are drained."""

from __future__ import annotations

from typing import Annotated

from aiohttp import web
from pydantic import Field, StrictBool, StrictInt, StrictStr

from moorage.runtime import answers
from moorage.runtime.frontdoor import wire
from moorage.runtime.frontdoor.context import caller, context
from moorage.runtime.frontdoor.middleware import json_body
from moorage.runtime.frontdoor.openapi import Route


class QuotaRequest(wire.Body):
    """Put a teams file in force."""

    file: Annotated[StrictStr, Field(max_length=4_000_000, description="the teams file, YAML")]
    base: Annotated[StrictInt, Field(ge=0)] | None = Field(
        None, description="refused unless this version is in force"
    )
    force: StrictBool = Field(
        False, description="also when it guarantees more than the nodes that are up have"
    )
    dry_run: StrictBool = Field(False, description="only say what would change")


class DrainRequest(wire.Body):
    """Let a node take nothing new."""

    why: Annotated[
        StrictStr, Field(max_length=200, description="for the record, and for who looks at the node")
    ] = ""


async def guard(request: web.Request) -> web.Response:
    ours = context(request)
    return web.json_response(await ours.call(ours.control.guard, caller(request)))


async def quotas(request: web.Request) -> web.Response:
    ours = context(request)
    return web.json_response(await ours.call(ours.control.quotas, caller(request)))


async def put_quotas(request: web.Request) -> web.Response:
    ours, asked = context(request), wire.validate(QuotaRequest, await json_body(request))
    done = await ours.call(
        ours.control.put_quotas, caller(request), asked.file, asked.base, asked.force, asked.dry_run
    )
    ours.forget()
    return web.json_response(done)


async def drain(request: web.Request) -> web.Response:
    ours, asked = context(request), wire.validate(DrainRequest, await json_body(request))
    node = request.match_info["node"]
    return web.json_response(await ours.call(ours.control.drain, caller(request), node, True, asked.why))


async def undrain(request: web.Request) -> web.Response:
    ours, node = context(request), request.match_info["node"]
    return web.json_response(await ours.call(ours.control.drain, caller(request), node, False))


ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/moorage/v1/guard",
        guard,
        "GPUs held without a lease or beyond it: warned about, stopped, cleared",
        answer=answers.GuardReport,
    ),
    Route("GET", "/moorage/v1/quotas", quotas, "The quotas in force", answer=answers.Quotas),
    Route(
        "PUT",
        "/moorage/v1/quotas",
        put_quotas,
        "Put other quotas in force (admin; 422 when they guarantee more than there is)",
        body=QuotaRequest,
        answer=answers.QuotasPut,
    ),
    Route(
        "POST",
        "/moorage/v1/nodes/{node}/drain",
        drain,
        "Let a node take nothing new; what runs there goes on (admin)",
        body=DrainRequest,
        answer=answers.Drained,
    ),
    Route(
        "DELETE",
        "/moorage/v1/nodes/{node}/drain",
        undrain,
        "Let a drained node take work again (admin)",
        answer=answers.Drained,
    ),
)
