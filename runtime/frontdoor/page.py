"""The web page of a pool: files that need no token, because nothing of the pool is in them.

The page asks the routes of `ownapi` with the token its reader gives it. It loads nothing from anywhere else; its
policy (Content Security Policy Level 3) lets it run its own files only, and lets nobody put it into a frame.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from importlib import resources

from aiohttp import web

_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_FILES = (
    "index.html",
    "style.css",
    "app.js",
    "api.js",
    "chart.js",
    "dom.js",
    "map.js",
    "views.js",
    "icon.svg",
)
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PATHS = frozenset({"/", *(f"/page/{name}" for name in _FILES if name != "index.html")})
"""What is answered without a token."""


def add(app: web.Application) -> None:
    folder = resources.files("moorage.runtime.frontdoor") / "page"
    for name in _FILES:
        path = "/" if name == "index.html" else f"/page/{name}"
        app.router.add_get(path, _file((folder / name).read_bytes(), _TYPES[name[name.rindex(".") :]]))


def _file(content: bytes, kind: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    mark = hashlib.sha256(content).hexdigest()[:16]

    async def answer(request: web.Request) -> web.Response:
        known = request.if_none_match
        fresh = known is not None and any(one.value == mark for one in known)
        return web.Response(
            status=304 if fresh else 200,
            body=None if fresh else content,
            content_type=kind,
            charset=None if fresh or kind.startswith("image") else "utf-8",
            headers={
                "ETag": f'"{mark}"',
                "Cache-Control": "no-cache",
                "Content-Security-Policy": POLICY,
                "Referrer-Policy": "no-referrer",
                "X-Content-Type-Options": "nosniff",
            },
        )

    return answer
