"""The Python client beside the routes: each has a method, and answers what its type says (S9, L6)."""

from __future__ import annotations

import inspect
import re
import typing
from pathlib import Path
from typing import Any

import httpx
import pytest
import typing_extensions
from door_world import door
from pydantic import TypeAdapter

from moorage.configs.pool import PoolSettings, PreemptionSettings
from moorage.errors import Unavailable
from moorage.runtime import answers
from moorage.runtime.client import Client
from moorage.runtime.control.simbackend import SimNode
from moorage.runtime.frontdoor.openapi import Route, document
from moorage.runtime.frontdoor.ownapi import ROUTES

DOCS = Path(__file__).resolve().parents[2] / "docs" / "client.md"
TYPES = {name: kind for name, kind in vars(answers).items() if typing_extensions.is_typeddict(kind)}
CALLS: dict[str, tuple[Any, ...]] = {
    "whoami": (),
    "status": (),
    "jobs": (),
    "job": ("j",),
    "why": ("j",),
    "events": (),
    "quotas": (),
    "put_quotas": ("teams: {}",),
    "drain": ("n",),
    "undrain": ("n",),
    "usage": (),
    "cost": (),
    "guard": (),
    "ray_dashboard": (),
    "openapi": (),
    "notice": ("j",),
    "lease_now": ("j",),
    "follow_lease": ("j",),
    "answer_notice": ("j", "leaving"),
    "publish_endpoint": ("e", "app", "/r"),
    "report_replicas": ("e", {}),
    "endpoints": (),
    "grow": (),
    "withdraw": ("j", "n"),
    "release": ("l",),
}
LISTS = {"jobs", "events", "endpoints"}
PLAINER = {
    "notice": "notice",
    "lease_now": "now",
    "follow_lease": "resized",
    "answer_notice": "recorded",
    "withdraw": "released",
    "release": "released",
}
"""Methods that return one field of what is answered."""
LENT = "teams: {a: {quota: 4}, b: {quota: 0}}"
SOON = PoolSettings(preemption=PreemptionSettings(grace_s=5, least_run_s=0))


def reached(method: str) -> tuple[str, str]:
    """(HTTP method, path) that a method of the client asks."""
    asked: list[httpx.Request] = []
    lease = {"lease_id": "l", "epoch": 1, "head": None, "workers": []}

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        filled = {
            "notice": None,
            "now": None,
            "recorded": True,
            "resized": True,
            "released": True,
            "lease": lease,
        }
        return httpx.Response(200, json=[] if method in LISTS else filled)

    with Client("http://pool", "token") as client:
        client._http = httpx.Client(base_url="http://pool", transport=httpx.MockTransport(answer))
        getattr(client, method)(*CALLS[method])
    return asked[0].method, asked[0].url.path


def route(method: str) -> Route:
    """The route that a method of the client asks."""
    verb, path = reached(method)
    for one in ROUTES:
        if one.method == verb and re.fullmatch(re.sub(r"{\w+}", r"[^/]+", one.path), path):
            return one
    raise AssertionError(f"{method} asks {verb} {path}, which is no route")


def test_every_route_has_a_method() -> None:
    found = {(one.method, one.path) for one in map(route, CALLS)}
    found.add(("GET", "/moorage/v1/jobs/{job_id}/events"))  # events(job_id)
    assert found == {(one.method, one.path) for one in ROUTES}


@pytest.mark.parametrize("method", sorted(CALLS.keys() - {"grow"}))
def test_a_method_says_what_its_route_answers(method: str) -> None:
    """`grow` alone returns another shape than that of the wire."""
    says, answer = typing.get_type_hints(getattr(Client, method))["return"], route(method).answer
    assert says == (typing.get_type_hints(answer)[PLAINER[method]] if method in PLAINER else answer)


def test_every_type_is_described() -> None:
    schemas = document(ROUTES)["components"]["schemas"]
    described = {name.removesuffix("-Output"): one for name, one in schemas.items()}
    for name, kind in TYPES.items():
        assert described[name]["description"] == inspect.getdoc(kind)
        assert set(described[name]["required"]) == set(typing.get_type_hints(kind))


