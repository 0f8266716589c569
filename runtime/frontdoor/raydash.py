"""/ray/<view>/...: Ray's own dashboard, read-only, behind the front door's identity.

Ray's dashboard has one token for everything: who has it can submit, stop, read every log and profile every process. So
browsers never get it. Who may look asks for a *view* with their own token (`POST /moorage/v1/ray-dashboard`) and gets
an unguessable path and a cookie that is valid on that path only (RFC 6265: cookies know no ports, so a fixed path would
hand it to whatever else listens on this machine). Both are forgotten after some hours, and when the token is revoked.

Only GET and HEAD, only paths named here (a list of what is refused would age with each Ray release): no submission, no
stop, no logs, no profiler, no package. Values of environment variables are taken out of what passes: the dashboard
shows every job's runtime environment.
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
import time
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from moorage.errors import Forbidden, NotFound, Unauthenticated, Unavailable
from moorage.runtime import answers
from moorage.runtime.control.api import Caller
from moorage.runtime.frontdoor.context import Context, caller, context
from moorage.runtime.frontdoor.openapi import Route
from moorage.runtime.frontdoor.settings import Settings

PREFIX = "/ray/"
COOKIE = "moorage-ray"
VIEW_S = 8 * 3600
MOST_VIEWS = 1000
LARGEST = 32 << 20
HIDDEN = "(hidden)"
_ID = r"[A-Za-z0-9_.:-]{1,200}"
_ALLOWED = re.compile(
    "|".join(
        (
            r"",
            r"favicon\.ico",
            r"static/(?:js|css|media)/[A-Za-z0-9_.-]+",
            r"api/(?:version|ray/version|cluster_status|grafana_health|prometheus_health|jobs/|serve/applications/)",
            rf"api/(?:jobs|data/datasets)/{_ID}",
            r"api/train/v2/runs(?:/v1)?",
            r"api/v0/(?:actors|tasks|objects)(?:/summarize)?",
            r"api/v0/(?:tasks/timeline|jobs|nodes|placement_groups|workers|cluster_metadata|cluster_events)",
            r"api/v0/(?:platform_events|runtime_env_redaction)",
            r"cluster_id|timezone|usage_stats_enabled|events",
            rf"(?:nodes|logical/actors)(?:/{_ID})?",
        )
    )
)
_OURS: dict[str, Any] = {
    "api/authentication_mode": {
        "authentication_mode": "disabled"
    },  # it would ask the browser for Ray's token
    "api/profiling_enabled": {"result": True, "msg": "", "data": {"profilingEnabled": False}},
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TIMEOUT = aiohttp.ClientTimeout(total=60, sock_connect=5)
_TOKEN = re.compile(rb"mrj_[0-9a-f]{64}")
_WITH_VARIABLES = re.compile(r"env_?vars", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class View:
    """`token` is the viewer's own, asked about again at each request: it may have been revoked."""

    secret: str
    token: str
    ends_s: float


def may_look(settings: Settings, who: Caller) -> bool:
    """Jobs' own tokens never may: a person looks."""
    allowed = settings.ray_dashboard
    return who.kind != "job" and (allowed == "everyone" or (allowed == "admin" and who.is_admin))


def _check(ours: Context, who: Caller) -> None:
    if not may_look(ours.settings, who):
        raise Forbidden(
            "Ray's dashboard is not shown to you",
            why="it shows the jobs of all teams",
            todo="ask the pool's operator for `ray_dashboard: everyone`, or use the page of the pool",
            code="ray-dashboard-forbidden",
        )


async def open_view(request: web.Request) -> web.Response:
    ours = context(request)
    _check(ours, caller(request))
    now = time.monotonic()
    for old in [name for name, view in ours.views.items() if view.ends_s <= now]:
        del ours.views[old]
    while len(ours.views) >= MOST_VIEWS:
        del ours.views[next(iter(ours.views))]
    name, secret = secrets.token_urlsafe(18), secrets.token_urlsafe(32)
    ours.views[name] = View(secret, _own_token(request), now + VIEW_S)
    answer = web.json_response(
        answers.RayView(path=f"{PREFIX}{name}/", expires_in_s=VIEW_S),
        status=201,
        headers={"Cache-Control": "no-store"},
    )
    answer.set_cookie(
        COOKIE, secret, path=f"{PREFIX}{name}/", max_age=VIEW_S, httponly=True, samesite="Strict",
        secure=request.secure,
    )  # fmt: skip
    return answer


