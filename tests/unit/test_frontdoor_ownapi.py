"""Moorage's own routes, their OpenAPI document, metrics, the client that speaks to them (S8, L2)."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from frontdoor_world import world
from prometheus_client.parser import text_string_to_metric_families

from moorage.errors import InvalidRequest, LeaseTimeout, MoorageError, NotFound, Unauthenticated, Unavailable
from moorage.runtime.client import Client, lease, milli
from moorage.runtime.control import api
from moorage.runtime.frontdoor.openapi import document
from moorage.runtime.frontdoor.ownapi import ROUTES


async def test_a_job_with_its_attempts(tmp_path: Path) -> None:
    async with world(tmp_path) as door:
        job_id = await door.submit(runtime_env={"env_vars": {"SECRET": "s3cret"}})
        door.control.attempt(job_id)
        answer = await door.client.get(f"/moorage/v1/jobs/{job_id}", headers=door.as_("ops"))
        text = await answer.text()
        found = json.loads(text)
        assert found["state"] == "PENDING" and found["attempts"][0]["submission_id"] == f"{job_id}-1"
        assert "s3cret" not in text
        listed = await door.client.get("/moorage/v1/jobs?state=pending&limit=5", headers=door.as_("ops"))
        assert [job["job_id"] for job in await listed.json()] == [job_id]


async def test_why_a_job_waits(tmp_path: Path) -> None:
    """S8: the explanation of a waiting job, what a running one holds; a job of another team is not there."""
    async with world(tmp_path) as door:
        job_id, foreign = await door.submit(), await door.submit("research")
        path = f"/moorage/v1/jobs/{job_id}/why"
        found = await (await door.client.get(path, headers=door.as_("ops"))).json()
        assert found["explanation"]["suggestions"][0]["milli"] == 2000 and found["holds"] == []
        door.control.to(job_id, api.RUNNING)
        found = await (await door.client.get(path, headers=door.as_("ops"))).json()
        assert found["explanation"] is None and found["holds"][0]["lease"] == "l-1"
        hidden = await door.client.get(f"/moorage/v1/jobs/{foreign}/why", headers=door.as_("ops"))
        assert (hidden.status, json.loads(await hidden.text())["code"]) == (404, "not-found")
        assert (await door.client.get(path)).status == 401


@pytest.mark.parametrize(
    "query", ["after=-1", "after=x", "limit=1e3", "limit=1001", "last=1001", "after=%C2%B2"]
)
async def test_bad_queries(tmp_path: Path, query: str) -> None:
    async with world(tmp_path) as door:
        answer = await door.client.get(f"/moorage/v1/events?{query}", headers=door.as_("ops"))
        assert (answer.status, json.loads(await answer.text())["code"]) == (400, "bad-query")


async def test_events_page(tmp_path: Path) -> None:
    async with world(tmp_path) as door:
        answer = await door.client.get("/moorage/v1/events?after=3&limit=2", headers=door.as_("ops"))
        assert [one["seq"] for one in await answer.json()] == [4, 5]
        answer = await door.client.get("/moorage/v1/events?after=3&last=2", headers=door.as_("ops"))
        assert [one["seq"] for one in await answer.json()] == [6, 7]
        foreign = await door.submit("research")
        hidden = await door.client.get(f"/moorage/v1/jobs/{foreign}/events", headers=door.as_("ops"))
        assert hidden.status == 404


@pytest.mark.parametrize(
    "body",
    [
        {"workers": 0},
        {"workers": 1.5},
        {"milli_gpu": -1},
        {"milli_gpu": "1"},
        {"gpus": 1},
        {"timeout_s": -1},
        {"milli_gpu": 10**12},
        [],
    ],
)
async def test_bad_lease_requests(tmp_path: Path, body: Any) -> None:
    async with world(tmp_path) as door:
        answer = await door.client.post("/moorage/v1/leases", json=body, headers=door.as_("ops"))
        assert (answer.status, json.loads(await answer.text())["code"]) == (400, "bad-shape")
        assert not door.control.asked


async def test_waiting_leases_do_not_stall_the_front_door(tmp_path: Path) -> None:
    """40 blocked `lease(...)` calls sit in threads of their own; other requests are answered meanwhile."""
    async with world(tmp_path) as door:
        waits = [
            asyncio.create_task(
                door.client.post("/moorage/v1/leases", json={"timeout_s": 300}, headers=door.as_("ops"))
            )
            for _ in range(40)
        ]
        async with asyncio.timeout(60):
            while len(door.control.asked) < 40:
                await asyncio.sleep(0.01)
            assert (await door.client.get("/api/jobs/", headers=door.as_("ops"))).status == 200
        door.control.grant.set()
        assert {answer.status for answer in await asyncio.gather(*waits)} == {201}


async def test_a_lease_for_a_client_that_left_is_given_back(tmp_path: Path) -> None:
    """No hold by accident: nobody would ever release it."""
    async with world(tmp_path) as door:
        asking = asyncio.create_task(
            door.client.post("/moorage/v1/leases", json={"timeout_s": 300}, headers=door.as_("ops"))
        )
        async with asyncio.timeout(60):
            while not door.control.asked:
                await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        door.control.grant.set()
        async with asyncio.timeout(60):
            while not door.control.released:
                await asyncio.sleep(0.01)
        assert door.control.released == ["sub-1"] and not door.control.held


async def test_the_client_leases_and_gives_back(tmp_path: Path) -> None:
    async with world(tmp_path) as door:

        def job() -> None:
            with Client(door.url, "ops-token") as client:
                with lease(
                    gpus=0.5, cpus=2, gpu_memory_mib=4096, workers=2, timeout=5, client=client
                ) as room:
                    assert [worker.gpus for worker in room.workers] == [0.5, 0.5]
                    assert room.workers[0].devices == (1,) and room.epoch == 3
                    assert len(door.control.held) == 1
                assert not door.control.held
                with (
                    pytest.raises(ZeroDivisionError),
                    lease(gpus=1, timeout=5, client=client),
                ):
                    print(1 / 0)
                assert not door.control.held

        door.control.grant.set()
        await asyncio.to_thread(job)
        assert (door.control.asked[0].milli_gpu, door.control.asked[0].gpu_mib) == (500, 4096)


async def test_a_lease_that_does_not_come_says_why(tmp_path: Path) -> None:
    async with world(tmp_path) as door:

        def job() -> LeaseTimeout:
            with (
                Client(door.url, "ops-token") as client,
                pytest.raises(LeaseTimeout) as caught,
                lease(gpus=1, timeout=0.3, client=client),
            ):
                raise AssertionError("the block must not run")
            return caught.value

        error = await asyncio.to_thread(job)
        assert "Team ops uses 4 of 4 GPUs" in str(error) and error.code == "lease-timeout"


async def test_the_client_gives_back_the_servers_own_error(tmp_path: Path) -> None:
    async with world(tmp_path) as door:

        def ask() -> list[MoorageError]:
            caught: list[MoorageError] = []
            with Client(door.url, "wrong") as stranger, Client(door.url, "ops-token") as client:
                for call in (
                    stranger.status,
                    lambda: client.job("nothing"),
                    lambda: client.job("../status"),
                    lambda: client.submit({"entrypoint": ""}),
                ):
                    try:
                        call()
                    except MoorageError as error:
                        caught.append(error)
            return caught

        kinds = [type(error) for error in await asyncio.to_thread(ask)]
        assert kinds == [Unauthenticated, NotFound, InvalidRequest, InvalidRequest]


def test_a_front_door_that_is_not_there() -> None:
    with Client("http://127.0.0.1:9", "t") as client, pytest.raises(Unavailable) as caught:
        client.status()
    assert caught.value.code == "front-door-unreachable" and "moorage up" in str(caught.value)


def test_from_env_prefers_the_jobs_own_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "admin.token").write_text("admin-token\n")
    (tmp_path / "pool.json").write_text(json.dumps({"front_door": "127.0.0.1:8470"}))
    monkeypatch.setenv("MOORAGE_HOME", str(tmp_path))
    assert Client.from_env().url == "http://127.0.0.1:8470"
    with pytest.raises(Unauthenticated):
        Client.from_env(principal="ops")
    with pytest.raises(InvalidRequest):
        Client.from_env(principal="../admin")
    monkeypatch.setenv("MOORAGE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("MOORAGE_TOKEN", "job-token")
    assert Client.from_env().url == "http://127.0.0.1:1"
    assert Client.from_env(home=tmp_path).url == "http://127.0.0.1:8470"
    with pytest.raises(NotFound) as caught:
        Client.from_env(home=tmp_path / "nothing")
    assert caught.value.code == "pool-not-up"


@pytest.mark.parametrize("amount", [-1, float("nan"), float("inf"), 0.0001, "1", True])
def test_amounts_that_are_none(amount: Any) -> None:
    with pytest.raises(InvalidRequest):
        milli("gpus", amount)


def test_amounts() -> None:
    assert [milli("gpus", amount) for amount in (0, 1, 0.1 + 0.2, 0.333, 8)] == [0, 1000, 300, 333, 8000]


def test_the_openapi_document_covers_the_routes() -> None:
    """Written from the same table as the router; every reference resolves."""
    page = document(ROUTES)
    assert page["openapi"] == "3.1.0"
    described = {(method.upper(), path) for path, methods in page["paths"].items() for method in methods}
    assert described == {(route.method, route.path) for route in ROUTES}
    text = json.dumps(page)
    for name in set(re.findall(r"#/components/schemas/([\w.-]+)", text)):
        assert name in page["components"]["schemas"]
    ids = [one["operationId"] for methods in page["paths"].values() for one in methods.values()]
    assert len(ids) == len(set(ids))


async def test_answers_match_the_openapi_document(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    async with world(tmp_path) as door:
        job_id = await door.submit()
        door.control.grant.set()
        page = await (await door.client.get("/moorage/v1/openapi.json")).json()
        for method, path, body in (
            ("GET", "/moorage/v1/whoami", None),
            ("GET", "/moorage/v1/jobs", None),
            ("GET", "/moorage/v1/jobs/{job_id}", None),
            ("GET", "/moorage/v1/jobs/{job_id}/why", None),
            ("GET", "/moorage/v1/jobs/{job_id}/notice", None),
            ("POST", "/moorage/v1/jobs/{job_id}/notice", {"said": "checkpointed", "step": 7}),
            ("GET", "/moorage/v1/jobs/{job_id}/lease", None),
            ("POST", "/moorage/v1/jobs/{job_id}/lease", {"follows": True, "workers": 2}),
            ("POST", "/moorage/v1/leases", {"milli_gpu": 500}),
            ("POST", "/moorage/v1/endpoints", {"name": "flights", "app": "f", "route": "/f"}),
            ("GET", "/moorage/v1/endpoints", None),
            ("GET", "/moorage/v1/events", None),
        ):
            answer = await door.client.request(
                method, path.format(job_id=job_id), json=body, headers=door.as_("ops")
            )
            described = page["paths"][path][method.lower()]["responses"][str(answer.status)]
            schema = described["content"]["application/json"]["schema"]
            jsonschema.validate(await answer.json(), {**schema, "components": page["components"]})


async def test_metrics_are_prometheus_text(tmp_path: Path) -> None:
    async with world(tmp_path) as door:
        await door.submit()
        answer = await door.client.get("/metrics", headers=door.as_("ops"))
        families = {one.name: one for one in text_string_to_metric_families(await answer.text())}
        assert {s.labels["state"]: s.value for s in families["moorage_jobs"].samples} == {
            "PENDING": 2.0,
            "RUNNING": 1.0,
        }
        assert families["moorage_leased_gpu_seconds"].samples[0].value == 12.5
        counted = {
            (s.labels["method"], s.labels["route"], s.labels["status"])
            for s in families["moorage_http_requests"].samples
            if s.name.endswith("_total")
        }
        assert ("POST", "/api/jobs/", "200") in counted


async def test_health_follows_the_control_plane(tmp_path: Path) -> None:
    async with world(tmp_path) as door:
        assert (await door.client.get("/healthz")).status == 200
        door.control.health = lambda: {"ok": False, "tick_age_ms": 60_000}  # type: ignore[method-assign]
        assert (await door.client.get("/healthz")).status == 503


def test_states_of_ray() -> None:
    assert {api.ray_status(state) for state in api.FINAL} == {"SUCCEEDED", "FAILED", "STOPPED"}
