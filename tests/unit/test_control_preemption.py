"""S2 S3: a live pool takes room back: notice, grace, release, requeue, and the room goes to whom it was freed for."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from control_world import World, world
from waiting import until

from moorage.configs.pool import PoolSettings, parse_pool
from moorage.errors import InvalidRequest
from moorage.runtime.control.api import GrowAsk
from moorage.runtime.control.outcome import judge
from moorage.runtime.control.simbackend import SimNode

TWO = "teams: {a: {quota: 2}, b: {quota: 2}}"
ONE_NODE = (SimNode(name="n0"),)


@contextmanager
def pool(tmp_path: Path, *, teams: str = TWO, nodes: Any = ONE_NODE, **preemption: Any) -> Iterator[World]:
    """Four devices, `a` and `b` own two each. Jobs may be told to leave at once unless the test says otherwise."""
    settings = PoolSettings.model_validate(
        {"preemption": {"least_run_s": 0, "grace_s": 60, **preemption}, "infra_attempts": 1}
    )
    with world(tmp_path, teams=teams, nodes=nodes, settings=settings) as w:
        yield w


def kinds(w: World, job: str, prefix: str = "preemption.") -> list[str]:
    found = w.service.events(w.caller("admin"), limit=1000, job_id=job)
    return [one["kind"].removeprefix(prefix) for one in found if one["kind"].startswith(prefix)]


def borrow(w: World, count: int = 2, workers: int = 2, **more: str) -> list[str]:
    """Team a takes all four devices, two of them borrowed."""
    jobs = []
    for _ in range(count):
        jobs.append(w.submit("a", workers=workers, seconds="5000", preemptible="true", **more))
        w.run(2)
    assert w.states(*jobs) == ["RUNNING"] * count and w.held("a") == 1000 * count * workers
    return jobs


def test_lent_quota_comes_back_by_notice_and_the_job_is_queued_again(tmp_path: Path) -> None:
    with pool(tmp_path) as w:
        first, second = borrow(w)
        own = w.submit("b", workers=2, seconds="20")
        w.run(2)
        assert w.states(first, second, own) == ["RUNNING", "PREEMPTING", "PENDING"], "who ran least leaves"
        reason = w.job(own).reason
        assert reason is not None and reason["code"] == "leaving" and reason["holders"] == [second]
        notice = w.service.notice(w.caller("a"), second)
        assert notice is not None and notice["for_job"] == own and notice["rule"] == "reclaim"
        assert 55 < notice["left_s"] <= 60 and w.service.notice(w.caller("a"), first) is None
        assert own in w.job(second).message and "takes back quota" in w.job(second).message
        assert w.service.answer_notice(w.caller("a"), second, "checkpointed", 7)
        w.backend.leave(f"{second}-1")
        w.run(2)
        assert w.states(first, second, own) == ["RUNNING", "PENDING", "RUNNING"]
        assert [one["state"] for one in w.service.attempts(second)] == ["PREEMPTED"]
        assert kinds(w, second) == ["notice", "checkpointed"] and kinds(w, own) == ["promised"]
        w.run(25)
        assert w.states(own, second) == ["SUCCEEDED", "RUNNING"], "one attempt lost would be quarantine here"
        assert w.backend.launches == [f"{first}-1", f"{second}-1", f"{own}-1", f"{second}-2"]


def test_only_who_said_preemptible_is_told_and_only_where_the_pool_says_so(tmp_path: Path) -> None:
    with pool(tmp_path / "1") as w:
        stays = [w.submit("a", workers=2, seconds="5000") for _ in range(2)]
        w.run(2)
        own = w.submit("b", workers=2)
        w.run(20)
        assert w.states(*stays, own) == ["RUNNING", "RUNNING", "PENDING"]
    with pool(tmp_path / "2", enabled=False) as w:
        stays = borrow(w)
        own = w.submit("b", workers=2)
        w.run(20)
        assert w.states(*stays, own) == ["RUNNING", "RUNNING", "PENDING"]


def test_who_ignores_the_notice_is_stopped_when_the_grace_is_over_not_before(tmp_path: Path) -> None:
    with pool(tmp_path, grace_s=30) as w:
        first, second = borrow(w)
        own = w.submit("b", workers=2, seconds="2000")
        w.run(29)
        assert w.states(first, second, own) == ["RUNNING", "PREEMPTING", "PENDING"]
        w.run(5)
        assert w.states(first, second, own) == ["RUNNING", "PENDING", "RUNNING"]
        assert w.backend.jobs[f"{second}-1"].status == "STOPPED"
        assert w.backend.jobs[f"{first}-1"].status == "RUNNING"
        assert kinds(w, second) == ["notice", "grace-over"]
        assert "grace was over" in w.service.attempts(second)[0]["message"]


def test_nobody_else_is_told_for_the_same_need_and_nobody_else_takes_the_room(tmp_path: Path) -> None:
    """Not even a job of the owner's own team with a higher priority: the promise stands."""
    with pool(tmp_path) as w:
        jobs = borrow(w, count=4, workers=1)
        own = w.submit("b", workers=1, seconds="2000")
        w.run(20)
        told = [job for job in jobs if w.job(job).state == "PREEMPTING"]
        assert len(told) == 1
        rival = w.submit("b", workers=2, priority="900", seconds="2000")
        w.run(10)
        assert w.states(own, rival) == ["PENDING", "PENDING"]
        assert [j for j in jobs if w.job(j).state == "PREEMPTING"] == told, (
            "the rival is not within the quota left"
        )
        w.backend.leave(f"{told[0]}-1")
        w.run(2)
        assert w.states(own, rival) == ["RUNNING", "PENDING"]