def _own_token(request: web.Request) -> str:
    """As the authentication layer read it."""
    for header in ("Authorization", "X-Ray-Authorization"):
        scheme, _, rest = request.headers.get(header, "").partition(" ")
        if scheme.lower() == "bearer" and rest.strip():
            return rest.strip()
    raise Unauthenticated("No token was sent")


async def viewer(request: web.Request) -> Caller:
    """Who looks, by the view's path and cookie. `Unauthenticated` for anything else."""
    ours = context(request)
    name = request.path.removeprefix(PREFIX).partition("/")[0]
    view = ours.views.get(name)
    given = request.cookies.get(COOKIE, "")
    known = view is not None and view.ends_s > time.monotonic()
    if view is None or not known or not hmac.compare_digest(view.secret.encode(), given.encode()):
        raise Unauthenticated(
            "This view of Ray's dashboard is not known here, or no longer",
            todo="open it again from the pool's page (`moorage page`)",
        )
    who = await ours.endpoint_caller(view.token)
    _check(ours, who)
    return who


async def show(request: web.Request) -> web.Response:
    """One file or answer of the dashboard; 404 for what is not on the list."""
    tail = request.rel_url.raw_path.removeprefix(PREFIX).partition("/")[2]
    if tail in _OURS:
        return _answer(json.dumps(_OURS[tail]).encode(), "application/json")
    if ".." in tail or not _ALLOWED.fullmatch(tail):
        raise NotFound(
            "This part of Ray's dashboard is not shown here",
            why="logs, profilers and everything that changes something are left out",
            todo="read a job's log with `ray job logs JOB` or on the pool's page",
            code="not-shown",
        )
    ours = context(request)
    query = request.rel_url.raw_query_string
    url = URL(ours.upstream.url(f"/{tail}") + (f"?{query}" if query else ""), encoded=True)
    try:
        async with ours.upstream.session.get(
            url, headers=ours.upstream.headers(), timeout=_TIMEOUT, allow_redirects=False
        ) as answer:
            if answer.status >= 300:
                raise NotFound("Ray's dashboard has no answer to this", why=f"it said {answer.status}")
            body = await _read(answer)
            kind = answer.content_type
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Unavailable("Ray's dashboard does not answer", why=type(error).__name__) from error
    return _answer(_hide(body) if kind == "application/json" else body, kind)


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    body = await answer.content.read(LARGEST + 1)
    parts = [body]
    while body and sum(map(len, parts)) <= LARGEST:
        body = await answer.content.read(LARGEST + 1)
        parts.append(body)
    whole = b"".join(parts)
    if len(whole) > LARGEST:
        raise Unavailable("Ray's answer is too large to pass on", why=f"more than {LARGEST >> 20} MiB")
    return whole


def _hide(body: bytes) -> bytes:
    """The JSON document without the values of environment variables, and without job tokens anywhere."""
    found = json.loads(body)
    return _TOKEN.sub(HIDDEN.encode(), json.dumps(_without_variables(found)).encode())


def _without_variables(value: Any, key: str = "") -> Any:
    """Runtime environments come as objects or, in some answers, as JSON in a string."""
    plain = key.replace("_", "").lower()
    if isinstance(value, dict):
        if plain == "envvars":
            return dict.fromkeys(value, HIDDEN)
        return {name: _without_variables(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_variables(one, key) for one in value]
    if isinstance(value, str) and "runtimeenv" in plain and value.lstrip().startswith("{"):
        try:
            return json.dumps(_without_variables(json.loads(value)))
        except ValueError:
            return HIDDEN
    if isinstance(value, str) and plain == "cmdline" and _WITH_VARIABLES.search(value):
        return HIDDEN  # a worker that is being started has its runtime environment as an argument
    return value


def _answer(body: bytes, kind: str) -> web.Response:
    return web.Response(
        body=body,
        content_type=kind,
        headers={
            "Content-Security-Policy": POLICY,
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        },
    )


ROUTES = (
    Route(
        "POST",
        "/moorage/v1/ray-dashboard",
        open_view,
        "Open a read-only view of Ray's dashboard for this browser (admin, or as the pool is set)",
        answer=answers.RayView,
        created=True,
    ),
)


def add(app: web.Application) -> None:
    app.router.add_get(PREFIX + "{view}/{tail:.*}", show)
