"""GET /moorage/v1/guard: what the guard found, as the OpenAPI document has it."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from pydantic import BaseModel

from moorage.runtime.frontdoor.context import caller, context


class GuardKind(BaseModel):
    """`mode`: off, warn or stop; the grace is from the warning to the stop."""

    mode: str
    grace_s: int


class GuardFinding(BaseModel):
    """Something that holds GPUs. `state`: WARNED, STOPPING, STOPPED, or CLEARED (it ended by itself, or a lease covers
    it now). `target` and `target_id`: what is stopped; `owner`: the Ray job that made it; `job` and `team` are empty
    where nobody is known; `stops_in_ns` is null where it will not be stopped, or has been."""

    id: str
    kind: str
    state: str
    target: str
    target_id: str
    owner: str
    job: str
    team: str
    milli_gpu: int
    message: str
    detail: dict[str, Any]
    first_ns: int
    warned_ns: int
    ended_ns: int | None
    stops_in_ns: int | None


class GuardReport(BaseModel):
    """`message`: why the guard cannot see now, else empty. `complete` is false when there was more than one look may
    read. `unexplained_milli_gpu`: booked in Ray on a node by nobody that was seen (admins only)."""

    mode: str
    kinds: dict[str, GuardKind]
    looked_ns: int | None
    message: str
    complete: bool
    unexplained_milli_gpu: dict[str, int]
    findings: list[GuardFinding]


async def guard(request: web.Request) -> web.Response:
    ours = context(request)
    return web.json_response(await ours.call(ours.control.guard, caller(request)))
