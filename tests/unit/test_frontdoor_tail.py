"""Following a job: the websocket lives through queue, attempts and breaks, and never lies about the end (S9)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
from frontdoor_world import Script, World, world

from moorage.runtime.control import api

CLEAN, CUT = 1000, 1006


class Ear:
    """Collects what a follower is sent, as the stock client would."""

    def __init__(self, door: World, job_id: str) -> None:
        self.text, self.code = "", 0
        self._task = asyncio.create_task(self._listen(door, job_id))

    async def _listen(self, door: World, job_id: str) -> None:
        socket = await door.client.ws_connect(f"/api/jobs/{job_id}/logs/tail", headers=door.as_("ops"))
        async for message in socket:
            assert message.type is aiohttp.WSMsgType.TEXT
            assert len(message.data) <= 256 * 1024
            self.text += message.data
        self.code = socket.close_code or CUT

    async def hears(self, text: str, timeout: float = 60) -> None:
        await eventually(lambda: text in self.text, f"{text!r} in the followed log", timeout)

    async def closes(self, timeout: float = 60) -> int:
        await asyncio.wait_for(self._task, timeout)
        return self.code

    @property
    def open(self) -> bool:
        return not self._task.done()


async def eventually(condition: Callable[[], bool], what: str, timeout: float = 60) -> None:
    deadline = asyncio.get_running_loop().time() + timeout
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"not within {timeout} s: {what}"
        await asyncio.sleep(0.01)


async def running(door: World, script: Script) -> tuple[str, Ear]:
    job_id = await door.submit()
    ear = Ear(door, job_id)
    door.dashboard.scripts[door.control.attempt(job_id)] = script
    door.control.to(job_id, api.RUNNING)
    return job_id, ear


def finish(door: World, job_id: str, script: Script) -> None:
    script.ended = True
    door.control.end_attempt(job_id)
    door.control.to(job_id, api.SUCCEEDED)


async def test_queue_news_then_log_then_clean_end(tmp_path: Path) -> None:
    """S8, S9: the reason while it waits (once), then the log, then a clean close: only now may the CLI exit 0."""
    async with world(tmp_path) as door:
        job_id = await door.submit()
        ear = Ear(door, job_id)
        await ear.hears("[moorage] waiting: team ops uses 4 of 4 GPUs; waits for 2\n")
        script = Script(b"step 1\n")
        door.dashboard.scripts[door.control.attempt(job_id)] = script
        door.control.to(job_id, api.RUNNING)
        await ear.hears("step 1\n")
        assert ear.open
        script.data += b"step 2\n"
        await ear.hears("step 2\n")
        finish(door, job_id, script)
        assert await ear.closes() == CLEAN
        assert ear.text == "[moorage] waiting: team ops uses 4 of 4 GPUs; waits for 2\nstep 1\nstep 2\n"


async def test_preemption_keeps_the_follower(tmp_path: Path) -> None:
    """S3: the first attempt's tail ends, the job waits again, the second attempt's log follows."""
    async with world(tmp_path) as door:
        first = Script(b"one\n")
        job_id, ear = await running(door, first)
        await ear.hears("one\n")
        first.ended = True
        door.control.end_attempt(job_id)
        door.control.to(job_id, api.PENDING, "preempted by job_9; waits for 2 GPUs")
        await ear.hears("waiting: preempted by job_9")
        assert ear.open
        second = Script(b"two\n")
        door.dashboard.scripts[door.control.attempt(job_id)] = second
        door.control.to(job_id, api.RUNNING)
        await ear.hears("two\n")
        finish(door, job_id, second)
        assert await ear.closes() == CLEAN
        assert ear.text.index("one") < ear.text.index("[moorage] attempt 2") < ear.text.index("two")


async def test_a_broken_tail_resumes_without_loss_or_repeat(tmp_path: Path) -> None:
    """The dashboard goes away mid-log: the client notices nothing."""
    async with world(tmp_path) as door:
        text = b"".join(b"line %d\r\n" % n for n in range(2000))
        script = Script(text.replace(b"\r\n", b"\n"), break_after=7_003)
        job_id, ear = await running(door, script)
        await ear.hears("line 1999\n")
        finish(door, job_id, script)
        assert await ear.closes() == CLEAN
        assert ear.text.removeprefix(ear.text.partition("line 0\n")[0]) == script.data.decode()
        assert script.tails == 2


async def test_a_tail_that_gives_up_is_completed_from_the_file(tmp_path: Path) -> None:
    """Ray closes its tail cleanly at a line over 4 MiB, while the job runs: no early end, nothing lost."""
    async with world(tmp_path) as door:
        script = Script(b"before\n" + b"x" * 5_000_000 + b"\nafter\n", break_after=7, give_up=True)
        job_id, ear = await running(door, script)
        await ear.hears("before\n")
        await eventually(lambda: script.tails >= 1, "the tail was tried")
        assert ear.open
        finish(door, job_id, script)
        assert await ear.closes(20) == CLEAN
        assert ear.text.endswith("x\nafter\n") and ear.text.count("x") >= 5_000_000
        assert ear.text.count("before") == 1


async def test_an_attempt_that_ray_does_not_know_yet(tmp_path: Path) -> None:
    async with world(tmp_path) as door:
        job_id = await door.submit()
        ear = Ear(door, job_id)
        attempt = door.control.attempt(job_id)
        door.control.to(job_id, api.STARTING)
        for _ in range(10):
            await asyncio.sleep(0.02)
            assert ear.open
        script = door.dashboard.scripts[attempt] = Script(b"hello\n")
        await ear.hears("hello\n")
        finish(door, job_id, script)
        assert await ear.closes() == CLEAN


async def test_stopping_a_waiting_job_ends_the_follow(tmp_path: Path) -> None:
    async with world(tmp_path) as door:
        job_id = await door.submit()
        ear = Ear(door, job_id)
        await ear.hears("waiting")
        door.control.to(job_id, api.STOPPED, "stopped")
        assert await ear.closes() == CLEAN


async def test_a_bug_while_following_cuts_the_connection(tmp_path: Path) -> None:
    """Any websocket close but 1006 makes the stock CLI exit 0 while the job runs."""
    async with world(tmp_path) as door:
        job_id = await door.submit()
        ear = Ear(door, job_id)
        await ear.hears("waiting")
        door.control.attempts = lambda job_id: [][1]  # type: ignore[method-assign]
        assert await ear.closes() == CUT


async def test_stopping_the_server_cuts_followers(tmp_path: Path) -> None:
    async with world(tmp_path) as door:
        job_id = await door.submit()
        ear = Ear(door, job_id)
        await ear.hears("waiting")
        await door.client.server.close()
        assert await ear.closes() == CUT


async def test_a_client_that_leaves_is_let_go(tmp_path: Path) -> None:
    async with world(tmp_path) as door:
        from moorage.runtime.frontdoor.context import CONTEXT

        job_id = await door.submit()
        app = door.client.app
        assert app is not None
        socket = await door.client.ws_connect(f"/api/jobs/{job_id}/logs/tail", headers=door.as_("ops"))
        await eventually(lambda: len(app[CONTEXT].followers) == 1, "the follower is known")
        await socket.close()
        await eventually(lambda: not app[CONTEXT].followers, "the follower is gone")


async def test_a_slow_reader_holds_the_flood_back(tmp_path: Path) -> None:
    """A log flood must not pile up in the front door: what the client does not read is not fetched."""
    async with world(tmp_path) as door:
        sent = 0

        async def flood(submission_id: str) -> AsyncIterator[str]:
            nonlocal sent
            while True:
                sent += 64 * 1024
                yield "x" * (64 * 1024)
                await asyncio.sleep(0)

        from moorage.runtime.frontdoor.context import CONTEXT

        app = door.client.app
        assert app is not None
        app[CONTEXT].upstream.tail = flood  # type: ignore[assignment,method-assign]
        job_id = await door.submit()
        door.control.attempt(job_id)
        door.control.to(job_id, api.RUNNING)
        reader, writer = await asyncio.open_connection("127.0.0.1", door.client.port)
        writer.write(
            (
                f"GET /api/jobs/{job_id}/logs/tail HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
                "Sec-WebSocket-Version: 13\r\nAuthorization: Bearer ops-token\r\n\r\n"
            ).encode()
        )
        await reader.readuntil(b"\r\n\r\n")
        settled = await _settles(lambda: sent)
        assert settled < 64 << 20, f"{settled >> 20} MiB were taken from Ray for a client that reads nothing"
        writer.close()


async def _settles(value: Callable[[], int]) -> int:
    """The value once it has stayed the same for half a second (at most 20 s)."""
    last, same = -1, 0
    for _ in range(400):
        now = value()
        same = same + 1 if now == last and now > 0 else 0
        last = now
        if same >= 10:
            return now
        await asyncio.sleep(0.05)
    return last
