"""Ray's Jobs REST API, as the unmodified `ray job` CLI and `JobSubmissionClient` speak it."""

from __future__ import annotations

from functools import partial

from aiohttp import web

from moorage.runtime.frontdoor import wire
from moorage.runtime.frontdoor.context import caller, context
from moorage.runtime.frontdoor.logs import joined
from moorage.runtime.frontdoor.middleware import json_body
from moorage.runtime.frontdoor.packages import get_package, put_package
from moorage.runtime.frontdoor.tail import follow

JOB = "/api/jobs/{job_id}"


async def version(request: web.Request) -> web.Response:
    """`version` is that of Ray's REST API, "4" in Ray 2.60."""
    ours = context(request)
    found = await ours.upstream.version()
    return web.json_response(
        {
            "version": "4",
            "ray_version": found.get("ray_version") or ours.settings.ray_version,
            "ray_commit": found.get("ray_commit") or "unknown",
            "session_name": found.get("session_name") or "unknown",
        }
    )


async def submit(request: web.Request) -> web.Response:
    """Durable once answered. `Moorage-*` headers beat metadata; `Idempotency-Key` makes a repeat harmless."""
    ours, who = context(request), caller(request)
    asked = wire.submission(await json_body(request), partial(ours.spool.resolve, who.principal))
    headers = {name: value for name, value in request.headers.items() if name.lower().startswith("moorage-")}
    job_id = await ours.call(ours.control.submit, who, asked, headers, request.headers.get("Idempotency-Key"))
    return web.json_response({"job_id": job_id, "submission_id": job_id})


async def show(request: web.Request) -> web.Response:
    ours = context(request)
    job = await ours.call(ours.control.job, caller(request), request.match_info["job_id"])
    return web.json_response(wire.job_details(job))


async def listing(request: web.Request) -> web.Response:
    ours = context(request)
    jobs = await ours.call(ours.control.jobs, caller(request))
    return web.json_response([wire.job_details(job) for job in jobs])


async def stop(request: web.Request) -> web.Response:
    ours = context(request)
    stopped = await ours.call(ours.control.stop, caller(request), request.match_info["job_id"])
    ours.forget()
    return web.json_response({"stopped": stopped})


async def delete(request: web.Request) -> web.Response:
    ours = context(request)
    deleted = await ours.call(ours.control.delete, caller(request), request.match_info["job_id"])
    ours.forget()
    return web.json_response({"deleted": deleted})


async def logs(request: web.Request) -> web.Response:
    """All attempts joined, "" while it waits. Of a log over `log_head + log_tail` the middle is left out."""
    ours, job_id = context(request), request.match_info["job_id"]
    await ours.call(ours.control.job, caller(request), job_id)
    attempts = await ours.call(ours.control.attempts, job_id)
    return web.json_response({"logs": await joined(ours, attempts)})


def add(app: web.Application) -> None:
    """Register the routes. `/api/jobs` without the slash is an alias that other clients use."""
    app.router.add_get("/api/version", version)
    app.router.add_get("/api/packages/{protocol}/{name}", get_package)
    app.router.add_put("/api/packages/{protocol}/{name}", put_package)
    for path in ("/api/jobs/", "/api/jobs"):
        app.router.add_post(path, submit)
        app.router.add_get(path, listing)
    app.router.add_get(JOB, show)
    app.router.add_delete(JOB, delete)
    app.router.add_post(JOB + "/stop", stop)
    app.router.add_get(JOB + "/logs", logs)
    app.router.add_get(JOB + "/logs/tail", follow)
