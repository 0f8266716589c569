"""Moorage's own routes under /moorage/v1, described once in `ROUTES`: the router and the OpenAPI page both read it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from moorage.errors import InvalidRequest
from moorage.runtime.control.api import AttemptView, EndpointView, GrowAsk, JobView, SubleaseView, WhyView
from moorage.runtime.frontdoor import guardapi, notices, poolapi, wire
from moorage.runtime.frontdoor.context import caller, context
from moorage.runtime.frontdoor.middleware import json_body
from moorage.runtime.frontdoor.openapi import Route, document

NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class LeaseRequest(Body):
    """More room for a running job: `workers` equal pieces, together or not at all, each on one node."""

    job_id: StrictStr | None = Field(None, description="needed unless a job-scoped token is used")
    workers: Annotated[StrictInt, Field(ge=1, le=4096)] = 1
    milli_gpu: Annotated[
        StrictInt, Field(ge=0, le=1_000_000, description="per piece, in thousandths of a GPU")
    ] = 0
    gpu_mib: Annotated[StrictInt, Field(ge=0, description="MiB of each device touched")] = 0
    milli_cpu: Annotated[StrictInt, Field(ge=0, description="per piece, in thousandths of a CPU")] = 1000
    timeout_s: Annotated[StrictInt | StrictFloat, Field(ge=0, allow_inf_nan=False)] = 60
    name: Annotated[StrictStr, Field(max_length=128)] = ""


class Lease(BaseModel):
    """A granted lease. `lease` has the shape of the environment variable MOORAGE_LEASE."""

    lease_id: str
    job_id: str
    team: str
    epoch: int
    lease: dict[str, Any]


class Released(BaseModel):
    """`released` is false when it was not held any more."""

    released: StrictBool


class EndpointRequest(Body):
    """Publish a Ray Serve application under /endpoints/<name>/."""

    name: Annotated[StrictStr, Field(pattern=NAME)]
    app: Annotated[StrictStr, Field(min_length=1, max_length=200, description="the Serve application's name")]
    route: Annotated[StrictStr, Field(pattern=r"^/[A-Za-z0-9_./-]*$", description="its route prefix")]
    job_id: StrictStr | None = None


class Endpoint(BaseModel):
    """A published endpoint; `live` is false once the job that published it has ended."""

    name: str
    app: str
    route: str
    team: str
    job_id: str
    created_ns: int
    live: bool
    path: str


class Attempt(BaseModel):
    attempt: int
    submission_id: str
    state: str
    started_ns: int | None
    ended_ns: int | None
    message: str
    driver_exit_code: int | None


class Job(BaseModel):
    """A job as Moorage sees it; `message` and `reason` say why it waits, when it does. Times are ns since 1970."""

    job_id: str
    team: str
    state: str
    ray_status: str
    message: str
    reason: dict[str, Any] | None
    entrypoint: str
    metadata: dict[str, str]
    created_ns: int
    started_ns: int | None
    ended_ns: int | None
    attempt: int
    lease: dict[str, Any] | None
    driver_exit_code: int | None
    attempts: list[Attempt] = []


class Held(BaseModel):
    """A lease that is held now; `ends_ns` is null where no `max_runtime` says when it ends at the latest."""

    lease: str
    kind: str
    milli_gpu: int
    since_ns: int
    ends_ns: int | None


class Explanation(BaseModel):
    """Why something waits. Each of `suggestions` was applied to a copy of the pool and planned again: it starts the job
    now. `earliest_ns` is null where the known ends of running jobs make no room (`ends_unknown` leases have none).
    `complete` is false when the search was stopped at its bound; `paused`: a failed attempt is tried again later."""

    job: str
    now_ns: int
    reason: dict[str, Any]
    suggestions: list[dict[str, Any]]
    earliest_ns: int | None
    earliest_text: str
    plans: int
    complete: bool
    ends_known: int
    ends_unknown: int
    paused: bool


class Why(Job):
    """A job, why it waits (`explanation`; null when it does not), and what it holds."""

    explanation: Explanation | None
    holds: list[Held]


class Usage(BaseModel):
    """What teams held over time; `capacity_milli_gpu` is what the pool has now."""

    from_ns: int
    to_ns: int
    capacity_milli_gpu: int
    teams: dict[str, list[int]]


class WhoAmI(BaseModel):
    principal: str
    kind: str
    team: str
    teams: list[str]
    job_id: str | None


def job_json(job: JobView, attempts: list[AttemptView] | None = None) -> dict[str, Any]:
    """The `Job` document of a view. The runtime environment is left out: it may hold the user's secrets."""
    return Job(
        job_id=job.job_id,
        team=job.team,
        state=job.state,
        ray_status=job.ray_status,
        message=job.message,
        reason=None if job.reason is None else dict(job.reason),
        entrypoint=job.submission.entrypoint,
        metadata=dict(job.submission.metadata),
        created_ns=job.created_ns,
        started_ns=job.started_ns,
        ended_ns=job.ended_ns,
        attempt=job.attempt,
        lease=None if job.lease is None else dict(job.lease),
        driver_exit_code=job.driver_exit_code,
        attempts=[Attempt(**asdict(one)) for one in attempts or []],
    ).model_dump(mode="json")


