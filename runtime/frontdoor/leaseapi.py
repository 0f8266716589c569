"""The routes by which a running job reads its lease as it is now, follows it, and gives workers back."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from aiohttp import web
from pydantic import Field, StrictBool, StrictInt

from moorage.runtime import answers
from moorage.runtime.frontdoor import wire
from moorage.runtime.frontdoor.context import caller, context
from moorage.runtime.frontdoor.middleware import json_body

MOST_WAIT_S = 60
_LOOK_S = 0.25
_Workers = Annotated[StrictInt, Field(ge=0, le=2**31)]


class Following(wire.Body):
    """`follows`: from now on the job follows its lease, and may be asked to give workers up. `workers`: it holds no
    more than its first so many. `wants`: how many it has use for, until it says something else."""

    follows: StrictBool = False
    workers: _Workers | None = None
    wants: _Workers | None = None


async def lease(request: web.Request) -> web.Response:
    """Answers at once unless `after` is the version that it would answer; then when that changes, or after `wait_s`.
    Who waits costs a look into memory now and then: no thread, no database."""
    ours, who, job_id = context(request), caller(request), request.match_info["job_id"]
    wait_s, after = wire.whole(request.query, "wait_s", 0, MOST_WAIT_S), request.query.get("after", "")
    end = asyncio.get_running_loop().time() + wait_s
    while True:
        before = ours.control.lease_changes(job_id)
        found = await ours.call(ours.control.lease_now, who, job_id)
        same = found is not None and found["version"] == after
        if not same or not await _until_changed(request, job_id, before, end):
            break
    return web.json_response(answers.LeaseAnswer(now=found))


async def _until_changed(request: web.Request, job_id: str, before: int, end: float) -> bool:
    """Whether anything may have changed before the time was over."""
    ours, transport = context(request), request.transport
    if transport is None:
        return False
    ours.followers.add(transport)
    try:
        while asyncio.get_running_loop().time() < end and not transport.is_closing():
            if ours.control.lease_changes(job_id) != before:
                return True
            await asyncio.sleep(_LOOK_S)
        return False
    finally:
        ours.followers.discard(transport)


async def follow(request: web.Request) -> web.Response:
    ours, job_id = context(request), request.match_info["job_id"]
    said = wire.validate(Following, await json_body(request))
    done = await ours.call(ours.control.follow_lease, caller(request), job_id, **said.model_dump())
    return web.json_response(answers.Followed(resized=done))


QUERY: dict[str, Any] = {
    "wait_s": f"how long to wait for another version than `after`, at most {MOST_WAIT_S} s",
    "after": "the version that the caller has",
}
