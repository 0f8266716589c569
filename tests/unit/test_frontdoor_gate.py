"""What stands before every handler: authentication, Host and Origin, problem documents (G1, S9)."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from frontdoor_world import World, world

from moorage.runtime.frontdoor import page

PROTECTED = (
    ("GET", "/api/version"),
    ("GET", "/api/jobs/"),
    ("POST", "/api/jobs/"),
    ("GET", "/api/jobs/x"),
    ("DELETE", "/api/jobs/x"),
    ("POST", "/api/jobs/x/stop"),
    ("GET", "/api/jobs/x/logs"),
    ("GET", "/api/jobs/x/logs/tail"),
    ("GET", "/api/packages/gcs/x.zip"),
    ("PUT", "/api/packages/gcs/x.zip"),
    ("GET", "/moorage/v1/status"),
    ("GET", "/moorage/v1/cost"),
    ("PUT", "/moorage/v1/quotas"),
    ("POST", "/moorage/v1/nodes/x/drain"),
    ("DELETE", "/moorage/v1/nodes/x/drain"),
    ("POST", "/moorage/v1/leases"),
    ("POST", "/moorage/v1/endpoints"),
    ("GET", "/endpoints/flights/predict"),
    ("POST", "/moorage/v1/ray-dashboard"),
    ("GET", "/ray/x/"),
    ("GET", "/metrics"),
    ("GET", "/no/such/route"),
)


@pytest.mark.parametrize(("method", "path"), PROTECTED)
@pytest.mark.parametrize(
    "token", [None, "Bearer wrong", "Bearer ", "Basic b3BzOm9wcy10b2tlbg==", "ops-token"]
)
async def test_without_a_known_token_nothing_is_answered(
    tmp_path: Path, method: str, path: str, token: str | None
) -> None:
    """401 before routing and before the (malformed) body is looked at."""
    if token is not None and token.startswith("Basic") and path.startswith("/endpoints/"):
        pytest.skip("browsers may use Basic on an endpoint's own pages")
    async with world(tmp_path) as door:
        headers = {} if token is None else {"Authorization": token}
        answer = await door.client.request(method, path, data=b"{not json", headers=headers)
        assert answer.status == 401, await answer.text()
        assert json.loads(await answer.text())["code"] == "unauthenticated"
        assert "Bearer" in answer.headers["WWW-Authenticate"]


async def test_all_routes_are_protected(tmp_path: Path) -> None:
    """A route added later without authentication fails here, not in production."""
    async with world(tmp_path) as door:
        app = door.client.app
        assert app is not None
        for route in app.router.routes():
            path = (route.resource.canonical if route.resource else "").format(
                job_id="x", protocol="gcs", name="x.zip", lease_id="x", tail="x", node="x", view="x"
            )
            if path in ("/healthz", "/readyz", "/moorage/v1/openapi.json") or path in page.PATHS:
                continue
            method = "GET" if route.method in ("*", "HEAD") else route.method
            answer = await door.client.request(method, path, allow_redirects=False)
            assert answer.status == 401, (method, path, answer.status)


async def test_open_pages_say_nothing_secret(tmp_path: Path) -> None:
    async with world(tmp_path) as door:
        assert (await door.client.get("/healthz")).status == 200
        assert await (await door.client.get("/readyz")).json() == {
            "ready": True,
            "role": "leader",
            "generation": 1,
        }
        assert (await door.client.get("/moorage/v1/openapi.json")).status == 200
        assert door.control.authenticated == 0


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:8470", "", "[::1", "localhost.:8470"]
)
async def test_dns_rebinding_is_refused(tmp_path: Path, host: str) -> None:
    """G4: a page whose name resolves to 127.0.0.1 sends its own name in Host."""
    async with world(tmp_path) as door:
        answer = await door.client.get("/api/jobs/", headers=door.as_("ops") | {"Host": host})
        assert (answer.status, json.loads(await answer.text())["code"]) == (403, "bad-host")
        assert door.control.authenticated == 0


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1.evil.example"])
async def test_foreign_origins_are_refused(tmp_path: Path, origin: str) -> None:
    async with world(tmp_path) as door:
        answer = await door.client.post(
            "/api/jobs/", json={"entrypoint": "x"}, headers=door.as_("ops") | {"Origin": origin}
        )
        assert (answer.status, json.loads(await answer.text())["code"]) == (403, "bad-origin")
        assert not door.control.views


@pytest.mark.parametrize("host", ["localhost:8470", "127.0.0.1", "[::1]:8470", "LOCALHOST"])
async def test_the_names_of_this_machine_are_served(tmp_path: Path, host: str) -> None:
    async with world(tmp_path) as door:
        answer = await door.client.get("/api/jobs/", headers=door.as_("ops") | {"Host": host})
        assert answer.status == 200


async def test_ray_behind_a_proxy_header_is_accepted(tmp_path: Path) -> None:
    async with world(tmp_path) as door:
        answer = await door.client.get("/api/jobs/", headers={"X-Ray-Authorization": "Bearer ops-token"})
        assert answer.status == 200


async def test_unknown_routes_and_methods_are_problems(tmp_path: Path) -> None:
    async with world(tmp_path) as door:
        missing = await door.client.get("/api/nothing", headers=door.as_("ops"))
        assert (missing.status, json.loads(await missing.text())["code"]) == (404, "no-such-route")
        wrong = await door.client.put("/api/jobs/", headers=door.as_("ops"))
        assert (wrong.status, json.loads(await wrong.text())["code"]) == (405, "method-not-allowed")


async def test_a_bug_shows_an_incident_and_no_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path) as door:
        door.control.status = lambda caller: {}["gone"]  # type: ignore[method-assign]
        answer = await door.client.get("/moorage/v1/status", headers=door.as_("ops"))
        text = await answer.text()
        assert (answer.status, json.loads(text)["code"]) == (500, "internal-error")
        assert "KeyError" not in text and "Traceback" not in text
        incident = json.loads(text)["todo"].split("incident ")[1].split(" ")[0]
        assert incident in caplog.text and "KeyError" in caplog.text


async def test_a_browser_may_use_basic_on_an_endpoint(tmp_path: Path) -> None:
    """V1: the OpenAPI page of an endpoint opens in a browser, with the token as password."""
    async with world(tmp_path) as door:
        blank: World = door
        basic = base64.b64encode(b"anyone:ops-token").decode()
        answer = await blank.client.get(
            "/endpoints/flights/docs", headers={"Authorization": f"Basic {basic}"}
        )
        assert answer.status == 404
        challenge = await blank.client.get("/endpoints/flights/docs")
        assert any(value.startswith("Basic ") for value in challenge.headers.getall("WWW-Authenticate"))