def why_json(view: WhyView, attempts: list[AttemptView]) -> dict[str, Any]:
    explanation = None if view.explanation is None else Explanation(**view.explanation)
    held = [Held(**one) for one in view.holds]
    return Why(**job_json(view.job, attempts), explanation=explanation, holds=held).model_dump(mode="json")


def endpoint_json(view: EndpointView) -> dict[str, Any]:
    return Endpoint(**asdict(view), path=f"/endpoints/{view.name}/").model_dump(mode="json")


def lease_json(view: SubleaseView) -> dict[str, Any]:
    return {
        "lease_id": view.lease_id,
        "job_id": view.job_id,
        "team": view.team,
        "epoch": view.epoch,
        "lease": dict(view.lease),
    }


def whole(query: Mapping[str, str], name: str, default: int, most: int) -> int:
    """An integer query parameter between 0 and `most`; InvalidRequest names it."""
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= most):
        raise InvalidRequest(
            f"Query parameter {name}={text[:40]!r} is not a number from 0 to {most}", code="bad-query"
        )
    return int(text)


async def who_am_i(request: web.Request) -> web.Response:
    who = caller(request)
    answer = WhoAmI(
        principal=who.principal, kind=who.kind, team=who.team, teams=sorted(who.teams), job_id=who.job_id
    )
    return web.json_response(answer.model_dump())


async def status(request: web.Request) -> web.Response:
    ours = context(request)
    return web.json_response(await ours.call(ours.control.status, caller(request)))


async def jobs(request: web.Request) -> web.Response:
    ours = context(request)
    limit = whole(request.query, "limit", 200, 10_000)
    state = request.query.get("state")
    found = await ours.call(ours.control.jobs, caller(request))
    chosen = [job for job in found if state is None or job.state == state.upper()]
    return web.json_response([job_json(job) for job in chosen[:limit]])


async def job(request: web.Request) -> web.Response:
    ours, job_id = context(request), request.match_info["job_id"]
    view = await ours.call(ours.control.job, caller(request), job_id)
    return web.json_response(job_json(view, await ours.call(ours.control.attempts, job_id)))


async def why(request: web.Request) -> web.Response:
    """In a thread of those that may wait: an explanation takes longer than other calls, and waits for its turn."""
    ours, job_id = context(request), request.match_info["job_id"]
    view = await ours.wait(ours.control.why, caller(request), job_id)
    return web.json_response(why_json(view, await ours.call(ours.control.attempts, job_id)))


async def events(request: web.Request) -> web.Response:
    ours, job_id = context(request), request.match_info.get("job_id")
    after = whole(request.query, "after", 0, 1 << 62)
    limit = whole(request.query, "limit", 100, 1000)
    last = whole(request.query, "last", 0, 1000)
    if job_id is not None:
        await ours.call(ours.control.job, caller(request), job_id)
    found = await ours.call(ours.control.events, caller(request), after, last or limit, job_id, last > 0)
    return web.json_response(found)


async def grow(request: web.Request) -> web.Response:
    """Waits until granted or `timeout_s` is over. A lease granted to a client that has left is given back."""
    ours, who = context(request), caller(request)
    asked = wire.validate(LeaseRequest, await json_body(request))
    wanted = asked.model_dump()
    wanted["timeout_s"] = min(float(asked.timeout_s), ours.settings.max_lease_wait_s)
    granting = asyncio.ensure_future(ours.wait(ours.control.grow, who, GrowAsk(**wanted)))

    def give_back(granted: asyncio.Future[SubleaseView]) -> None:
        if not granted.cancelled() and granted.exception() is None:
            ours.waits.submit(ours.control.release_sublease, who, granted.result().lease_id)

    try:
        view = await asyncio.shield(granting)
    except asyncio.CancelledError:
        # The thread goes on waiting whoever cancels: what it still gets has no owner.
        granting.add_done_callback(give_back)
        raise
    if request.transport is None or request.transport.is_closing():
        give_back(granting)
    return web.json_response(lease_json(view), status=201)


