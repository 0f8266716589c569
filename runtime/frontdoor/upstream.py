"""Ray's dashboard as the front door needs it: log bytes, the live tail, the cluster's version. aiohttp, no Ray.

Two ways to read an attempt's log. The state API's `/api/v0/logs/file` streams the file in 64 KiB pieces with
constant memory on both sides, but has no end-of-job; the Jobs API's websocket ends with the job, but dies on
a line over 4 MiB and on bytes that are not UTF-8. Both are normalised to the same characters (newlines as
Python's text mode reads them), so a position in one is a position in the other.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp

from moorage.errors import Unavailable
from moorage.runtime.frontdoor.settings import Settings

LOG_CHUNK = 64 * 1024
MAX_FRAME = 64 << 20


def text_decoder() -> io.IncrementalNewlineDecoder:
    """Bytes to characters as Ray's own tail reads them, except that a bad byte is replaced instead of fatal."""
    return io.IncrementalNewlineDecoder(
        codecs.getincrementaldecoder("utf-8")(errors="replace"), translate=True
    )


class TailBroken(Unavailable):
    """The live tail was open and broke: another try may break at the same place."""

    code = "tail-broken"


class Upstream:
    """One client session toward the dashboard; `start` and `close` run on the server's loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None
        self._serve: aiohttp.ClientSession | None = None
        self._version: dict[str, str] | None = None

    async def start(self) -> None:
        self._session = aiohttp.ClientSession(auto_decompress=True)
        self._serve = aiohttp.ClientSession(
            # No limit: the callers' own connections are it. Idle ones go before Ray's proxies close them (5 s).
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),
            cookie_jar=aiohttp.DummyCookieJar(),  # a cookie of one caller's must not be sent for another
            skip_auto_headers=("User-Agent", "Content-Type", "Accept", "Accept-Encoding"),
        )

    async def close(self) -> None:
        for session in (self._session, self._serve):
            if session is not None:
                await session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("Upstream.start() was not awaited")
        return self._session

    @property
    def serve(self) -> aiohttp.ClientSession:
        """Connections to Ray Serve, kept open and shared by all callers."""
        if self._serve is None:
            raise RuntimeError("Upstream.start() was not awaited")
        return self._serve

    def headers(self) -> dict[str, str]:
        """What authenticates to Ray itself. Never to be handed to a user."""
        token = self._settings.ray_token()
        return {"Authorization": f"Bearer {token}"} if token else {}

    def url(self, path: str) -> str:
        """Of the dashboard. Raises `Unavailable` while none is known."""
        base = self._settings.address("dashboard")
        if base is None:
            raise Unavailable("Ray's dashboard is not up", todo="try again in a few seconds")
        return base + path

    async def version(self) -> dict[str, str]:
        """Ray's `/api/version` answer; what can be said without the cluster when it does not answer."""
        if self._version is None:
            try:
                self._version = await self._json("/api/version", 2.0)
            except (aiohttp.ClientError, TimeoutError, Unavailable, ValueError):
                return {
                    "version": "4",
                    "ray_version": self._settings.ray_version,
                    "ray_commit": "",
                    "session_name": "",
                }
        return self._version or {}

    async def _json(self, path: str, timeout_s: float) -> Any:
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with self.session.get(self.url(path), headers=self.headers(), timeout=timeout) as answer:
            answer.raise_for_status()
            return await answer.json()

    async def log_text(self, submission_id: str, lines: int = -1) -> AsyncGenerator[str]:
        """The attempt's log so far (its last `lines`, -1 for all), in pieces; nothing when it never got a driver.

        Raises `Unavailable` when the dashboard does not answer.
        """
        try:
            details = await self._json(f"/api/jobs/{submission_id}", 30)
            node = details.get("driver_node_id")
            if not node:
                return
            name = f"job-driver-{submission_id}.log"
            query = {"node_id": node, "filename": name, "lines": str(lines), "timeout": "600"}
            timeout = aiohttp.ClientTimeout(total=None, sock_read=60)
            decoder = text_decoder()
            async with self.session.get(
                self.url("/api/v0/logs/file"), params=query, headers=self.headers(), timeout=timeout
            ) as answer:
                if answer.status >= 400:
                    return
                async for chunk in answer.content.iter_chunked(LOG_CHUNK):
                    if text := decoder.decode(chunk):
                        yield text
                if text := decoder.decode(b"", final=True):
                    yield text
        except aiohttp.ClientResponseError as error:
            if error.status != 404:
                raise _unavailable(error) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _unavailable(error) from error

    async def last_lines(self, submission_id: str, at_most: int) -> str:
        """The end of the log: its last two lines, no more than `at_most` characters of them."""
        end = ""
        async for text in self.log_text(submission_id, lines=2):
            end = (end + text)[-at_most:]
        return end

    async def tail(self, submission_id: str) -> AsyncGenerator[str]:
        """The attempt's log from its start, live, until Ray says that it ended.

        Ends normally on a clean close; raises `Unavailable` on any other (the caller decides what it means).
        No heartbeat: Ray's dashboard answers no pings while it tails.
        """
        try:
            async with self.session.ws_connect(
                self.url(f"/api/jobs/{submission_id}/logs/tail"),
                headers=self.headers(),
                max_msg_size=MAX_FRAME,
            ) as socket:
                async for message in socket:
                    if message.type is aiohttp.WSMsgType.TEXT:
                        yield message.data
                    elif message.type is aiohttp.WSMsgType.ERROR:
                        raise TailBroken("Ray's log stream broke", why=repr(socket.exception()))
                if socket.close_code != aiohttp.WSCloseCode.OK:
                    raise TailBroken("Ray's log stream was cut", why=f"close code {socket.close_code}")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unavailable(error) from error


def _unavailable(error: BaseException) -> Unavailable:
    return Unavailable(
        "Ray's dashboard does not answer", why=f"{type(error).__name__}", todo="try again in a few seconds"
    )
