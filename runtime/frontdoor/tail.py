"""`ray job logs --follow`: one websocket that lives as long as the job, through the queue and all attempts.

The stock client takes any websocket close but 1006 as "the job is over" and exits 0. So the socket is closed
cleanly in one case only, when the job's state is final and its log was sent to the end; on every other end
(a bug, the server stopping) the TCP connection is cut, which the client reports as an error.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from aiohttp import WSMsgType, web

from moorage.errors import NotFound, Unavailable
from moorage.runtime import answers
from moorage.runtime.control.api import Caller, JobView
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
RETRY_S = 1.0
_COUNTDOWN = re.compile(r"\d+ s\b")


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
    """Cancel and wait; what it raised stays with the task."""
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
        self._seen, self._told, self._told_at = "", "", -NEWS_EVERY_S
        self._sent = Sent()

    async def run(self) -> None:
        done = 0
        while True:
            job, attempts = await self._look()
            if job is None:
                return
            for attempt in attempts[done:]:
                if attempt["attempt"] > 1:
                    await self._send("\n" + attempt_heading(attempt))
                await self._attempt(attempt)
                done += 1
            if not attempts[done:] and job.final:
                return
            await self._tell_news(job)
            await asyncio.sleep(self._ours.settings.poll_s)

    async def _look(self) -> tuple[JobView | None, list[answers.Attempt]]:
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
        """The reason it waits, when it is a new one that has lasted for two looks; a countdown is no news."""
        if job.state not in ("PENDING", "PREEMPTING") or not job.message:
            return
        news = _COUNTDOWN.sub("", job.message)
        lasted, self._seen = news == self._seen, news
        if lasted and news != self._told and time.monotonic() - self._told_at >= NEWS_EVERY_S:
            self._told, self._told_at = news, time.monotonic()
            await self._send(f"[moorage] waiting: {job.message}\n")

    async def _attempt(self, attempt: answers.Attempt) -> None:
        """Send the attempt's log until it has ended, resuming after every break where the last one stopped.

        The control plane sees the end seconds before Ray closes its tail: what is missing then is read from the
        file. So it is when a line over 4 MiB ends Ray's tail early (`TRIES` breaks without a new character).
        """
        self._sent, breaks = Sent(), 0
        over = asyncio.create_task(self._wait_for_end(attempt))
        try:
            while not over.done():
                before = self._sent.count
                tail = asyncio.create_task(self._pump(self._ours.upstream.tail(attempt["submission_id"])))
                await self._first(tail, over)
                if over.done():
                    break
                refused = isinstance(tail.exception(), Unavailable) and not isinstance(
                    tail.exception(), TailBroken
                )
                if not refused:
                    breaks = 0 if self._sent.count > before else breaks + 1
                if breaks >= TRIES:
                    await over
                else:
                    await asyncio.wait({over}, timeout=CLOSE_GRACE_S if tail.exception() is None else RETRY_S)
            over.result()
        finally:
            await _stop(over)
        if not await self._is_complete(attempt):
            await self._rest(attempt)

    async def _first(self, tail: asyncio.Task[None], over: asyncio.Task[None]) -> None:
        """Until the tail or the attempt ends; the tail is then done. A failure other than `Unavailable` is raised."""
        try:
            await asyncio.wait({tail, over}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _stop(tail)
        if not tail.cancelled() and not isinstance(tail.exception(), Unavailable):
            tail.result()

    async def _is_complete(self, attempt: answers.Attempt) -> bool:
        """Whether the log's last lines are the last thing sent: Ray also closes cleanly after giving up."""
        try:
            last = await self._ours.upstream.last_lines(attempt["submission_id"], Sent.KEPT)
        except Unavailable:
            return False
        return self._sent.tail.endswith(last)

    async def _rest(self, attempt: answers.Attempt) -> None:
        """What the live tail did not bring: read from the file once the attempt is over."""
        for _ in range(TRIES):
            try:
                await self._pump(self._ours.upstream.log_text(attempt["submission_id"]))
                return
            except Unavailable:
                await asyncio.sleep(self._ours.settings.poll_s)
        await self._send("\n[moorage] the rest of this attempt's log cannot be read\n")

    async def _pump(self, source: AsyncGenerator[str]) -> None:
        """Send what `source` has beyond the characters already sent of this attempt."""
        skip = self._sent.count
        async with aclosing(source) as pieces:
            async for piece in pieces:
                if skip >= len(piece):
                    skip -= len(piece)
                    continue
                for start in range(skip, len(piece), FRAME):
                    frame = piece[start : start + FRAME]
                    # Counted first: a frame is in the socket's buffer before `send` can be cancelled.
                    self._sent.add(frame)
                    await self._send(frame)
                skip = 0

    async def _wait_for_end(self, attempt: answers.Attempt) -> None:
        """Returns when the control plane has seen the attempt end."""
        while not await self._has_ended(attempt):
            await asyncio.sleep(self._ours.settings.poll_s)

    async def _has_ended(self, attempt: answers.Attempt) -> bool:
        job, attempts = await self._look()
        if job is None or job.final:
            return True
        return any(
            one["attempt"] > attempt["attempt"]
            or (one["attempt"] == attempt["attempt"] and one["ended_ns"] is not None)
            for one in attempts
        )