def test_a_gang_waits_for_all_its_victims_and_what_is_free_already_is_kept_for_it(tmp_path: Path) -> None:
    with pool(tmp_path, teams="teams: {a: {quota: 1}, b: {quota: 3}, c: {}}") as w:
        jobs = borrow(w, count=3, workers=1)
        own = w.submit("b", workers=3, seconds="2000")  # one device is free, two must be given up
        w.run(3)
        told = [job for job in jobs if w.job(job).state == "PREEMPTING"]
        assert len(told) == 2 and w.states(own) == ["PENDING"]
        small = w.submit("c", workers=1, seconds="2000")
        w.backend.leave(f"{told[0]}-1")
        w.run(10)
        assert w.states(own, small, told[1]) == ["PENDING", "PENDING", "PREEMPTING"]
        w.backend.leave(f"{told[1]}-1")
        w.run(3)
        assert w.states(own, small) == ["RUNNING", "PENDING"]
        assert sum(w.job(job).state == "RUNNING" for job in jobs) == 1


def test_a_higher_priority_takes_the_place_of_a_lower_one_after_its_least_run_time(tmp_path: Path) -> None:
    with pool(tmp_path, teams="teams: {a: {}}", least_run_s=30) as w:
        first, second = borrow(w)
        urgent = w.submit("a", workers=2, priority="900", seconds="2000")
        w.run(20)
        assert w.states(first, second, urgent) == ["RUNNING", "RUNNING", "PENDING"]
        w.run(15)
        assert w.states(first, second, urgent) == ["PREEMPTING", "RUNNING", "PENDING"], "who was due first"
        notice = w.service.notice(w.caller("a"), first)
        assert notice is not None and notice["rule"] == "priority"


@pytest.mark.parametrize("how", ["leaves", "is killed"])
def test_a_restart_forgets_no_notice_and_no_promise_and_gives_the_grace_again(
    tmp_path: Path, how: str
) -> None:
    with pool(tmp_path, grace_s=30) as w:
        first, second = borrow(w)
        own = w.submit("b", workers=2, seconds="2000")
        w.run(25)
        w.clock.tick(3600)  # the clock is set forward while the control plane is away
        w.restart()
        w.run(20)
        assert w.states(first, second, own) == ["RUNNING", "PREEMPTING", "PENDING"]
        assert kinds(w, second) == ["notice"] and kinds(w, own) == ["promised"]
        if how == "leaves":
            w.backend.leave(f"{second}-1")
        w.run(12)
        assert w.states(first, second, own) == ["RUNNING", "PENDING", "RUNNING"]
        w.restart()
        assert w.states(first, second, own) == ["RUNNING", "PENDING", "RUNNING"]


def test_a_job_that_ends_well_in_its_grace_has_succeeded(tmp_path: Path) -> None:
    with pool(tmp_path) as w:
        first, second = borrow(w)
        own = w.submit("b", workers=2, seconds="2000")
        w.run(2)
        w.backend.leave(f"{second}-1", exit_code=0)
        w.run(2)
        assert w.states(first, second, own) == ["RUNNING", "SUCCEEDED", "RUNNING"]


