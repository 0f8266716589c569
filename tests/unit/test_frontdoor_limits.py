"""S9: one caller cannot take the front door from the others, and what is too much is told to come back."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import pytest
from frontdoor_world import world
from hypothesis import given
from hypothesis import strategies as st

from moorage.runtime.frontdoor.context import CONTEXT
from moorage.runtime.frontdoor.limits import RateLimit, RateLimited


def test_a_burst_then_the_rate() -> None:
    limit = RateLimit(per_s=2, burst=3)
    for _ in range(3):
        limit.take("ops", 10.0)
    with pytest.raises(RateLimited) as refused:
        limit.take("ops", 10.0)
    assert refused.value.extra["retry_after_s"] == 1
    limit.take("research", 10.0)  # each caller has a bucket of its own
    limit.take("ops", 10.5)
    with pytest.raises(RateLimited):
        limit.take("ops", 10.6)


@given(st.lists(st.floats(0, 3), max_size=60))
def test_never_more_than_the_rate_allows(pauses: list[float]) -> None:
    """In any stretch of time at most burst + rate x length are let through, and waiting as told is enough."""
    limit, now, passed = RateLimit(per_s=2, burst=3), 0.0, []
    for pause in pauses:
        now += pause
        try:
            limit.take("a", now)
            passed.append(now)
        except RateLimited as refused:
            now += refused.extra["retry_after_s"]
            limit.take("a", now)
            passed.append(now)
    for i, begin in enumerate(passed):
        for j, end in enumerate(passed[i:], 1):
            assert j <= 3 + 2 * (end - begin) + 1e-6


def test_a_clock_that_falls_gives_nothing() -> None:
    limit = RateLimit(per_s=1, burst=1)
    limit.take("a", 100.0)
    with pytest.raises(RateLimited):
        limit.take("a", 50.0)


async def test_who_asks_too_fast_is_told_when_to_come_back(tmp_path: Path) -> None:
    async with world(tmp_path, requests_per_s=0.01, request_burst=2) as door:
        for _ in range(2):
            assert (await door.client.get("/moorage/v1/status", headers=door.as_("ops"))).status == 200
        answer = await door.client.get("/moorage/v1/status", headers=door.as_("ops"))
        problem = json.loads(await answer.text())
        assert (answer.status, problem["code"]) == (429, "rate-limited")
        assert 90 <= int(answer.headers["Retry-After"]) <= 100
        assert (await door.client.get("/moorage/v1/status", headers=door.as_("research"))).status == 200
        assert (await door.client.get("/healthz")).status == 200


async def test_no_limit(tmp_path: Path) -> None:
    async with world(tmp_path, requests_per_s=0, request_burst=0) as door:
        for _ in range(20):
            assert (await door.client.get("/moorage/v1/whoami", headers=door.as_("ops"))).status == 200


async def test_too_many_under_way_are_told_to_come_back(tmp_path: Path) -> None:
    """503 at once, not a queue in which every client gives up; afterwards all is as before."""
    async with world(tmp_path, most_in_flight=3) as door:
        app = door.client.app
        assert app is not None
        assert (await door.client.get("/moorage/v1/whoami", headers=door.as_("ops"))).status == 200
        async with asyncio.timeout(60):
            while app[CONTEXT].in_flight:  # the spool is pruned at the start
                await asyncio.sleep(0.01)
        go, real = threading.Event(), door.control.status
        door.control.status = lambda caller: go.wait(60) and real(caller)  # type: ignore[method-assign]
        slow = [
            asyncio.ensure_future(door.client.get("/moorage/v1/status", headers=door.as_("ops")))
            for _ in range(3)
        ]
        async with asyncio.timeout(60):
            while app[CONTEXT].in_flight < 3:
                await asyncio.sleep(0.01)
        refused = await door.client.get("/moorage/v1/whoami", headers=door.as_("ops"))
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        assert json.loads(await refused.text())["code"] == "overloaded"
        go.set()
        assert [(await one).status for one in slow] == [200] * 3
        assert (await door.client.get("/moorage/v1/whoami", headers=door.as_("ops"))).status == 200
