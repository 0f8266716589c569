"""Ray's package routes: the working_dir a client zips and uploads before it submits."""

from __future__ import annotations

import time
from pathlib import Path

from aiohttp import web

from moorage.errors import InvalidRequest, NotFound
from moorage.runtime.control.api import Caller
from moorage.runtime.frontdoor.context import Context, caller, context
from moorage.runtime.frontdoor.spool import FULL_S, too_large

CHUNK = 256 * 1024
BROKEN_AFTER_S = 3600.0
"""An upload that got nothing for so long is nobody's any more."""
IN_HAND_S = 600.0
"""Where room is needed, packages that no job needs go so long after their last use: a client submits at once."""


def _named(request: web.Request) -> str:
    if request.match_info["protocol"] != "gcs":
        raise InvalidRequest("Only gcs packages are kept here", code="bad-package-protocol")
    return request.match_info["name"]


async def get_package(request: web.Request) -> web.Response:
    """200 when the caller has uploaded this name, else 404: the client then uploads it."""
    name = _named(request)
    found = context(request).spool.locate(caller(request).principal, name)
    if found is None:
        raise NotFound(f"Package gcs://{name} was not uploaded yet", code="unknown-package")
    return web.Response()


async def put_package(request: web.Request) -> web.Response:
    """Store the body. 413 over the limit, 400 when it is no archive, 507 when the disk or the spool is full."""
    name = _named(request)
    spool = context(request).spool
    if request.content_length is not None and request.content_length > spool.max_package:
        raise too_large(spool.max_package)
    ours, size = context(request), request.content_length
    if not await ours.call(spool.room, size or 0) and time.monotonic() - ours.made_room_s > FULL_S:
        ours.made_room_s = time.monotonic()
        await ours.call(prune, ours, time.time(), IN_HAND_S)
    await spool.put(caller(request).principal, name, request.content.iter_chunked(CHUNK), size)
    return web.Response()


def prune(ours: Context, now_s: float, keep_s: float | None = None) -> int:
    """Delete packages unused for `package_keep_s` (or `keep_s`, if that is less) that no job still needs; how many.
    Clients upload them again."""
    everyone = Caller(principal="front-door", kind="admin", team="", teams=frozenset())
    needed = {
        Path(file).name
        for job in ours.control.jobs(everyone)
        if not job.final
        for file in job.submission.packages.values()
    }
    keep = ours.settings.package_keep_s if keep_s is None else min(keep_s, ours.settings.package_keep_s)
    return ours.spool.prune(needed, now_s - keep, now_s - BROKEN_AFTER_S)
