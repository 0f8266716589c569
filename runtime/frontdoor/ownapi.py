"""Moorage's own routes under /moorage/v1, described once in `ROUTES`: the router and the OpenAPI page both read it."""

from __future__ import annotations

import asyncio
from typing import Annotated

from aiohttp import web
from pydantic import Field, StrictFloat, StrictInt, StrictStr

from moorage.runtime import answers
from moorage.runtime.control.api import GrowAsk, JobView, WhyView
from moorage.runtime.frontdoor import endpointapi, leaseapi, notices, poolapi, raydash, wire
from moorage.runtime.frontdoor.context import caller, context
from moorage.runtime.frontdoor.middleware import json_body
from moorage.runtime.frontdoor.openapi import Route, document


class LeaseRequest(wire.Body):
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


def job_json(job: JobView, attempts: list[answers.Attempt] | None = None) -> answers.Job:
    """The `Job` document of a view. The runtime environment is left out: it may hold the user's secrets."""
    return answers.Job(
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
        attempts=attempts or [],
    )


def why_json(view: WhyView, attempts: list[answers.Attempt]) -> answers.Why:
    job = job_json(view.job, attempts)
    return answers.Why(**job, explanation=view.explanation, holds=view.holds, asks=view.asks)


async def who_am_i(request: web.Request) -> web.Response:
    who, settings = caller(request), context(request).settings
    answer = answers.WhoAmI(
        principal=who.principal,
        kind=who.kind,
        team=who.team,
        teams=sorted(who.teams),
        job_id=who.job_id,
        ray_dashboard=raydash.may_look(settings, who),
        grafana=settings.grafana,
    )
    return web.json_response(answer)


async def status(request: web.Request) -> web.Response:
    ours = context(request)
    return web.json_response(await ours.call(ours.control.status, caller(request)))


async def jobs(request: web.Request) -> web.Response:
    ours = context(request)
    limit = wire.whole(request.query, "limit", 200, 10_000)
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
    after = wire.whole(request.query, "after", 0, 1 << 62)
    limit = wire.whole(request.query, "limit", 100, 1000)
    last = wire.whole(request.query, "last", 0, 1000)
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

    def give_back(granted: asyncio.Future[answers.Lease]) -> None:
        if not granted.cancelled() and granted.exception() is None:
            ours.waits.submit(ours.control.release_sublease, who, granted.result()["lease_id"])

    try:
        view = await asyncio.shield(granting)
    except asyncio.CancelledError:
        # The thread goes on waiting whoever cancels: what it still gets has no owner.
        granting.add_done_callback(give_back)
        raise
    if request.transport is None or request.transport.is_closing():
        give_back(granting)
    return web.json_response(view, status=201)


async def release(request: web.Request) -> web.Response:
    ours = context(request)
    done = await ours.call(ours.control.release_sublease, caller(request), request.match_info["lease_id"])
    return web.json_response(answers.Released(released=done))


async def withdraw(request: web.Request) -> web.Response:
    ours, asked = context(request), request.match_info
    done = await ours.call(ours.control.withdraw_ask, caller(request), asked["job_id"], asked["name"])
    return web.json_response(answers.Released(released=done))


async def cost(request: web.Request) -> web.Response:
    ours = context(request)
    return web.json_response(await ours.call(ours.control.cost, caller(request)))


async def usage(request: web.Request) -> web.Response:
    ours = context(request)
    minutes = wire.whole(request.query, "minutes", 60, 7 * 24 * 60)
    points = wire.whole(request.query, "points", 60, 1000)
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
    Route("GET", "/moorage/v1/whoami", who_am_i, "Who this token belongs to", answer=answers.WhoAmI),
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
        answer=list[answers.Job],
        query={"state": "only jobs in this state", "limit": "at most so many"},
    ),
    Route(
        "GET",
        "/moorage/v1/jobs/{job_id}",
        job,
        "One job with its attempts and why it waits",
        answer=answers.Job,
    ),
    Route(
        "GET",
        "/moorage/v1/jobs/{job_id}/why",
        why,
        "Why a job waits, what would start it now, and when it starts (429 when too many ask at once)",
        answer=answers.Why,
    ),
    Route(
        "GET",
        "/moorage/v1/jobs/{job_id}/notice",
        notices.notice,
        "Whether the job was told to leave for another one",
        answer=answers.Noticed,
        query=notices.QUERY,
    ),
    Route(
        "POST",
        "/moorage/v1/jobs/{job_id}/notice",
        notices.answered,
        "What the job did after its notice",
        body=notices.NoticeAnswer,
        answer=answers.Recorded,
    ),
    Route(
        "GET",
        "/moorage/v1/jobs/{job_id}/lease",
        leaseapi.lease,
        "What a running job holds now, and how much of it it may use",
        answer=answers.LeaseAnswer,
        query=leaseapi.QUERY,
    ),
    Route(
        "POST",
        "/moorage/v1/jobs/{job_id}/lease",
        leaseapi.follow,
        "A job says that it follows its lease, and how many of its workers it still holds",
        body=leaseapi.Following,
        answer=answers.Followed,
    ),
    Route(
        "GET",
        "/moorage/v1/jobs/{job_id}/events",
        events,
        "The audit record of one job",
        answer=list[answers.Event],
        query=_PAGE,
    ),
    Route(
        "GET",
        "/moorage/v1/events",
        events,
        "The audit record the caller may see, oldest first",
        answer=list[answers.Event],
        query=_PAGE,
    ),
    Route(
        "POST",
        "/moorage/v1/leases",
        grow,
        "Grow a running job's lease; waits until granted or timed out (408 with the reason)",
        body=LeaseRequest,
        answer=answers.Lease,
        created=True,
    ),
    Route(
        "DELETE", "/moorage/v1/leases/{lease_id}", release, "Give a grown lease back", answer=answers.Released
    ),
    Route(
        "DELETE",
        "/moorage/v1/jobs/{job_id}/asks/{name}",
        withdraw,
        "End a named ask to grow that waits, or was just granted",
        answer=answers.Released,
    ),
    *endpointapi.ROUTES,
    Route(
        "GET", "/moorage/v1/cost", cost, "GPU time and money per team and job, from the ledger's own events"
    ),
    Route(
        "GET",
        "/moorage/v1/usage",
        usage,
        "milli-GPU held by each team over the last minutes, as means over equal parts of them",
        answer=answers.Usage,
        query={"minutes": "how far back, a week at most", "points": "into how many parts, 1000 at most"},
    ),
    *poolapi.ROUTES,
    *raydash.ROUTES,
    Route("GET", "/moorage/v1/openapi.json", openapi, "This document", secured=False),
)


def add(app: web.Application) -> None:
    for route in ROUTES:
        app.router.add_route(route.method, route.path, route.handler)
