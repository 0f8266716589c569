"""S2: a job hears that it has to leave, from the front door's own wire, on every rank, and says what it did."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from frontdoor_world import world
from waiting import until

import moorage
from moorage.errors import NotFound, Unavailable
from moorage.runtime import answers, preemption
from moorage.runtime.client import Client

TOLD = answers.Notice(
    attempt=1,
    for_job="own",
    rule="reclaim",
    text="team b takes back quota that team a borrows",
    noticed_ns=5,
    deadline_ns=6,
    left_s=42.0,
)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "_watch", None)
    for name in ("RANK", "MOORAGE_URL", "MOORAGE_TOKEN", "MOORAGE_JOB_ID", "MOORAGE_DATA"):
        monkeypatch.delenv(name, raising=False)


def watching() -> int:
    """How many threads wait for a notice; others come and go with other tests."""
    return sum(thread.name == "moorage-notice" for thread in threading.enumerate())


async def test_who_waits_for_a_notice_hears_it_when_it_comes_and_not_before(tmp_path: Path) -> None:
    async with world(tmp_path) as door:
        job = await door.submit()
        path, ops = f"/moorage/v1/jobs/{job}/notice", door.as_("ops")
        assert await (await door.client.get(path, headers=ops)).json() == {"notice": None}
        waiting = [asyncio.create_task(door.client.get(f"{path}?wait_s=30", headers=ops)) for _ in range(40)]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in waiting)
        door.control.notices[job] = TOLD
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*waiting)
        said = [(await answer.json())["notice"] for answer in answers]
        assert all(one["for_job"] == "own" and one["left_s"] == 42 for one in said)
        assert (await door.client.get(path, headers=door.as_("research"))).status == 404
        assert (await door.client.get(f"{path}?wait_s=61", headers=ops)).status == 400
        bad = await door.client.post(path, headers=ops, json={"said": "no"})
        assert bad.status == 400


async def test_a_job_hears_it_leaves_it_for_its_other_ranks_and_says_that_it_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path) as door:
        job = await door.submit()
        for name, value in (
            ("MOORAGE_URL", door.url),
            ("MOORAGE_TOKEN", "ops-token"),
            ("MOORAGE_JOB_ID", job),
            ("MOORAGE_ATTEMPT", "1"),
            ("MOORAGE_DATA", str(tmp_path)),
        ):
            monkeypatch.setenv(name, value)

        def inside() -> None:
            before = watching()
            assert moorage.preemption() is None and moorage.preemption() is None
            assert watching() == before + 1, "one thread, however often it is asked"
            began = time.time()
            door.control.notices[job] = TOLD
            notice = until(moorage.preemption, 60, "the notice")
            assert notice.for_job == "own" and notice.rule == "reclaim"
            assert began + 41 < notice.deadline < time.time() + 43 and notice.left_s <= 42
            relay = tmp_path / "notices" / f"{job}-1.json"
            until(relay.exists, 60, "the note for the other ranks")
            monkeypatch.setattr(preemption, "_watch", None)
            monkeypatch.setenv("RANK", "3")
            until(lambda: watching() == before, 60, "the first rank's thread to end: it has its notice")
            assert moorage.preemption() == notice and watching() == before
            with pytest.raises(SystemExit) as left:
                moorage.leave(7)
            assert left.value.code == preemption.RELEASED == 75
            with Client(door.url, "ops-token") as client:
                assert client.answer_notice(job, "checkpointed", 9)

        await asyncio.to_thread(inside)
        assert door.control.answers == [(job, "leaving", 7), (job, "checkpointed", 9)]


def test_outside_of_a_pool_there_is_no_notice_and_no_thread() -> None:
    before = watching()
    assert moorage.preemption() is None and watching() == before
    with pytest.raises(SystemExit):
        moorage.leave(3)


def test_a_watcher_outlasts_a_control_plane_that_is_away_and_ends_with_its_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preemption, "_AGAIN_S", 0.01)
    answers: list[Any] = [
        None,
        Unavailable("away"),
        Unavailable("away"),
        {"text": "t", "rule": "r", "for_job": "j", "left_s": 1},
    ]

    def ask() -> dict[str, Any] | None:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    before = watching()
    watcher = preemption.Watcher("x", ask)
    until(lambda: watcher.notice, 60, "the notice")
    assert not answers

    def gone() -> dict[str, Any] | None:
        raise NotFound("no such job")

    ended = preemption.Watcher("x", gone)
    until(lambda: watching() <= before, 60, "both threads to end")
    assert ended.notice is None
