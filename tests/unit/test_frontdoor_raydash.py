"""Ray's dashboard behind the front door: who sees it, what of it, and what never passes (L2, G1, G3)."""

from __future__ import annotations

import json
from http.cookies import SimpleCookie
from pathlib import Path

import pytest
from frontdoor_world import RAY_TOKEN, World, world
from yarl import URL

from moorage.runtime.control import api
from moorage.runtime.frontdoor import raydash
from moorage.runtime.frontdoor.context import CONTEXT


async def opened(door: World, who: str = "admin") -> tuple[str, dict[str, str]]:
    """A view's path, and the header that a browser sends there."""
    answer = await door.client.post("/moorage/v1/ray-dashboard", headers=door.as_(who))
    assert answer.status == 201, await answer.text()
    cookie = SimpleCookie(answer.headers["Set-Cookie"])[raydash.COOKIE]
    path = (await answer.json())["path"]
    assert cookie["path"] == path and cookie["httponly"] and cookie["samesite"] == "Strict"
    assert f"{who}-token" not in cookie.value and RAY_TOKEN not in cookie.value
    door.client.session.cookie_jar.clear()
    return path, {"Cookie": f"{raydash.COOKIE}={cookie.value}"}


@pytest.mark.parametrize(
    ("tail", "asked"),
    [
        ("", "/"),
        ("static/js/main.84605326.js", "/static/js/main.84605326.js"),
        ("nodes?view=summary", "/nodes?view=summary"),
        ("api/v0/tasks?detail=1&limit=10", "/api/v0/tasks?detail=1&limit=10"),
        ("logical/actors/ab12", "/logical/actors/ab12"),
        ("api/serve/applications/", "/api/serve/applications/"),
    ],
)
async def test_what_the_dashboard_reads_passes(tmp_path: Path, tail: str, asked: str) -> None:
    """With Ray's token, which the browser never sees."""
    async with world(tmp_path) as door:
        path, cookie = await opened(door)
        answer = await door.client.get(path + tail, headers=cookie)
        assert answer.status == 200 and door.dashboard.asked == [f"GET {asked}"]
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert RAY_TOKEN not in str(answer.headers) and RAY_TOKEN not in await answer.text()


@pytest.mark.parametrize(
    "tail",
    [
        "api/jobs/x/logs",
        "api/jobs/x/logs/tail",
        "api/v0/logs",
        "api/v0/logs/file?node_id=a&filename=gcs.out",
        "logs/",
        "worker/traceback?pid=1",
        "worker/cpu_profile?pid=1",
        "task/cpu_profile",
        "memory_profile",
        "test/dump",
        "api/packages/gcs/x.zip",
        "api/v0/delay/5",
        "static/../api/v0/logs",
        "static/js/..%2f..%2fapi%2fv0%2flogs",
        "nodes/%2e%2e",
        "nodes/..",
        "api/authenticate",
        "api/jobs/x%2flogs",
    ],
)
async def test_what_reaches_further_does_not(tmp_path: Path, tail: str) -> None:
    async with world(tmp_path) as door:
        path, cookie = await opened(door)
        answer = await door.client.session.get(URL(door.url + path + tail, encoded=True), headers=cookie)
        assert answer.status in (401, 404) and door.dashboard.asked == [], await answer.text()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_nothing_but_reading(tmp_path: Path, method: str) -> None:
    async with world(tmp_path) as door:
        path, cookie = await opened(door)
        answer = await door.client.request(method, f"{path}api/jobs/", headers=cookie, data=b"{}")
        assert answer.status == 405 and door.dashboard.asked == []


@pytest.mark.parametrize(
    ("setting", "who", "status"),
    [
        ("admin", "admin", 201),
        ("admin", "ops", 403),
        ("everyone", "ops", 201),
        ("everyone", "job", 403),
        ("off", "admin", 403),
    ],
)
async def test_who_may_look(
    tmp_path: Path, setting: str, who: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import frontdoor_world

    own = api.Caller(principal="job:x-1", kind="job", team="ops", teams=frozenset({"ops"}), job_id="x")
    monkeypatch.setitem(frontdoor_world.CALLERS, "job-token", own)
    async with world(tmp_path, ray_dashboard=setting) as door:
        answer = await door.client.post("/moorage/v1/ray-dashboard", headers=door.as_(who))
        assert answer.status == status
        said = await (await door.client.get("/moorage/v1/whoami", headers=door.as_(who))).json()
        assert said["ray_dashboard"] == (status == 201)


async def test_a_view_is_its_path_and_its_cookie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither alone; not another view's; not after its time; not with a token that was revoked since."""
    import frontdoor_world

    async with world(tmp_path, endpoint_cache_s=0) as door:
        path, cookie = await opened(door)
        other, _ = await opened(door)
        for wrong, headers in (
            (path, {}),
            (other, cookie),
            ("/ray/nothing/", cookie),
            (path, door.as_("admin")),
        ):
            answer = await door.client.get(wrong, headers=headers)
            assert answer.status == 401, wrong
        assert (await door.client.get(path, headers=cookie)).status == 200
        foreign = await door.client.get(path, headers=cookie | {"Host": "evil.example"})
        assert foreign.status == 403
        elsewhere = await door.client.get("/moorage/v1/status", headers=cookie)
        assert elsewhere.status == 401, "the cookie is good for the view only"
        monkeypatch.delitem(frontdoor_world.CALLERS, "admin-token")
        assert (await door.client.get(path, headers=cookie)).status == 401
        monkeypatch.undo()
        assert door.client.app is not None
        ours = door.client.app[CONTEXT]
        ours.views = {name: raydash.View(one.secret, one.token, 0.0) for name, one in ours.views.items()}
        assert (await door.client.get(path, headers=cookie)).status == 401


async def test_variables_of_jobs_do_not_pass(tmp_path: Path) -> None:
    """G3: the dashboard lists runtime environments, with each job's token and whatever its owner put there."""
    token = "mrj_" + "ab" * 32
    secrets = {"MOORAGE_TOKEN": token, "AWS_SECRET": "hush"}
    jobs = [
        {"runtime_env": {"env_vars": secrets, "working_dir": "gcs://x.zip"}, "entrypoint": f"echo {token}"},
        {"runtimeEnvJson": json.dumps({"envVars": secrets}), "driverInfo": None},
        {"runtime_env": "{not json " + token},
        {"workers": [{"cmdline": ["setup_worker.py", f"--context={json.dumps({'env_vars': secrets})}"]}]},
    ]
    async with world(tmp_path) as door:
        door.dashboard.pages["/api/jobs/"] = (json.dumps(jobs), "application/json")
        path, cookie = await opened(door)
        text = await (await door.client.get(f"{path}api/jobs/", headers=cookie)).text()
        assert "hush" not in text and token not in text
        assert "AWS_SECRET" in text and "gcs://x.zip" in text and "setup_worker.py" in text


async def test_no_more_views_than_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raydash, "MOST_VIEWS", 2)
    async with world(tmp_path) as door:
        views = [await opened(door) for _ in range(3)]
        statuses = [(await door.client.get(path, headers=cookie)).status for path, cookie in views]
        assert statuses == [401, 200, 200], "the oldest went"
