"""/endpoints/<name>/...: the published endpoints of Ray Serve, behind the front door's address and tokens.

Bodies stream both ways. The caller's token stays here: the application gets the team's name instead. An
application that was given another route than `/endpoints/<name>` still has working /docs and /openapi.json,
because those two pages are rewritten to the public prefix.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from urllib.parse import unquote

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from moorage.errors import InvalidRequest, MoorageError, NotFound, TooLarge, Unavailable
from moorage.runtime.control.api import EndpointView
from moorage.runtime.frontdoor.context import Context, caller, context

_HOP = frozenset(
    [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "trailers",
        "transfer-encoding",
        "upgrade",
    ]
)
_NOT_FORWARDED = _HOP | {"host", "authorization", "x-ray-authorization", "cookie", "content-length", "expect"}
_NOT_RETURNED = _HOP | {"content-length", "content-encoding", "set-cookie", "server", "date"}
_REWRITTEN = ("docs", "redoc", "openapi.json")
_PAGE_LIMIT = 4 << 20
_CHUNK = 64 * 1024
_WHOLE = 256 * 1024
"""Bodies of known length up to this pass in one piece: one write each instead of one per part."""
_UNPACKED = frozenset(["gzip", "deflate", "br", "zstd"])
"""Encodings that aiohttp's server has already decoded when a handler reads the body."""


_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=300)


class EndpointBroke(MoorageError):
    """The application took the request and did not answer it: whether it did the work is not known."""

    code = "endpoint-broke"
    http_status = 502


async def proxy(request: web.Request) -> web.StreamResponse:
    """Forward to Serve. 404 for a name the caller may not use, 503 with Retry-After when it is not up."""
    ours, who = context(request), caller(request)
    view = await ours.endpoint(request.match_info["name"])
    if not who.may_see(view.team):
        raise NotFound(f"No endpoint {view.name!r}")
    if not view.live:
        raise _not_up(view, "the job that served it has ended")
    limit = ours.settings.max_endpoint_body
    if request.content_length is not None and request.content_length > limit:
        raise TooLarge(
            f"The body is larger than {limit >> 20} MiB", why="the front door's limit for endpoint requests"
        )
    try:
        with ours.route_of(view) as route:
            return await _forward(ours, request, replace(view, route=route))
    except aiohttp.ClientConnectorError as error:
        raise _not_up(view, "Ray Serve does not answer") from error
    except (aiohttp.ClientError, TimeoutError) as error:
        if isinstance(error.__cause__, TooLarge):
            raise error.__cause__ from None
        raise EndpointBroke(f"Endpoint {view.name!r} broke off", why=type(error).__name__) from error


def _not_up(view: EndpointView, why: str) -> Unavailable:
    return Unavailable(
        f"Endpoint {view.name!r} is not up", why=why, todo="try again later", code="endpoint-down"
    )


def _target(base: str, view: EndpointView, request: web.Request) -> URL:
    """The raw (still encoded) path after the endpoint's name is kept as it came, but for dot segments.

    Whether `..` leaves the application depends on who normalises it on the way (RFC 3986, 5.2.4): refused here.
    """
    segments = request.rel_url.raw_path.split("/")[3:]
    if any(part in (".", "..") for raw in segments for part in re.split(r"[/\\]", unquote(raw))):
        raise InvalidRequest(
            "the path has a '.' or '..' segment", todo="write the path out", code="dot-segment"
        )
    tail = "".join(f"/{raw}" for raw in segments)
    query = request.rel_url.raw_query_string
    return URL(base + view.route.rstrip("/") + (tail or "/") + (f"?{query}" if query else ""), encoded=True)


def _request_headers(request: web.Request, view: EndpointView) -> CIMultiDict[str]:
    named = request.headers.get("Connection", "")
    dropped = (
        _NOT_FORWARDED | {word.strip().lower() for word in named.split(",")} if named else _NOT_FORWARDED
    )
    headers = CIMultiDict(
        (name, value)
        for name, value in request.headers.items()
        if (low := name.lower()) not in dropped and not low.startswith(("x-forwarded-", "x-moorage-"))
    )
    headers["X-Forwarded-Prefix"] = f"/endpoints/{view.name}"
    headers["X-Forwarded-Host"] = request.host
    headers["X-Forwarded-Proto"] = request.scheme
    headers["X-Moorage-Team"] = caller(request).team
    headers["X-Moorage-Principal"] = caller(request).principal
    return headers


