"""S9: a job reads its lease as it is now, over the front door's own wire, and gives back what it is asked for."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from frontdoor_world import world
from waiting import until

import moorage
from moorage.cluster import binding, following
from moorage.cluster.binding import LeaseView, Place, WorkerView
from moorage.runtime import answers

WORKERS = tuple(
    WorkerView(node="n0", ray_node_id="r0", devices=(d,), milli_gpu=1000, gpu_mib=0, milli_cpu=1000)
    for d in range(4)
)
LEASE = LeaseView(lease_id="l-1", epoch=1, head=Place(node="n0", ray_node_id="r0"), workers=WORKERS[:3])
ASK = answers.Asked(
    workers=2, for_job="own", rule="reclaim", text="team b takes back", deadline_ns=5, left_s=42.0
)


def held(version: str, lease: LeaseView, **more: Any) -> answers.HeldLease:
    values: dict[str, Any] = {
        "workers": len(lease.workers),
        "min_workers": 1,
        "max_workers": 4,
        "follows": True,
        "asked": None,
    }
    return cast(answers.HeldLease, {"version": version, "lease": asdict(lease), **values, **more})


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_feed", None)
    for name in ("URL", "TOKEN", "JOB_ID", "ELASTIC", "LEASE"):
        monkeypatch.delenv(f"MOORAGE_{name}", raising=False)


async def test_who_waits_hears_another_version_when_there_is_one_and_not_before(tmp_path: Path) -> None:
    async with world(tmp_path) as door:
        job = await door.submit()
        path, ops = f"/moorage/v1/jobs/{job}/lease", door.as_("ops")
        assert await (await door.client.get(path, headers=ops)).json() == {"now": None}
        door.control.leases_now[job] = held("1.0", LEASE)
        first = await (await door.client.get(f"{path}?after=&wait_s=30", headers=ops)).json()
        assert first["now"]["version"] == "1.0" and len(first["now"]["lease"]["workers"]) == 3
        waiting = asyncio.create_task(door.client.get(f"{path}?after=1.0&wait_s=30", headers=ops))
        await asyncio.sleep(0.05)
        door.control.changes[job] = 1  # something changed, but not this
        await asyncio.sleep(0.4)
        assert not waiting.done()
        door.control.leases_now[job] = held("1.9", LEASE, workers=2, asked=ASK)
        door.control.changes[job] = 2
        async with asyncio.timeout(10):
            said = (await (await waiting).json())["now"]
        assert (said["workers"], said["asked"]["for_job"], said["asked"]["left_s"]) == (2, "own", 42)
        assert (await door.client.get(path, headers=door.as_("research"))).status == 404
        for bad in ({"workers": -1}, {"workers": 1.5}, {"holds": 1}):
            assert (await door.client.post(path, headers=ops, json=bad)).status == 400
        answer = await door.client.post(path, headers=ops, json={"workers": 2})
        assert await answer.json() == {"resized": True}
        assert door.control.said == [(job, {"follows": False, "workers": 2, "wants": None})]


class Door:
    """What the front door answers, and what it was told."""

    def __init__(self, first: answers.HeldLease) -> None:
        self.now, self.changed = first, threading.Condition()
        self.told: list[dict[str, Any]] = []
        self.fails = 0

    def becomes(self, now: answers.HeldLease) -> None:
        with self.changed:
            self.now = now
            self.changed.notify_all()

    def __call__(self, method: str, body: dict[str, Any] | None, query: dict[str, str]) -> Any:
        if self.fails:
            self.fails -= 1
            raise httpx.ConnectError("away")
        if method == "POST":
            self.told.append(body or {})
            return {"resized": True}
        with self.changed:
            self.changed.wait_for(lambda: self.now["version"] != query["after"], timeout=5)
            return {"now": self.now}


def test_outside_of_a_pool_there_is_nothing_to_follow() -> None:
    assert moorage.follow(lambda lease: None) is None and moorage.context() is None


def test_a_follower_is_called_for_each_change_and_says_what_it_gave_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    door = Door(held("1.0", LEASE, follows=False))
    monkeypatch.setattr(following, "_asks", lambda: door)
    monkeypatch.setenv("MOORAGE_LEASE", binding.encode(LEASE))
    monkeypatch.setenv("MOORAGE_ELASTIC", "1,4")
    calls: list[int] = []

    def resize(lease: LeaseView) -> None:
        calls.append(len(lease.workers))
        if calls == [2]:
            raise RuntimeError("not yet")

    feed = moorage.follow(resize)
    assert feed is not None
    until(lambda: feed.now is not None, 60, "the first answer")
    assert calls == [] and door.told[0] == {"follows": True}, "it runs on what it was started with"
    assert moorage.context() == LEASE
    door.fails = 1
    door.becomes(held("1.9", LEASE, workers=2, asked=ASK))
    until(lambda: {"workers": 2} in door.told, 60, "the answer to the ask")
    assert calls == [2, 2], "tried again, and said only then"
    now = feed.now
    assert now is not None and now.asked is not None and 0 < now.asked.left_s <= 42
    context = moorage.context()
    assert context is not None and context.workers == WORKERS[:2], "what is wanted back is not to be used"
    door.becomes(held("2.0", replace(LEASE, epoch=2, workers=WORKERS[:2])))
    until(lambda: feed.now is not None and feed.now.version == "2.0", 60, "the smaller lease")
    door.becomes(held("3.0", replace(LEASE, epoch=3, workers=WORKERS)))
    until(lambda: calls == [2, 2, 4], 60, "the larger lease")
    assert door.told.count({"workers": 2}) == 1 and {"workers": 4} not in door.told
    feed.stop()


def test_a_front_door_that_does_not_answer_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each task with a GPU asks for the lease."""
    door = Door(held("1.0", LEASE))
    door.fails = 10**6
    monkeypatch.setattr(following, "_asks", lambda: door)
    monkeypatch.setattr(following, "_FIRST_S", 0.3)
    monkeypatch.setenv("MOORAGE_LEASE", binding.encode(LEASE))
    monkeypatch.setenv("MOORAGE_ELASTIC", "1,4")
    began = time.monotonic()
    assert [moorage.context() for _ in range(200)] == [LEASE] * 200
    assert 0.2 < time.monotonic() - began < 30, "not 0.3 s each"
    feed = following.feed()
    assert feed is not None
    feed.stop()


def test_an_answer_that_is_none_does_not_fail_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(method: str, body: dict[str, Any] | None, query: dict[str, str]) -> Any:
        raise json.JSONDecodeError("no JSON", "<html>", 0)

    feed = following.Feed(ask)
    feed.follow()
    assert feed.follows and not feed.say(workers=1)
    feed.stop()


def test_processes_that_import_ray_load_no_http_client() -> None:
    """Each of a job's workers is bound at its start, and few of them ever ask the front door."""
    said = "import sys; from moorage.cluster import autobind; assert 'httpx' not in sys.modules"
    subprocess.run([sys.executable, "-c", said], check=True)


def test_a_job_of_one_size_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOORAGE_LEASE", binding.encode(LEASE))
    monkeypatch.setattr(following, "_asks", lambda: pytest.fail("it asked"))
    assert moorage.context() == LEASE