def test_a_pool_answers_what_the_types_say(tmp_path: Path) -> None:
    """Nothing checks an answer as it is sent: here each is, with no field more and none of another kind."""
    seen: set[tuple[str, str]] = set()
    with (
        door(tmp_path, teams=LENT, nodes=(SimNode(name="n0"),), settings=SOON) as pool,
        pool.client() as client,
    ):

        def ask(verb: str, path: str, **body: Any) -> Any:
            found = client.request(verb, path.format(job_id="j", name="e", node="n0"), body=body or None)
            answer = next(one.answer for one in ROUTES if (one.method, one.path) == (verb, path))
            TypeAdapter(answer).validate_python(found, strict=True, extra="forbid")
            seen.add((verb, path))
            return found

        job = "/moorage/v1/jobs/{job_id}"
        pool.pool.submit("b", job="j", workers=4, min_workers="1", preemptible="true", seconds="900")
        pool.pool.run(2)
        assert ask("POST", f"{job}/lease", follows=True) == {"resized": False}
        lease = ask("GET", f"{job}/lease")["now"]["lease"]["lease_id"]
        ask("POST", "/moorage/v1/endpoints", name="e", app="e", route="/e", job_id="j")
        replica = {"app": "e", "route": "/e", "lease_id": lease, "node": "n0", "devices": [0]}
        said = {"min_replicas": 1, "max_replicas": 2, "wanted": 1, "load": {"ongoing": 1.5}}
        said["replicas"] = [replica | {"state": "SERVING"}]
        found = ask("PUT", "/moorage/v1/endpoints/{name}/replicas", **said)
        assert found["scaling"]["replicas"] == said["replicas"] and found["scaling"]["load"] == said["load"]
        pool.pool.submit("a", job="own", workers=2, seconds="900")
        pool.pool.run(2)
        assert ask("GET", f"{job}/lease")["now"]["asked"]["for_job"] == "own"
        pool.pool.submit("a", job="late", workers=4)
        pool.pool.run(1)
        late = TypeAdapter(answers.Why).validate_python(client.why("late"), strict=True, extra="forbid")
        assert late["explanation"] is not None and late["explanation"]["suggestions"]
        pool.pool.run(6)
        assert ask("GET", f"{job}/notice")["notice"]["for_job"] == "own"
        assert ask("POST", f"{job}/notice", said="checkpointed") == {"recorded": True}
        for path in ("", "/why", "/events"):
            assert ask("GET", job + path)
        for path in (
            "jobs",
            "events",
            "status",
            "cost",
            "usage",
            "guard",
            "quotas",
            "endpoints",
            "openapi.json",
        ):
            assert ask("GET", f"/moorage/v1/{path}")
        assert ask("GET", "/moorage/v1/whoami")["kind"] == "admin"
        assert ask("DELETE", f"{job}/asks/{{name}}") == {"released": False}
        assert ask("PUT", "/moorage/v1/quotas", file=LENT.replace("4", "3"), dry_run=True)["changes"]
        assert ask("POST", "/moorage/v1/nodes/{node}/drain", why="a test")["jobs"] == ["j"]
        assert ask("DELETE", "/moorage/v1/nodes/{node}/drain")["changed"]
        assert ask("POST", "/moorage/v1/ray-dashboard")["path"].startswith("/ray/")
    grown = {("POST", "/moorage/v1/leases"), ("DELETE", "/moorage/v1/leases/{lease_id}")}
    assert {(one.method, one.path) for one in ROUTES} - seen == grown, "theirs are in test_frontdoor_ownapi"


def test_the_examples_of_the_guide_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    with door(tmp_path) as pool:
        pool.pool.submit("ops", job="holder", gpus=1, workers=4, seconds="900")
        pool.pool.run(1)
        monkeypatch.setenv("MOORAGE_URL", pool.url)
        monkeypatch.setenv("MOORAGE_TOKEN", pool.token("ops"))
        names: dict[str, Any] = {}
        for number, block in enumerate(blocks):
            exec(compile(block, f"client.md[{number}]", "exec"), names)
            if number == 1:
                pool.pool.run(1)
                assert names["client"].job("nightly")["state"] == "PENDING"
                exec(block, names)  # the same key: the same job; now it was planned
        names["client"].close()
    said = capsys.readouterr().out
    assert "ops ['ops']" in said and "would start it now:" in said and "job-not-found" in said, said


def test_who_asks_too_often_is_told_when_to_come_back() -> None:
    problem = {"title": "too often", "code": "rate-limited", "retry_after_s": 3}
    with Client("http://pool", "token") as client:
        transport = httpx.MockTransport(lambda request: httpx.Response(429, json=problem))
        client._http = httpx.Client(base_url="http://pool", transport=transport)
        with pytest.raises(Unavailable) as refused:
            client.status()
    assert (refused.value.code, refused.value.extra["retry_after_s"]) == ("rate-limited", 3)
