"""Ray's package routes: the working_dir a client zips and uploads before it submits."""

from __future__ import annotations

from aiohttp import web

from moorage.errors import InvalidRequest, NotFound
from moorage.runtime.frontdoor.context import caller, context
from moorage.runtime.frontdoor.spool import too_large

CHUNK = 256 * 1024


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
    """Store the body. 413 over the limit, 400 when it is no archive, 507 when the disk is full."""
    name = _named(request)
    spool = context(request).spool
    if request.content_length is not None and request.content_length > spool.max_package:
        raise too_large(spool.max_package)
    await spool.put(caller(request).principal, name, request.content.iter_chunked(CHUNK))
    return web.Response()
