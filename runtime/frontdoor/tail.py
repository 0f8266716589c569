"""`ray job logs --follow`: one websocket that lives as long as the job, through the queue and all attempts.

The stock client takes any websocket close but 1006 as "the job is over" and exits 0. So the socket is closed
cleanly in one case only, when the job's state is final and its log was sent to the end; on every other end
(a bug, the server stopping) the TCP connection is cut, which the client reports as an error.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from aiohttp import WSMsgType, web

from moorage.errors import NotFound, Unavailable
from moorage.runtime.control.api import AttemptView, Caller, JobView
from moorage.runtime.frontdoor.context import Context, caller, context
from moorage.runtime.frontdoor.logs import attempt_heading
from moorage.runtime.frontdoor.upstream import TailBroken

log = logging.getLogger("moorage.frontdoor")
FRAME = 256 * 1024
"""Characters per frame: the stock client refuses frames over 4 MiB."""
NEWS_EVERY_S = 2.0
TRIES = 3
CLOSE_GRACE_S = 10.0
"""How long the control plane may take to see an end that Ray's tail has already told."""


async def follow(request: web.Request) -> web.StreamResponse:
    """GET /api/jobs/{id}/logs/tail. 404 comes before the upgrade."""
    ours = context(request)
    who, job_id = caller(request), request.match_info["job_id"]
    await ours.call(ours.control.job, who, job_id)
    socket = web.WebSocketResponse(heartbeat=30.0, compress=False)
    await socket.prepare(request)
    transport = request.transport
    if transport is None:
        return socket
    ours.followers.add(transport)
    gone = asyncio.create_task(_until_client_leaves(socket))
    told = asyncio.create_task(Follower(ours, who, job_id, socket.send_str).run())
    try:
        await asyncio.wait({gone, told}, return_when=asyncio.FIRST_COMPLETED)
        if told.done() and told.exception() is None:
            await _stop(gone)
            await socket.close()
            return socket
        if told.done() and not isinstance(told.exception(), ConnectionError):
            log.error("follow of %s failed", job_id, exc_info=told.exception())
    finally:
        ours.followers.discard(transport)
        await _stop(told)
        await _stop(gone)
        if not socket.closed:
            transport.abort()
    return socket


async def _until_client_leaves(socket: web.WebSocketResponse) -> None:
    while (await socket.receive()).type not in (
        WSMsgType.CLOSE,
        WSMsgType.CLOSING,
        WSMsgType.CLOSED,
        WSMsgType.ERROR,
    ):
        pass


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()


class Sent:
    """How much of one attempt was sent, and its last `KEPT` characters."""

    KEPT = 64 * 1024

    def __init__(self) -> None:
        self.count, self.tail = 0, ""

    def add(self, text: str) -> None:
        self.count += len(text)
        self.tail = (self.tail + text)[-self.KEPT :]


class Follower:
    """Tells one job's story through `send`. `run` returns when the job is final and all was sent."""

    def __init__(
        self, ours: Context, who: Caller, job_id: str, send: Callable[[str], Awaitable[None]]
    ) -> None:
        self._ours, self._who, self._job_id, self._send = ours, who, job_id, send
        self._news, self._news_at = "", -NEWS_EVERY_S
        self._sent = Sent()

    async def run(self) -> None:
        done = 0
        while True:
            job, attempts = await self._look()
            if job is None:
                return
            for attempt in attempts[done:]:
                if attempt.attempt > 1:
                    await self._text("\n" + attempt_heading(attempt))
                await self._attempt(attempt)
                done += 1
            if not attempts[done:] and job.final:
                return
            await self._tell_news(job)
            await asyncio.sleep(self._ours.settings.poll_s)

    async def _look(self) -> tuple[JobView | None, list[AttemptView]]:
        """The job first, then its attempts: a final job's attempts are then complete. None when it was deleted."""
        control = self._ours.control
        while True:
            try:
                job = await self._ours.call(control.job, self._who, self._job_id)
                return job, await self._ours.call(control.attempts, self._job_id)
            except NotFound:
                return None, []
            except Unavailable:
                await asyncio.sleep(self._ours.settings.poll_s)

    async def _tell_news(self, job: JobView) -> None:
        waiting = job.state in ("PENDING", "PREEMPTING")
        now = time.monotonic()
        if waiting and job.message and job.message != self._news and now - self._news_at >= NEWS_EVERY_S:
            self._news, self._news_at = job.message, now
            await self._send(f"[moorage] waiting: {job.message}\n")

    async def _attempt(self, attempt: AttemptView) -> None:
        """Send the attempt's log until it has ended, resuming after every break where the last one stopped.

        A line over 4 MiB ends Ray's tail for good; after `TRIES` breaks without a new character the rest is read
        from the file when the attempt is over.
        """
        self._sent, breaks = Sent(), 0
        while True:
            before = self._sent.count
            try:
                await self._pump(self._ours.upstream.tail(attempt.submission_id))
                if await self._ends_within(attempt, CLOSE_GRACE_S):
                    break
                breaks = 0 if self._sent.count > before else breaks + 1
            except TailBroken:
                breaks = 0 if self._sent.count > before else breaks + 1
            except Unavailable:
                pass
            if await self._ends_within(attempt, self._ours.settings.poll_s if breaks < TRIES else None):
                break
        if not await self._is_complete(attempt):
            await self._rest(attempt)

    async def _is_complete(self, attempt: AttemptView) -> bool:
        """Whether the log's last lines are the last thing sent: Ray also closes cleanly after giving up."""
        try:
            last = await self._ours.upstream.last_lines(attempt.submission_id, Sent.KEPT)
        except Unavailable:
            return False
        return self._sent.tail.endswith(last)

    async def _rest(self, attempt: AttemptView) -> None:
        """What the live tail did not bring: read from the file once the attempt is over."""
        for _ in range(TRIES):
            try:
                await self._pump(self._ours.upstream.log_text(attempt.submission_id))
                return
            except Unavailable:
                await asyncio.sleep(self._ours.settings.poll_s)
        await self._text("\n[moorage] the rest of this attempt's log cannot be read\n")

    async def _pump(self, source: AsyncGenerator[str]) -> None:
        """Send what `source` has beyond the characters already sent of this attempt."""
        skip = self._sent.count
        async with aclosing(source) as pieces:
            async for piece in pieces:
                if skip >= len(piece):
                    skip -= len(piece)
                    continue
                fresh, skip = piece[skip:], 0
                await self._text(fresh)
                self._sent.add(fresh)

    async def _text(self, text: str) -> None:
        for start in range(0, len(text), FRAME):
            await self._send(text[start : start + FRAME])

    async def _ends_within(self, attempt: AttemptView, seconds: float | None) -> bool:
        """Poll the control plane until the attempt is over; False after `seconds` (None: wait for as long as it takes)."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            if await self._has_ended(attempt):
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False
            await asyncio.sleep(self._ours.settings.poll_s)

    async def _has_ended(self, attempt: AttemptView) -> bool:
        job, attempts = await self._look()
        if job is None or job.final:
            return True
        return any(
            one.attempt > attempt.attempt or (one.attempt == attempt.attempt and one.ended_ns is not None)
            for one in attempts
        )
