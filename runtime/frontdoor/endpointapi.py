"""Routes of endpoints: published names, and what their jobs say of their replicas."""

from __future__ import annotations

from typing import Annotated

from aiohttp import web
from pydantic import Field, StrictFloat, StrictInt, StrictStr

from moorage.runtime import answers
from moorage.runtime.control.api import EndpointView, ReplicaReport
from moorage.runtime.frontdoor import wire
from moorage.runtime.frontdoor.context import caller, context
from moorage.runtime.frontdoor.middleware import json_body
from moorage.runtime.frontdoor.openapi import Route

NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
Figure = Annotated[StrictInt | StrictFloat, Field(allow_inf_nan=False)]


class EndpointRequest(wire.Body):
    """Publish a Ray Serve application under /endpoints/<name>/."""

    name: Annotated[StrictStr, Field(pattern=NAME)]
    app: Annotated[StrictStr, Field(min_length=1, max_length=200, description="the Serve application's name")]
    route: Annotated[StrictStr, Field(pattern=r"^/[A-Za-z0-9_./-]*$", description="its route prefix")]
    job_id: StrictStr | None = None


class ReplicasRequest(wire.Body):
    """What an endpoint's own job says of its replicas; whole each time."""

    min_replicas: StrictInt
    max_replicas: StrictInt
    wanted: Annotated[StrictInt, Field(description="how many the load asks for, within the bounds")]
    replicas: Annotated[list[answers.Replica], Field(max_length=1000)]
    load: dict[StrictStr, Figure] = Field({}, max_length=20)
    note: Annotated[StrictStr, Field(max_length=1000)] = ""


def endpoint_json(view: EndpointView) -> answers.Endpoint:
    return {
        "name": view.name,
        "app": view.app,
        "route": view.route,
        "team": view.team,
        "job_id": view.job_id,
        "created_ns": view.created_ns,
        "live": view.live,
        "path": f"/endpoints/{view.name}/",
        "scaling": view.scaling,
    }


async def publish(request: web.Request) -> web.Response:
    ours = context(request)
    asked = wire.validate(EndpointRequest, await json_body(request))
    view = await ours.call(
        ours.control.publish_endpoint, caller(request), asked.name, asked.app, asked.route, asked.job_id
    )
    ours.forget()
    return web.json_response(endpoint_json(view), status=201)


async def report(request: web.Request) -> web.Response:
    """What was remembered of the endpoint is forgotten only if other replicas serve now: its load changes often."""
    ours, name = context(request), request.match_info["name"]
    asked = wire.validate(ReplicasRequest, await json_body(request))
    said = ReplicaReport(
        min_replicas=asked.min_replicas,
        max_replicas=asked.max_replicas,
        wanted=asked.wanted,
        replicas=asked.replicas,
        load=asked.load,
        note=asked.note,
    )
    view = await ours.call(ours.control.report_replicas, caller(request), name, said)
    known = ours.endpoints.get(name)
    if known is not None and known.routes != view.routes:
        ours.endpoints.put(name, view)
    routes = [one["route"] for one in asked.replicas]
    under_way = {route: ours.at_routes[route] for route in routes if route in ours.at_routes}
    return web.json_response(answers.Reported(**endpoint_json(view), under_way=under_way))


async def endpoints(request: web.Request) -> web.Response:
    ours = context(request)
    return web.json_response(
        [endpoint_json(one) for one in await ours.call(ours.control.endpoints, caller(request))]
    )


ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/moorage/v1/endpoints",
        publish,
        "Publish an endpoint",
        body=EndpointRequest,
        answer=answers.Endpoint,
        created=True,
    ),
    Route(
        "GET",
        "/moorage/v1/endpoints",
        endpoints,
        "Endpoints of the caller's teams",
        answer=list[answers.Endpoint],
    ),
    Route(
        "PUT",
        "/moorage/v1/endpoints/{name}/replicas",
        report,
        "What an endpoint's job says of its replicas: requests go to those that serve",
        body=ReplicasRequest,
        answer=answers.Reported,
    ),
)
