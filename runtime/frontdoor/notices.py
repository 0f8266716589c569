"""The routes by which a running job hears that it has to leave, and says what it did."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import Field, StrictInt

from moorage.runtime import answers
from moorage.runtime.frontdoor import wire
from moorage.runtime.frontdoor.context import caller, context
from moorage.runtime.frontdoor.middleware import json_body

MOST_WAIT_S = 60
_LOOK_S = 0.25


class NoticeAnswer(wire.Body):
    """What the job did: it wrote a checkpoint (of `step`, if it counts steps), or leaves now."""

    said: Literal["checkpointed", "leaving"]
    step: Annotated[StrictInt, Field(ge=0, le=2**62)] | None = None


async def notice(request: web.Request) -> web.Response:
    """Answers at once when there is a notice, else after `wait_s`. Who waits costs a look into memory now and then: no
    thread, no database."""
    ours, who, job_id = context(request), caller(request), request.match_info["job_id"]
    wait_s = wire.whole(request.query, "wait_s", 0, MOST_WAIT_S)
    found = await ours.call(ours.control.notice, who, job_id)
    if found is None and wait_s and request.transport is not None:
        await _until_noticed(request, job_id, wait_s)
        found = await ours.call(ours.control.notice, who, job_id)
    return web.json_response(answers.Noticed(notice=found))


async def _until_noticed(request: web.Request, job_id: str, wait_s: float) -> None:
    ours, transport = context(request), request.transport
    assert transport is not None
    ours.followers.add(transport)
    try:
        end = asyncio.get_running_loop().time() + wait_s
        while asyncio.get_running_loop().time() < end and not transport.is_closing():
            if ours.control.noticed(job_id):
                return
            await asyncio.sleep(_LOOK_S)
    finally:
        ours.followers.discard(transport)


async def answered(request: web.Request) -> web.Response:
    ours, job_id = context(request), request.match_info["job_id"]
    said = wire.validate(NoticeAnswer, await json_body(request))
    done = await ours.call(ours.control.answer_notice, caller(request), job_id, said.said, said.step)
    return web.json_response(answers.Recorded(recorded=done))


QUERY: dict[str, Any] = {"wait_s": f"how long to wait for one, at most {MOST_WAIT_S} s"}