def test_its_user_may_stop_a_job_in_its_grace_and_who_it_was_for_may_go_away(tmp_path: Path) -> None:
    with pool(tmp_path) as w:
        first, second = borrow(w)
        own = w.submit("b", workers=2, seconds="2000")
        w.run(2)
        w.service.stop(w.caller("a"), second)
        w.run(2)
        assert w.states(second, own) == ["STOPPED", "RUNNING"]
    with pool(tmp_path / "2") as w:
        first, second = borrow(w)
        own = w.submit("b", workers=2, seconds="2000")
        w.run(2)
        w.service.stop(w.caller("b"), own)
        other = w.submit("b", workers=2, seconds="2000")
        w.run(20)
        assert w.states(first, second, own, other) == ["RUNNING", "PREEMPTING", "STOPPED", "PENDING"]
        w.backend.leave(f"{second}-1")
        w.run(2)
        assert w.states(first, second, other) == ["RUNNING", "PENDING", "RUNNING"], "no second victim"


def test_a_promise_whose_node_is_lost_is_dropped_and_the_job_is_planned_anew(tmp_path: Path) -> None:
    with pool(tmp_path, nodes=(SimNode(name="n0", devices=2), SimNode(name="n1", devices=2))) as w:
        jobs = borrow(w)
        own = w.submit("b", workers=2, seconds="2000")
        w.run(2)
        (told,) = [job for job in jobs if w.job(job).state == "PREEMPTING"]
        lease = w.job(told).lease
        assert lease is not None
        w.backend.down.add(lease["workers"][0]["node"])
        w.run(3)
        assert "dropped" in kinds(w, own)
        (other,) = [job for job in jobs if job != told]
        assert w.states(other) == ["RUNNING"], "nobody else is told while that one has not left"
        w.backend.kill(f"{told}-1")
        w.run(3)
        assert w.states(told, other, own) == ["PENDING", "RUNNING", "PENDING"], (
            "of what is left a borrows nothing"
        )
        w.backend.down.clear()
        w.run(3)
        assert w.states(told, other, own) == ["PENDING", "RUNNING", "RUNNING"]


def test_an_ask_of_a_running_job_for_more_room_takes_lent_quota_back_too(tmp_path: Path) -> None:
    with pool(tmp_path, teams="teams: {ops: {quota: 2}, a: {quota: 2}}") as w, ThreadPoolExecutor(1) as aside:
        own = w.submit("ops", workers=1, seconds="5000")
        w.run(2)
        jobs = borrow(w, count=3, workers=1)
        ask = GrowAsk(job_id=own, milli_gpu=1000, timeout_s=30)
        asked = aside.submit(w.service.grow, w.caller("ops"), ask)
        until(lambda: w.run(0.5) or "PREEMPTING" in w.states(*jobs), 20, "somebody to be told")
        (told,) = [job for job in jobs if w.job(job).state == "PREEMPTING"]
        w.backend.leave(f"{told}-1")
        until(lambda: w.run(0.5) or asked.done(), 20, "the room")
        assert asked.result()["job_id"] == own and w.held("ops") == 2000
        assert w.states(told) == ["PENDING"]


@pytest.mark.parametrize(
    ("status", "code", "kind", "says"),
    [
        ("FAILED", 75, "released", "progress saved"),
        ("STOPPED", None, "released", "grace was over"),
        ("FAILED", 1, "released", "exit code 1"),
        ("SUCCEEDED", 0, "succeeded", ""),
    ],
)
def test_what_the_end_of_a_preempted_attempt_means(
    status: str, code: int | None, kind: str, says: str
) -> None:
    found = judge(status, "", code, "preempt")
    assert found.kind == kind and says in found.message
    assert judge("FAILED", "entrypoint command failed", 75, "").kind == "failed", "nobody asked it to leave"


def test_the_pool_file_says_how_long_a_grace_is() -> None:
    found = parse_pool("preemption: {grace_s: 5, enabled: false}").preemption
    assert (found.grace_s, found.enabled, found.least_run_s) == (5, False, 300)
    with pytest.raises(InvalidRequest, match="grace"):
        parse_pool("preemption: {grace: 5}")
