"""The routes by which a running job hears that it has to leave, and says what it did."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, StrictInt

from moorage.runtime.frontdoor import wire
from moorage.runtime.frontdoor.context import caller, context
from moorage.runtime.frontdoor.middleware import json_body

MOST_WAIT_S = 60
_LOOK_S = 0.25


class Notice(BaseModel):
    """The job was told to leave for `for_job`; `rule` says why it may be. `left_s` seconds of its grace are left."""

    attempt: int
    for_job: str
    rule: str
    text: str
    noticed_ns: int
    deadline_ns: int
    left_s: float


class Noticed(BaseModel):
    """`notice` is null while nobody told the job to leave."""

    notice: Notice | None


class NoticeAnswer(BaseModel):
    """What the job did: it wrote a checkpoint (of `step`, if it counts steps), or leaves now."""

    model_config = ConfigDict(extra="forbid", strict=True)

    said: Literal["checkpointed", "leaving"]
    step: Annotated[StrictInt, Field(ge=0, le=2**62)] | None = None


class Recorded(BaseModel):
    """`recorded` is false when the job was told nothing."""

    recorded: bool


async def notice(request: web.Request) -> web.Response:
    """Answers at once when there is a notice, else after `wait_s`. Who waits costs a look into memory now and then: no
    thread, no database."""
    from moorage.runtime.frontdoor.ownapi import whole

    ours, who, job_id = context(request), caller(request), request.match_info["job_id"]
    wait_s = whole(request.query, "wait_s", 0, MOST_WAIT_S)
    found = await ours.call(ours.control.notice, who, job_id)
    if found is None and wait_s and request.transport is not None:
        await _until_noticed(request, job_id, wait_s)
        found = await ours.call(ours.control.notice, who, job_id)
    answer = Noticed(notice=None if found is None else Notice(**asdict(found)))
    return web.json_response(answer.model_dump())


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
    return web.json_response(Recorded(recorded=done).model_dump())


QUERY: dict[str, Any] = {"wait_s": f"how long to wait for one, at most {MOST_WAIT_S} s"}
