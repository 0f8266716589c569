"""S9: no number and no text that a request carries makes the front door fail: taken, or refused by a stable code."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from control_world import World, world
from yarl import URL

from moorage.configs.job import KEYS
from moorage.errors import InvalidRequest
from moorage.runtime.frontdoor.app import create_app
from moorage.runtime.frontdoor.ownapi import ROUTES
from moorage.runtime.frontdoor.settings import Settings
from moorage.runtime.frontdoor.wire import RaySubmit, load_json

HUGE = "1" + "0" * 400
EDGES = tuple(str(n) for n in (2**31, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, -1, -(2**63), -(2**63) - 1))
NUMBERS = (*EDGES, HUGE, f"-{HUGE}", "1e308", "1e999", "-1e999", "1e-400", "0.5")
TEXTS = (r'"a\u0000b"', r'"\ud800"', r'"\udc00\ud800"', f'"{"x" * 3000}"')
REPLICA = {"app": "trips", "route": "/trips", "lease_id": "l", "node": "node-0", "devices": [0]}
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/api/jobs/"): {
        "entrypoint": "python x.py",
        "runtime_env": {"config": {"setup_timeout_seconds": 60}},
        "entrypoint_num_cpus": 1,
        "entrypoint_num_gpus": 1,
        "entrypoint_memory": 1,
        "entrypoint_resources": {"disk": 1},
    },
    ("POST", "/moorage/v1/leases"): {
        "job_id": "busy",
        "workers": 1,
        "milli_gpu": 1000,
        "gpu_mib": 10,
        "milli_cpu": 1000,
        "timeout_s": 0.01,
        "name": "more",
    },
    ("POST", "/moorage/v1/jobs/{job_id}/notice"): {"said": "checkpointed", "step": 7},
    ("POST", "/moorage/v1/jobs/{job_id}/lease"): {"follows": True, "workers": 1, "wants": 1},
    ("POST", "/moorage/v1/endpoints"): {"name": "trips", "app": "trips", "route": "/trips", "job_id": "busy"},
    ("PUT", "/moorage/v1/endpoints/{name}/replicas"): {
        "min_replicas": 1,
        "max_replicas": 2,
        "wanted": 1,
        "replicas": [REPLICA | {"state": "DRAINING"}],
        "load": {"in_flight": 1},
        "note": "",
    },
    ("PUT", "/moorage/v1/quotas"): {
        "file": "teams: {ops: {quota: 4}}",
        "base": 1,
        "force": False,
        "dry_run": False,
    },
    ("POST", "/moorage/v1/nodes/{node}/drain"): {"why": "a fan"},
}


def with_values(
    body: Any, numbers: tuple[str, ...], texts: tuple[str, ...] = ()
) -> Iterator[tuple[str, str]]:
    """(where, JSON text): the body with each of its numbers in turn replaced by each of `numbers`, as it is written,
    and each of its strings by each of `texts`."""
    places: list[tuple[list[Any], tuple[str, ...]]] = []

    def walk(value: Any, path: list[Any]) -> None:
        if isinstance(value, dict | list):
            for key, one in value.items() if isinstance(value, dict) else enumerate(value):
                walk(one, [*path, key])
        elif not isinstance(value, bool):
            places.append((path, texts if isinstance(value, str) else numbers))

    walk(body, [])
    for path, values in places:
        for value in values:
            changed = copy.deepcopy(body)
            inner = changed
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = "@here@"
            yield f"{'.'.join(map(str, path))} = {value[:30]}", json.dumps(changed).replace('"@here@"', value)


def test_every_body_is_tried() -> None:
    """A new route, or a new field of one, is tried below too."""
    models = {(one.method, one.path): one.body for one in ROUTES if one.body is not None}
    models[("POST", "/api/jobs/")] = RaySubmit
    assert models.keys() == BODIES.keys()
    text = {"submission_id", "job_id", "metadata", "entrypoint_label_selector"}
    for route, model in models.items():
        assert set(model.model_fields) - set(BODIES[route]) <= text, route


@pytest.mark.parametrize(
    "number", [str(2**63), str(-(2**63) - 1), HUGE, f"-{HUGE}", "1e309", "-1e309", "NaN"]
)
def test_what_no_machine_number_holds_is_refused(number: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        load_json(f'{{"deep": [{number}]}}'.encode())
    assert refused.value.code == "bad-json" and len(str(refused.value)) < 200


def test_what_fits_is_kept_to_the_last_digit() -> None:
    assert load_json(f"[{2**63 - 1}, {-(2**63)}, -0, 1e308, 0.1]".encode()) == [
        2**63 - 1,
        -(2**63),
        0,
        1e308,
        0.1,
    ]


@pytest.mark.parametrize(
    "text", [*map(str.encode, TEXTS[:3]), b'"\xed\xa0\x80"', b'{"\\u0000": 1}', "1".encode("utf-16")]
)
def test_what_is_no_text_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        load_json(b"[" + text + b"]")
    assert refused.value.code == "bad-json" and str(refused.value).isascii()


def test_other_text_is_kept() -> None:
    said = ["\\u0000", "\U0001f40b", "\n\u007f\ufffd"]
    assert load_json(json.dumps(said).encode()) == said
    assert load_json(json.dumps(said, ensure_ascii=False).encode("utf-8-sig")) == said


def running(pool: World) -> None:
    pool.submit("ops", job="busy", gpus=1, workers=2, seconds="1000", min_workers="1")
    pool.run(2)
    pool.service.publish_endpoint(pool.caller("ops"), "trips", "trips", "/trips", "busy")


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_nothing_that_is_sent_is_a_failure_of_the_front_door(
    tmp_path: Path, database: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("postgresql").database(tmp_path) if database == "postgresql" else None
    with world(tmp_path, url=url) as pool:
        running(pool)
        settings = Settings(home=tmp_path, requests_per_s=0, max_lease_wait_s=0.01)
        headers = {"Authorization": f"Bearer {(pool.tokens / 'admin.token').read_text().strip()}"}
        failed, taken = [], 0
        async with TestClient(TestServer(create_app(pool.service, None, settings))) as client:

            async def ask(method: str, path: str | URL, what: str, text: str = "", **more: str) -> None:
                nonlocal taken
                kind = {"Content-Type": "application/json"} if text else {}
                answer = await client.request(method, path, data=text or None, headers=headers | kind | more)
                said = await answer.text()
                taken += answer.status < 400
                if answer.status >= 500 or (answer.status >= 400 and "code" not in json.loads(said)):
                    failed.append(f"{method} {path}: {what}: {answer.status} {said[:200]}")

            for (method, path), body in BODIES.items():
                at = path.format(job_id="busy", name="trips", node="node-1")
                asked = body if path != "/api/jobs/" else body | {"metadata": {"team": "ops"}}
                for what, text in with_values(asked, NUMBERS, TEXTS):
                    await ask(method, at, what, text)
            submit = {"entrypoint": "python x.py", "metadata": {"team": "ops"}}
            for number in (str(2**63 - 1), HUGE, "1e308", "-1"):
                for key in KEYS:
                    with_key = submit | {"metadata": {"team": "ops", key: number}}
                    await ask("POST", "/api/jobs/", f"{key} = {number[:30]}", json.dumps(with_key))
                await ask(
                    "POST",
                    "/api/jobs/",
                    f"header {number[:30]}",
                    json.dumps(submit),
                    **{"Moorage-Workers": number},
                )
                file = {"file": f"teams: {{ops: {{quota: {number}}}}}", "dry_run": True}
                await ask("PUT", "/moorage/v1/quotas", f"file: {number[:30]}", json.dumps(file))
                for route in ROUTES:
                    if route.method == "GET" and "raydash" not in route.handler.__module__:
                        at = route.path.format(job_id="busy")
                        for key in route.query:
                            await ask("GET", f"{at}?{key}={number}", f"{key} = {number[:30]}")
            for route in client.app.router.routes():  # type: ignore[union-attr]
                path = route.resource.canonical if route.resource else ""
                if "{" in path and route.method != "HEAD":
                    for text in ("a%00b", "%ED%A0%80", "%FF", "x" * 3000):
                        method = "GET" if route.method == "*" else route.method
                        at = URL(re.sub(r"\{[^}]*\}", text, path), encoded=True)
                        await ask(method, at, text[:30], json.dumps(BODIES.get((method, path), {})))
        assert not failed, "\n".join(failed[:40])
        assert taken > 20, "the bodies are refused for something else"
        pool.run(2)
