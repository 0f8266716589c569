"""/endpoints/<name>/...: published endpoints behind the front door's address (V1)."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from frontdoor_world import CALLERS, World, world
from yarl import URL

from moorage.runtime.frontdoor.context import CONTEXT

DOCS = "<html><script>url: '/flights/openapi.json', x: '/flights/docs/oauth2-redirect'</script></html>"


class Application:
    """A Serve application at /flights, as the proxy meets it."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []

    async def echo(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests.append((request.method, request.raw_path, dict(request.headers), body))
        if request.path.endswith("/stream"):
            response = web.StreamResponse()
            await response.prepare(request)
            for n in range(3):
                await response.write(b"token %d\n" % n)
            return response
        if request.path.endswith("/docs"):
            return web.Response(text=DOCS, content_type="text/html")
        if request.path.endswith("/openapi.json"):
            return web.json_response({"openapi": "3.1.0", "paths": {}})
        if request.path.endswith("/moved"):
            raise web.HTTPTemporaryRedirect("/flights/predict/")
        return web.json_response({"score": 0.5}, headers={"X-Model": "7", "Set-Cookie": "a=b"})


@asynccontextmanager
async def served(tmp_path: Path, **settings: Any) -> AsyncIterator[tuple[World, Application]]:
    application = Application()
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{tail:.*}", application.echo)
    async with TestServer(app) as serve:
        address = str(serve.make_url("")).rstrip("/")
        async with world(tmp_path, serve=address, **settings) as door:
            door.control.publish_endpoint(CALLERS["ops-token"], "flights", "flights", "/flights")
            yield door, application


async def test_a_request_goes_through_without_the_token(tmp_path: Path) -> None:
    async with served(tmp_path) as (door, application):
        answer = await door.client.post(
            "/endpoints/flights/predict%2Fnow?explain=a%20b",
            json={"rows": [1]},
            headers=door.as_("ops")
            | {"Cookie": "s=1", "X-Moorage-Team": "research", "Connection": "X-Hop", "X-Hop": "1"},
        )
        assert await answer.json() == {"score": 0.5} and answer.headers["X-Model"] == "7"
        assert "Set-Cookie" not in answer.headers
        method, path, headers, body = application.requests[0]
        assert (method, path, json.loads(body)) == (
            "POST",
            "/flights/predict%2Fnow?explain=a%20b",
            {"rows": [1]},
        )
        assert headers["X-Moorage-Team"] == "ops" and headers["X-Forwarded-Prefix"] == "/endpoints/flights"
        assert not {"Authorization", "Cookie", "X-Hop"} & headers.keys()


async def test_the_documentation_works_under_the_prefix(tmp_path: Path) -> None:
    async with served(tmp_path) as (door, _):
        page = await (await door.client.get("/endpoints/flights/docs", headers=door.as_("ops"))).text()
        assert "'/endpoints/flights/openapi.json'" in page and "'/flights/" not in page
        found = await (
            await door.client.get("/endpoints/flights/openapi.json", headers=door.as_("ops"))
        ).json()
        assert found["servers"] == [{"url": "/endpoints/flights"}]


async def test_streams_and_redirects(tmp_path: Path) -> None:
    async with served(tmp_path) as (door, _):
        answer = await door.client.get("/endpoints/flights/stream", headers=door.as_("ops"))
        assert await answer.read() == b"token 0\ntoken 1\ntoken 2\n"
        moved = await door.client.get(
            "/endpoints/flights/moved", headers=door.as_("ops"), allow_redirects=False
        )
        assert moved.headers["Location"] == "/endpoints/flights/predict/"
        root = await door.client.get("/endpoints/flights", headers=door.as_("ops"), allow_redirects=False)
        assert (root.status, root.headers["Location"]) == (308, "/endpoints/flights/")


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_large_body_is_bounded(tmp_path: Path, chunked: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * 10_000

    async with served(tmp_path, max_endpoint_body=100_000) as (door, _):
        data: Any = pieces() if chunked else b"x" * 400_000
        answer = await door.client.post("/endpoints/flights/predict", data=data, headers=door.as_("ops"))
        assert (answer.status, json.loads(await answer.text())["code"]) == (413, "too-large")
        fits = await door.client.post(
            "/endpoints/flights/predict", data=b"x" * 90_000, headers=door.as_("ops")
        )
        assert fits.status == 200


async def test_a_foreign_team_is_told_there_is_none(tmp_path: Path) -> None:
    async with served(tmp_path) as (door, application):
        answer = await door.client.get("/endpoints/flights/predict", headers=door.as_("research"))
        none = await door.client.get("/endpoints/nothing/predict", headers=door.as_("research"))
        assert (answer.status, none.status) == (404, 404)
        assert not application.requests
        assert (await door.client.get("/endpoints/flights/x", headers=door.as_("admin"))).status == 200


async def test_an_endpoint_that_is_down_says_when_to_retry(tmp_path: Path) -> None:
    async with world(tmp_path, serve="http://127.0.0.1:9") as door:
        door.control.publish_endpoint(CALLERS["ops-token"], "flights", "flights", "/flights")
        answer = await door.client.get("/endpoints/flights/predict", headers=door.as_("ops"))
        assert (answer.status, answer.headers["Retry-After"]) == (503, "2")
        assert json.loads(await answer.text())["code"] == "endpoint-down"


async def test_a_packed_body_arrives(tmp_path: Path) -> None:
    """The server unpacks it: neither its old length nor its old encoding may go with it."""
    body = json.dumps({"rows": [1] * 1000}).encode()
    async with served(tmp_path) as (door, application):
        answer = await door.client.post(
            "/endpoints/flights/predict",
            data=gzip.compress(body),
            headers=door.as_("ops") | {"Content-Encoding": "gzip"},
        )
        assert answer.status == 200 and application.requests[0][3] == body


@pytest.mark.parametrize(
    "path", ["%2e%2e/secret", "a/%2E%2E/%2e%2e/secret", "..%2fsecret", "a/%2e/b", "..%5csecret"]
)
async def test_a_path_that_leaves_the_application_is_refused(tmp_path: Path, path: str) -> None:
    """G1: a team's token opens its own application, whoever normalises the path behind the front door."""
    async with served(tmp_path) as (door, application):
        url = URL(str(door.client.make_url("/endpoints/flights/")) + path, encoded=True)
        answer = await door.client.session.get(url, headers={"Authorization": "Bearer ops-token"})
        assert (answer.status, (await answer.json())["code"]) == (400, "dot-segment")
        assert application.requests == []


def _report(*states: str) -> dict[str, Any]:
    replicas = [
        {
            "app": f"flights-r{n}",
            "route": f"/flights-r{n}",
            "lease_id": "l-1",
            "node": "n",
            "devices": [n],
            "state": state,
        }
        for n, state in enumerate(states)
    ]
    return {"min_replicas": 1, "max_replicas": 4, "wanted": 2, "replicas": replicas}


async def test_requests_go_to_who_serves_with_the_fewest_under_way(tmp_path: Path) -> None:
    """Also right after a report, though the door remembers endpoints for a while (V4)."""
    async with served(tmp_path) as (door, application):
        serving = "/moorage/v1/endpoints/flights/replicas"
        ops, target = door.as_("ops"), "/endpoints/flights/predict"

        async def routes(count: int) -> list[str]:
            application.requests.clear()
            for _ in range(count):
                assert (await door.client.post(target, json={}, headers=ops)).status == 200
            return [path.split("/")[1] for _, path, _, _ in application.requests]

        assert await routes(2) == ["flights", "flights"]
        answer = await door.client.put(serving, json=_report("SERVING", "SERVING", "STARTING"), headers=ops)
        assert answer.status == 200 and (await answer.json())["scaling"]["wanted"] == 2
        assert sorted(await routes(4)) == ["flights-r0"] * 2 + ["flights-r1"] * 2
        at = door.client.app[CONTEXT].at_routes  # type: ignore[index]
        at["/flights-r0"] = 1
        assert await routes(3) == ["flights-r1"] * 3, "the other has one under way"
        said = await door.client.put(serving, json=_report("SERVING", "SERVING"), headers=ops)
        assert (await said.json())["under_way"] == {"/flights-r0": 1}
        del at["/flights-r0"]
        assert not at, "what is over does not count"
        await door.client.put(serving, json=_report("DRAINING", "SERVING"), headers=ops)
        assert await routes(2) == ["flights-r1"] * 2
        await door.client.put(serving, json=_report("UNHEALTHY", "DRAINING"), headers=ops)
        assert await routes(1) == ["flights"], "nobody serves: Serve says so at the endpoint's own route"
        bad = _report("SERVING") | {"load": {"ongoing": "many"}}
        assert (await door.client.put(serving, json=bad, headers=ops)).status == 400
