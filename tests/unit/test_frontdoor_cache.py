"""What the endpoint proxy remembers: no control-plane call per request, and never for longer than it says (V1, G1)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from frontdoor_world import CALLERS, World, world

from moorage.errors import Unauthenticated
from moorage.runtime.frontdoor import cache
from moorage.runtime.frontdoor.context import CONTEXT


def test_a_value_ends_with_its_time_and_counts_from_the_question() -> None:
    now = 10.0
    kept: cache.Remembered[str, int] = cache.Remembered(2.0, lambda: now)
    kept.put("a", 1)
    kept.put("slow", 2, asked_at=8.5)
    assert (kept.get("a"), kept.get("slow"), kept.get("none")) == (1, 2, None)
    now = 10.6
    assert (kept.get("a"), kept.get("slow")) == (1, None)
    now = 12.0
    assert kept.get("a") is None


def test_it_is_bounded_and_may_be_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "AT_MOST", 8)
    kept: cache.Remembered[int, int] = cache.Remembered(2.0)
    for one in range(100):
        kept.put(one, one)
        assert kept.get(one) == one
    assert sum(kept.get(one) is not None for one in range(100)) <= 8
    off: cache.Remembered[int, int] = cache.Remembered(0)
    off.put(1, 1)
    assert off.get(1) is None


def test_tokens_are_not_kept() -> None:
    assert b"secret" not in cache.mark("secret") and cache.mark("secret") != cache.mark("secret2")


@asynccontextmanager
async def served(home: Path, keep_s: float) -> AsyncIterator[tuple[World, list[str]]]:
    """A front door before a Serve that answers everything, and the paths that Serve was asked for."""
    paths: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        paths.append(request.path)
        return web.json_response({"body": (await request.read()).decode()})

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    async with (
        TestServer(app) as serve,
        world(home, serve=str(serve.make_url("")), endpoint_cache_s=keep_s) as door,
    ):
        door.control.publish_endpoint(CALLERS["ops-token"], "flights", "flights", "/flights")
        yield door, paths


async def ask(door: World, who: str = "ops") -> int:
    answer = await door.client.post("/endpoints/flights/predict", json={}, headers=door.as_(who))
    await answer.read()
    return answer.status


async def test_many_requests_ask_the_control_plane_once(tmp_path: Path) -> None:
    async with served(tmp_path, 60.0) as (door, paths):
        assert [await ask(door) for _ in range(20)] == [200] * 20
        assert door.control.authenticated == 1 and len(paths) == 20
        await (await door.client.get("/moorage/v1/status", headers=door.as_("ops"))).read()
        assert door.control.authenticated == 2, "only endpoints may be answered from memory"
        assert await ask(door, "nobody") == 401
        assert await ask(door, "research") == 404


@pytest.mark.parametrize("gone", ["token", "job"])
async def test_a_revoked_token_and_an_ended_job_stop_within_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    async with served(tmp_path, 60.0) as (door, _):
        now = 1000.0
        context = door.client.app[CONTEXT]  # type: ignore[index]
        for kept in (context.callers, context.endpoints):
            monkeypatch.setattr(kept, "_clock", lambda: now)
        monkeypatch.setattr("moorage.runtime.frontdoor.context.time.monotonic", lambda: now)
        assert await ask(door) == 200
        if gone == "token":
            monkeypatch.setattr(door.control, "authenticate", _refuse)
        else:
            door.control.published["flights"] = replace(door.control.published["flights"], live=False)
        now = 1059.9
        assert await ask(door) == 200
        now = 1060.0
        assert await ask(door) == (401 if gone == "token" else 503)


async def test_changes_through_this_door_count_at_once(tmp_path: Path) -> None:
    async with served(tmp_path, 60.0) as (door, paths):
        assert await ask(door) == 200
        moved = {"name": "flights", "app": "ops-other", "route": "/elsewhere"}
        answer = await door.client.post("/moorage/v1/endpoints", json=moved, headers=door.as_("ops"))
        assert answer.status == 201, await answer.text()
        assert await ask(door) == 200
        assert paths == ["/flights/predict", "/elsewhere/predict"]
        job = await door.submit("ops")
        door.control.published["flights"] = replace(door.control.published["flights"], live=False)
        await (await door.client.post(f"/api/jobs/{job}/stop", headers=door.as_("ops"))).read()
        assert await ask(door) == 503


def _refuse(_: str | None) -> None:
    raise Unauthenticated("revoked")