async def release(request: web.Request) -> web.Response:
    ours = context(request)
    done = await ours.call(ours.control.release_sublease, caller(request), request.match_info["lease_id"])
    return web.json_response({"released": done})


async def publish(request: web.Request) -> web.Response:
    ours = context(request)
    asked = wire.validate(EndpointRequest, await json_body(request))
    view = await ours.call(
        ours.control.publish_endpoint, caller(request), asked.name, asked.app, asked.route, asked.job_id
    )
    ours.forget()
    return web.json_response(endpoint_json(view), status=201)


async def endpoints(request: web.Request) -> web.Response:
    ours = context(request)
    return web.json_response(
        [endpoint_json(one) for one in await ours.call(ours.control.endpoints, caller(request))]
    )


async def cost(request: web.Request) -> web.Response:
    ours = context(request)
    return web.json_response(await ours.call(ours.control.cost, caller(request)))


async def usage(request: web.Request) -> web.Response:
    ours = context(request)
    minutes = whole(request.query, "minutes", 60, 7 * 24 * 60)
    points = whole(request.query, "points", 60, 1000)
    return web.json_response(
        await ours.call(ours.control.usage, caller(request), max(1, minutes), max(1, points))
    )


async def openapi(request: web.Request) -> web.Response:
    return web.json_response(document(ROUTES))


_PAGE = {
    "after": "only events with a greater sequence number",
    "limit": "at most so many, the oldest of them",
    "last": "at most so many, the newest of them",
}
ROUTES: tuple[Route, ...] = (
    Route("GET", "/moorage/v1/whoami", who_am_i, "Who this token belongs to", answer=WhoAmI),
    Route(
        "GET",
        "/moorage/v1/status",
        status,
        "Nodes, devices and holders, queue with reasons, teams with quotas",
    ),
    Route(
        "GET",
        "/moorage/v1/jobs",
        jobs,
        "Jobs of the caller's teams, newest first",
        answer=list[Job],
        query={"state": "only jobs in this state", "limit": "at most so many"},
    ),
    Route("GET", "/moorage/v1/jobs/{job_id}", job, "One job with its attempts and why it waits", answer=Job),
    Route(
        "GET",
        "/moorage/v1/jobs/{job_id}/why",
        why,
        "Why a job waits, what would start it now, and when it starts (429 when too many ask at once)",
        answer=Why,
    ),
    Route(
        "GET",
        "/moorage/v1/jobs/{job_id}/notice",
        notices.notice,
        "Whether the job was told to leave for another one",
        answer=notices.Noticed,
        query=notices.QUERY,
    ),
    Route(
        "POST",
        "/moorage/v1/jobs/{job_id}/notice",
        notices.answered,
        "What the job did after its notice",
        body=notices.NoticeAnswer,
        answer=notices.Recorded,
    ),
    Route(
        "GET",
        "/moorage/v1/jobs/{job_id}/events",
        events,
        "The audit record of one job",
        answer=list[dict[str, Any]],
        query=_PAGE,
    ),
    Route(
        "GET",
        "/moorage/v1/events",
        events,
        "The audit record the caller may see, oldest first",
        answer=list[dict[str, Any]],
        query=_PAGE,
    ),
    Route(
        "POST",
        "/moorage/v1/leases",
        grow,
        "Grow a running job's lease; waits until granted or timed out (408 with the reason)",
        body=LeaseRequest,
        answer=Lease,
        created=True,
    ),
    Route("DELETE", "/moorage/v1/leases/{lease_id}", release, "Give a grown lease back", answer=Released),
    Route(
        "POST",
        "/moorage/v1/endpoints",
        publish,
        "Publish an endpoint",
        body=EndpointRequest,
        answer=Endpoint,
        created=True,
    ),
    Route(
        "GET", "/moorage/v1/endpoints", endpoints, "Endpoints of the caller's teams", answer=list[Endpoint]
    ),
    Route(
        "GET", "/moorage/v1/cost", cost, "GPU time and money per team and job, from the ledger's own events"
    ),
    Route(
        "GET",
        "/moorage/v1/usage",
        usage,
        "milli-GPU held by each team over the last minutes, as means over equal parts of them",
        answer=Usage,
        query={"minutes": "how far back, a week at most", "points": "into how many parts, 1000 at most"},
    ),
    Route(
        "GET",
        "/moorage/v1/guard",
        guardapi.guard,
        "GPUs held without a lease or beyond it: warned about, stopped, cleared",
        answer=guardapi.GuardReport,
    ),
    *poolapi.ROUTES,
    Route("GET", "/moorage/v1/openapi.json", openapi, "This document", secured=False),
)


def add(app: web.Application) -> None:
    for route in ROUTES:
        app.router.add_route(route.method, route.path, route.handler)
