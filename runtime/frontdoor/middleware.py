"""The layers before any handler: access log, problem documents, Host and Origin, authentication.

Outermost first. Authentication runs before routing answers 404 and before a byte of a body is read, so an
unknown caller learns nothing about what exists here.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from moorage.errors import Forbidden, InvalidRequest, MoorageError, Unauthenticated
from moorage.runtime.frontdoor import page, raydash
from moorage.runtime.frontdoor.context import context, principal, set_caller
from moorage.runtime.frontdoor.wire import load_json

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
log = logging.getLogger("moorage.frontdoor")
access = logging.getLogger("moorage.frontdoor.access")

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/moorage/v1/openapi.json"}) | page.PATHS
PROBLEM = "application/problem+json"
_CODES = {404: "no-such-route", 405: "method-not-allowed", 413: "too-large"}


def problem_response(error: MoorageError) -> web.Response:
    """RFC 9457. `detail` comes first: Ray's client prints the body as it is."""
    document = error.problem()
    ordered = {"detail": document.pop("detail"), **document}
    headers = {"Cache-Control": "no-store"}
    if error.http_status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="moorage"'
    if error.http_status in (429, 503) or "retry_after_s" in error.extra:
        headers["Retry-After"] = str(error.extra.get("retry_after_s", 2))
    return web.Response(
        status=error.http_status, text=json.dumps(ordered, default=str), content_type=PROBLEM, headers=headers
    )


@web.middleware
async def access_log(request: web.Request, handler: Handler) -> web.StreamResponse:
    """One JSON line per request: no query string, no header, no body, so no token can be in it."""
    began, status = time.monotonic(), 500
    try:
        response = await handler(request)
        status = response.status
        return response
    finally:
        line = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "who": principal(request),
            "method": request.method,
            "path": request.path[:300],
            "status": status,
            "ms": round((time.monotonic() - began) * 1000, 1),
        }
        access.info("%s", json.dumps(line))


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error leaves as a problem document; a bug leaves its traceback in the log and an id with the caller."""
    try:
        return await handler(request)
    except MoorageError as error:
        response = problem_response(error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        code = _CODES.get(error.status, "http-error")
        wrapped = MoorageError(f"{error.reason}: {request.method} {request.path[:200]}", code=code)
        wrapped.http_status = error.status
        response = problem_response(wrapped)
        if allow := error.headers.get("Allow"):
            response.headers["Allow"] = allow
    except Exception:
        incident = secrets.token_hex(6)
        log.exception("incident %s: %s %s", incident, request.method, request.path[:200])
        response = problem_response(
            MoorageError(
                "The front door failed",
                todo=f"tell the operator: incident {incident} in the log",
                code="internal-error",
            )
        )
    return response


def _host_name(netloc: str) -> str | None:
    try:
        return urlsplit(f"//{netloc}").hostname
    except ValueError:
        return None


@web.middleware
async def host_and_origin(request: web.Request, handler: Handler) -> web.StreamResponse:
    """DNS rebinding: a page whose name resolves to this machine sends its own name in Host or Origin."""
    allowed = context(request).settings.allowed_hosts
    host = _host_name(request.headers.get("Host", ""))
    if host not in allowed:
        raise Forbidden(
            "This Host is not served here", todo="use the address `moorage up` printed", code="bad-host"
        )
    origin = request.headers.get("Origin")
    if origin is not None and (urlsplit(origin).hostname if "://" in origin else None) not in allowed:
        raise Forbidden("Requests from this Origin are refused", code="bad-origin")
    return await handler(request)


def _bearer(request: web.Request) -> str | None:
    """The token of Authorization, else of Ray's X-Ray-Authorization (sent through proxies)."""
    for header in ("Authorization", "X-Ray-Authorization"):
        value = request.headers.get(header, "")
        scheme, _, rest = value.partition(" ")
        if scheme.lower() == "bearer" and rest.strip():
            return rest.strip()
        if scheme.lower() == "basic" and request.path.startswith("/endpoints/"):
            return _basic_password(rest)
    return None


def _basic_password(text: str) -> str | None:
    """Browsers cannot send Bearer: on an endpoint's own pages the token may be the password of any user name."""
    try:
        return base64.b64decode(text.strip(), validate=True).decode("utf-8").partition(":")[2] or None
    except (binascii.Error, UnicodeDecodeError):
        return None


@web.middleware
async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
    if request.path in OPEN_PATHS:
        return await handler(request)
    ours = context(request)
    try:
        if request.path.startswith(raydash.PREFIX):
            set_caller(request, await raydash.viewer(request))
            return await handler(request)
        token = _bearer(request)
        if token is None:
            raise Unauthenticated(
                "No token was sent",
                todo="set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN=<your team's token>, or send Authorization: Bearer",
            )
        if request.path.startswith("/endpoints/"):
            set_caller(request, await ours.endpoint_caller(token))
        else:
            who = await ours.call(ours.control.authenticate, token)
            set_caller(request, who)
            ours.limit.take(who.principal, time.monotonic())
    except Unauthenticated as error:
        response = problem_response(error)
        if request.path.startswith("/endpoints/"):
            response.headers.add("WWW-Authenticate", 'Basic realm="moorage endpoint", charset="UTF-8"')
        return response
    if "\x00" in request.path:
        raise InvalidRequest("The path holds a NUL character", code="bad-path")
    return await handler(request)


async def json_body(request: web.Request) -> Any:
    """The parsed body; its size is bounded by the application's `client_max_size`."""
    if request.content_type not in ("application/json", "application/octet-stream", ""):
        raise InvalidRequest(
            f"Content-Type {request.content_type} is not understood",
            todo="send application/json",
            code="bad-content-type",
        )
    return load_json(await request.read())


LAYERS = (access_log, problems, host_and_origin, authenticate)