async def _bounded(request: web.Request, limit: int) -> AsyncIterator[bytes]:
    seen = 0
    async for chunk in request.content.iter_chunked(_CHUNK):
        seen += len(chunk)
        if seen > limit:
            raise TooLarge(f"The body is larger than {limit >> 20} MiB")
        yield chunk


async def _body(
    ours: Context, request: web.Request, headers: CIMultiDict[str]
) -> bytes | AsyncIterator[bytes] | None:
    """What to send on, and its length and encoding in `headers`."""
    if not request.can_read_body:
        return None
    length = request.content_length
    if headers.get("Content-Encoding", "").lower() in _UNPACKED:
        del headers["Content-Encoding"]  # the body is plain by now, and of another length
    elif length is not None:
        headers["Content-Length"] = str(length)
        if length <= min(_WHOLE, ours.settings.max_endpoint_body):
            return await request.content.read()
    return _bounded(request, ours.settings.max_endpoint_body)


def _small(answer: aiohttp.ClientResponse, method: str) -> bool:
    """Whether the answer has a body whose length is known, and small, as it is."""
    length = answer.content_length
    return (
        length is not None
        and length <= _WHOLE
        and method != "HEAD"
        and answer.status >= 200
        and answer.status not in (204, 304)
        and "Content-Encoding" not in answer.headers
    )


async def _forward(ours: Context, request: web.Request, view: EndpointView) -> web.StreamResponse:
    base = ours.serve_address()
    if base is None:
        raise _not_up(view, "Ray Serve is not running")
    headers = _request_headers(request, view)
    data = await _body(ours, request, headers)
    async with ours.upstream.serve.request(
        request.method,
        _target(base, view, request),
        headers=headers,
        data=data,
        timeout=_TIMEOUT,
        allow_redirects=False,
    ) as answer:
        kept = CIMultiDict((k, v) for k, v in answer.headers.items() if k.lower() not in _NOT_RETURNED)
        _move_location(kept, view)
        if (
            request.method == "GET"
            and request.match_info["tail"].strip("/") in _REWRITTEN
            and answer.status == 200
        ):
            page = await answer.content.read(_PAGE_LIMIT)
            return web.Response(body=_rewrite(page, view, answer.content_type), headers=kept)
        if answer.status == 503:
            kept.setdefault("Retry-After", "2")
        if _small(answer, request.method):
            return web.Response(status=answer.status, headers=kept, body=await answer.read())
        response = web.StreamResponse(status=answer.status, headers=kept)
        if answer.content_length is not None and "Content-Encoding" not in answer.headers:
            response.content_length = answer.content_length
        await response.prepare(request)
        try:
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
        except (aiohttp.ClientError, OSError):
            # The status line is out: the only honest sign of a body that broke off is a cut connection.
            if request.transport is not None:
                request.transport.abort()
        return response


def _move_location(headers: CIMultiDict[str], view: EndpointView) -> None:
    """A redirect within the application stays under the public prefix."""
    place = headers.get("Location")
    if place is None:
        return
    path = URL(place).raw_path_qs if "://" in place else place
    route = view.route.rstrip("/")
    if path.startswith(route + "/") or path == route:
        headers["Location"] = f"/endpoints/{view.name}{path.removeprefix(route) or '/'}"


def _rewrite(page: bytes, view: EndpointView, content_type: str) -> bytes:
    """Point FastAPI's documentation pages at the public prefix."""
    public, route = f"/endpoints/{view.name}", view.route.rstrip("/")
    if content_type == "application/json":
        try:
            document = json.loads(page)
        except ValueError:
            return page
        if isinstance(document, dict) and "openapi" in document:
            document["servers"] = [{"url": public}]
        return json.dumps(document).encode()
    for quote in (b"'", b'"'):
        for name in (b"/openapi.json", b"/docs/oauth2-redirect"):
            page = page.replace(quote + route.encode() + name + quote, quote + public.encode() + name + quote)
    return page


def add(app: web.Application) -> None:
    app.router.add_route("*", "/endpoints/{name}", proxy_root)
    app.router.add_route("*", "/endpoints/{name}/{tail:.*}", proxy)


async def proxy_root(request: web.Request) -> web.StreamResponse:
    """Without the slash relative links of a page would leave the endpoint."""
    raise web.HTTPPermanentRedirect(f"/endpoints/{request.match_info['name']}/")
