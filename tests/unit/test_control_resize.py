"""S2 S3: a lease grows and shrinks while its job runs: asked, given up, committed, freed; or all of it has to leave."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from control_world import World, world

from moorage.configs.pool import PoolSettings
from moorage.errors import Conflict, InvalidRequest, NotFound
from moorage.runtime.control.simbackend import SimNode
from moorage.scheduling.guard import Holder, Holding, Part

TWO = "teams: {a: {quota: 2}, b: {quota: 2}}"
ONE_NODE = (SimNode(name="n0"),)


@contextmanager
def pool(
    tmp_path: Path, *, teams: str = TWO, nodes: Any = ONE_NODE, settle_s: int = 0, **preemption: Any
) -> Iterator[World]:
    """Four devices, `a` and `b` own two each."""
    asked = {"least_run_s": 0, "grace_s": 60, **preemption}
    settings = PoolSettings.model_validate(
        {"preemption": asked, "elastic": {"settle_s": settle_s}, "infra_attempts": 1, "prices": {"gpus": 1}}
    )
    with world(tmp_path, teams=teams, nodes=nodes, settings=settings) as w:
        yield w


def kinds(w: World, job: str, *prefixes: str) -> list[str]:
    found = w.service.events(w.caller("admin"), limit=1000, job_id=job)
    return [one["kind"] for one in found if one["kind"].startswith(prefixes or ("resize.", "lease.re"))]


def elastic(
    w: World, least: int = 1, most: int = 4, team: str = "a", follows: bool = True, **more: str
) -> str:
    """A preemptible gang that runs, and follows its lease."""
    asked = {"seconds": "5000", "preemptible": "true", "min_workers": str(least), **more}
    job = w.submit(team, workers=most, **asked)
    w.run(2)
    assert w.states(job) == ["RUNNING"]
    if follows:
        w.service.follow_lease(w.caller(team), job, follows=True)
    return job


def workers(w: World, job: str) -> int:
    lease = w.job(job).lease
    return 0 if lease is None else len(lease["workers"])


def gives(w: World, job: str, count: int, *, says: bool = True, team: str = "a") -> bool:
    """The job holds so many workers from now on, and says so."""
    view = w.job(job)
    assert view.lease is not None
    w.backend.hold(f"{job}-{view.attempt}", view.lease, count)
    return w.service.follow_lease(w.caller(team), job, workers=count) if says else False


def now(w: World, job: str, team: str = "a") -> Any:
    found = w.service.lease_now(w.caller(team), job)
    assert found is not None
    return found


def test_lent_quota_comes_back_as_workers_and_the_job_runs_on(tmp_path: Path) -> None:
    with pool(tmp_path) as w:
        job = elastic(w)
        assert workers(w, job) == 4, "what nobody waits for is its own from the start, lent quota too"
        before = now(w, job)
        assert (before["workers"], before["min_workers"], before["max_workers"], before["asked"]) == (
            4,
            1,
            4,
            None,
        )
        own = w.submit("b", workers=2, seconds="20")
        changes = w.service.lease_changes(job)
        w.run(2)
        assert w.states(job, own) == ["RUNNING", "PENDING"] and workers(w, job) == 4
        reason = w.job(own).reason
        assert reason is not None and reason["code"] == "leaving" and reason["holders"] == [job]
        told = now(w, job)
        assert told["version"] != before["version"] and w.service.lease_changes(job) != changes
        assert told["workers"] == 2 and len(told["lease"]["workers"]) == 4
        assert (told["asked"]["for_job"], told["asked"]["rule"]) == (own, "reclaim") and 55 < told["asked"][
            "left_s"
        ] <= 60
        assert w.job(job).message.startswith(
            f"asked to keep 2 workers, for job {own}: team b takes back quota"
        )
        assert not w.service.follow_lease(w.caller("a"), job, workers=3), "that is not enough"
        assert gives(w, job, 2)
        assert workers(w, job) == 2 and w.held("a") == 2000, "committed when it was said"
        after = now(w, job)
        assert after["version"] not in (told["version"], before["version"]) and after["asked"] is None
        assert after["lease"]["epoch"] > before["lease"]["epoch"]
        w.run(2)
        assert w.states(job, own) == ["RUNNING", "RUNNING"]
        assert kinds(w, job) == ["lease.resized", "resize.follows", "resize.asked", "lease.resized"]
        assert kinds(w, own, "preemption.") == ["preemption.promised"]
        assert [one["attempt"] for one in w.service.attempts(job)] == [1]
        w.run(25)
        assert w.states(own) == ["SUCCEEDED"] and workers(w, job) == 4, "and it grows again"
        assert w.backend.launches == [f"{job}-1", f"{own}-1"]


def test_what_the_cluster_shows_is_enough_and_a_look_from_before_the_ask_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pool(tmp_path) as w:
        job = elastic(w)
        gives(w, job, 2, says=False)
        w.run(3)
        monkeypatch.setattr(w.service.loop.guard, "look", lambda: None)  # nothing new is seen
        own = w.submit("b", workers=2, seconds="2000")
        w.run(3)
        assert w.states(own) == ["PENDING"] and workers(w, job) == 4
        monkeypatch.undo()
        w.run(3)
        assert w.states(job, own) == ["RUNNING", "RUNNING"] and workers(w, job) == 2
        said = [
            one for one in w.service.events(w.caller("admin"), limit=1000) if one["kind"] == "lease.resized"
        ]
        assert said[-1]["payload"]["said"] == "cluster" and said[-1]["payload"]["for_job"] == own


def test_processes_that_are_still_on_its_devices_are_not_given_up(tmp_path: Path) -> None:
    """As of an entrypoint that starts its workers without Ray: nothing is booked for them."""
    with pool(tmp_path) as w:
        job = elastic(w)
        gives(w, job, 0, says=False)
        for device in range(4):
            w.backend.intrude(
                Holding(
                    holder=Holder.PROCESS,
                    id=f"n0:{device}",
                    parts=(Part(node="n0", device=device, milli_gpu=0),),
                    submission=f"{job}-1",
                )
            )
        own = w.submit("b", workers=2, seconds="2000")
        w.run(4)
        assert w.states(job, own) == ["RUNNING", "PENDING"] and workers(w, job) == 4
        del w.backend.rogues["n0:2"], w.backend.rogues["n0:3"]
        w.run(4)
        assert w.states(job, own) == ["RUNNING", "RUNNING"] and workers(w, job) == 2


def test_who_gives_nothing_up_in_its_grace_has_to_leave_as_a_whole(tmp_path: Path) -> None:
    with pool(tmp_path, grace_s=10) as w:
        job = elastic(w)
        own = w.submit("b", workers=2, seconds="2000")
        w.run(9)
        assert w.states(job, own) == ["RUNNING", "PENDING"]
        w.run(2)
        assert w.states(job, own) == ["PREEMPTING", "PENDING"] and now(w, job)["asked"] is None
        notice = w.service.notice(w.caller("a"), job)
        assert notice is not None and (notice["for_job"], notice["rule"]) == (own, "reclaim")
        w.run(12)
        assert w.states(job, own) == ["RUNNING", "RUNNING"] and workers(w, job) == 2
        assert w.job(job).attempt == 2
        assert kinds(w, job, "resize.", "preemption.") == [
            "resize.follows",
            "resize.asked",
            "resize.grace-over",
            "preemption.notice",
            "preemption.grace-over",
        ]


def test_who_does_not_follow_its_lease_is_told_to_leave_as_before(tmp_path: Path) -> None:
    with pool(tmp_path) as w:
        job = elastic(w, follows=False)
        own = w.submit("b", workers=2, seconds="2000")
        w.run(2)
        assert w.states(job, own) == ["PREEMPTING", "PENDING"]
    with pool(tmp_path / "2", settle_s=0) as w:
        w.service.core.settings = w.service.core.settings.model_copy(
            update={"elastic": w.service.core.settings.elastic.model_copy(update={"enabled": False})}
        )
        job = elastic(w)
        assert workers(w, job) == 2, "its quota, and nothing beyond"
        w.run(10)
        assert workers(w, job) == 2


def test_below_its_least_it_leaves_as_a_whole_at_once(tmp_path: Path) -> None:
    with pool(tmp_path, teams="teams: {a: {quota: 0}, b: {quota: 4}}") as w:
        job = elastic(w, least=2)
        own = w.submit("b", workers=3, seconds="2000")
        w.run(2)
        assert w.states(job, own) == ["PREEMPTING", "PENDING"] and "resize.asked" not in kinds(w, job)


def test_an_ask_is_withdrawn_when_nobody_needs_it_any_more(tmp_path: Path) -> None:
    with pool(tmp_path) as w:
        job = elastic(w)
        own = w.submit("b", workers=2, seconds="2000")
        w.run(2)
        assert now(w, job)["asked"] is not None
        w.service.stop(w.caller("b"), own)
        w.run(2)
        assert now(w, job)["asked"] is None and workers(w, job) == 4
        assert kinds(w, job)[-1] == "resize.withdrawn"
        w.run(70)
        assert w.states(job) == ["RUNNING"]


def test_two_needs_one_after_the_other_make_one_larger_ask(tmp_path: Path) -> None:
    with pool(tmp_path) as w:
        job = elastic(w)
        first = w.submit("b", workers=1, seconds="2000")
        w.run(2)
        assert now(w, job)["workers"] == 3
        second = w.submit("b", workers=1, seconds="2000")
        w.run(2)
        assert now(w, job)["workers"] == 2 and w.states(job) == ["RUNNING"]
        assert gives(w, job, 2)
        w.run(2)
        assert w.states(job, first, second) == ["RUNNING", "RUNNING", "RUNNING"]


def test_what_a_limit_needs_may_be_on_another_node_than_who_starts(tmp_path: Path) -> None:
    """The ask stands until it is answered, and the place is kept."""
    nodes = (SimNode(name="n0"), SimNode(name="n1", gpu_model="A100"))
    with pool(tmp_path, teams="teams: {a: {limit: 4}, b: {}}", nodes=nodes) as w:
        job = elastic(w, gpu_model="L4")
        own = w.submit("a", workers=2, seconds="2000", priority="900", gpu_model="A100")
        w.run(10)
        assert w.states(job, own) == ["RUNNING", "PENDING"] and now(w, job)["workers"] == 2
        assert kinds(w, job) == ["resize.follows", "resize.asked"], "asked once"
        reason = w.job(own).reason
        assert reason is not None and reason["code"] == "leaving" and reason["holders"] == [job]
        other = w.submit("b", workers=3, seconds="2000", gpu_model="A100")
        w.run(2)
        assert w.states(other) == ["PENDING"]
        assert gives(w, job, 2)
        w.run(2)
        assert w.states(job, own, other) == ["RUNNING", "RUNNING", "PENDING"]


def test_a_restart_keeps_what_was_asked_and_gives_the_grace_again(tmp_path: Path) -> None:
    with pool(tmp_path, grace_s=30) as w:
        job = elastic(w)
        own = w.submit("b", workers=2, seconds="2000")
        w.run(25)
        version = now(w, job)["version"]
        w.clock.tick(3600)
        w.restart()
        w.run(20)
        assert now(w, job)["version"] == version and w.states(job, own) == ["RUNNING", "PENDING"]
        assert gives(w, job, 2)
        w.restart()
        w.run(2)
        assert w.states(job, own) == ["RUNNING", "RUNNING"] and workers(w, job) == 2
        assert kinds(w, job).count("resize.asked") == 1


def test_it_grows_when_it_has_settled_and_nobody_waits_and_only_as_far_as_it_wants(tmp_path: Path) -> None:
    with pool(tmp_path, settle_s=30) as w:
        other = w.submit("b", workers=2, seconds="10")
        w.run(1)
        job = elastic(w, most=3)
        assert workers(w, job) == 2, "b uses its own"
        w.run(20)
        assert w.states(other) == ["SUCCEEDED"] and workers(w, job) == 2, "not settled yet"
        w.run(15)
        assert workers(w, job) == 3 and now(w, job)["workers"] == 3
        assert w.service.follow_lease(w.caller("a"), job, workers=1, wants=1), "it has no use for more"
        w.backend.hold(f"{job}-1", w.job(job).lease or {}, 1)
        w.run(60)
        assert workers(w, job) == 1
        w.service.follow_lease(w.caller("a"), job, wants=2)
        w.run(5)
        assert workers(w, job) == 2


def test_a_gang_that_finds_nothing_to_grow_into_keeps_nobody_from_being_planned(tmp_path: Path) -> None:
    with pool(tmp_path, teams="teams: {a: {quota: 1}, b: {quota: 3}}") as w:
        other = w.submit("b", workers=1, seconds="5000", preemptible="false")
        w.run(1)
        job = elastic(w)
        assert workers(w, job) == 3, "it wants four"
        w.run(5)
        own = w.submit("b", workers=2, seconds="2000")
        w.run(1)
        assert now(w, job)["workers"] == 1 and w.states(own, other) == ["PENDING", "RUNNING"]


def test_who_is_not_preemptible_grows_within_its_quota_only(tmp_path: Path) -> None:
    with pool(tmp_path) as w:
        blocks = w.submit("b", workers=2, seconds="5")
        w.run(1)
        took = w.submit("a", workers=1, seconds="10")
        job = elastic(w, preemptible="false")
        assert workers(w, job) == 1
        w.run(20)
        assert w.states(blocks, took) == ["SUCCEEDED", "SUCCEEDED"] and workers(w, job) == 2


def test_nothing_grows_while_room_is_being_made(tmp_path: Path) -> None:
    with pool(tmp_path, teams="teams: {a: {quota: 1}, b: {quota: 2}, c: {quota: 1}}") as w:
        gone = w.submit("c", workers=1, seconds="8")
        job = elastic(w, most=3)
        assert workers(w, job) == 3
        own = w.submit("b", workers=2, seconds="2000")
        w.run(1)
        assert now(w, job)["workers"] == 1
        w.run(10)
        assert w.states(gone, own) == ["SUCCEEDED", "PENDING"] and workers(w, job) == 3
        assert now(w, job)["workers"] == 1, "and what was asked stands"


def test_what_may_not_be_said(tmp_path: Path) -> None:
    with pool(tmp_path) as w:
        job = elastic(w, least=2, follows=False)
        with pytest.raises(Conflict, match="does not follow"):
            w.service.follow_lease(w.caller("a"), job, workers=2)
        w.service.follow_lease(w.caller("a"), job, follows=True)
        w.service.follow_lease(w.caller("a"), job, follows=True)
        assert kinds(w, job).count("resize.follows") == 1
        for wrong in (1, 5):
            with pytest.raises(InvalidRequest, match="2 to 4"):
                w.service.follow_lease(w.caller("a"), job, workers=wrong)
        other = w.submit("b", seconds="5")
        with pytest.raises(NotFound):
            w.service.follow_lease(w.caller("b"), job, workers=2)
        assert w.service.lease_now(w.caller("b"), other) is None, "it waits"


def test_a_job_that_is_asked_may_end_or_be_stopped(tmp_path: Path) -> None:
    with pool(tmp_path) as w:
        job = elastic(w)
        own = w.submit("b", workers=2, seconds="2000")
        w.run(2)
        w.service.stop(w.caller("a"), job)
        w.run(3)
        assert w.states(job, own) == ["STOPPED", "RUNNING"]
        book = w.service.core.book
        assert not book.shrinking and not book.following, "else every round would look for what may grow"
        assert w.service.lease_now(w.caller("a"), job) is None
