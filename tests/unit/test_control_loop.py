"""The reconcile loop over a simulated pool (S2 S3 S8 G6): the same loop that runs over Ray."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from control_world import NODES, world

from moorage.cluster.backend import BackendUnavailable, Launch
from moorage.configs.pool import PoolSettings
from moorage.errors import Conflict, Infeasible, InvalidRequest
from moorage.runtime.control.api import Submission
from moorage.runtime.control.applier import apply_plan
from moorage.runtime.control.book import Book
from moorage.runtime.control.outcome import judge
from moorage.runtime.control.simbackend import SimNode
from moorage.scheduling import planner
from moorage.scheduling.model import Policy, Snapshot
from moorage.scheduling.queue import Queue


def test_a_job_over_its_limit_waits_with_a_true_reason_and_starts_when_room_appears(tmp_path: Path) -> None:
    """S2, S8: research has two GPUs and no more, while six others are free."""
    with world(tmp_path) as w:
        first = w.submit("research", workers=2, seconds="10")
        second = w.submit("research", workers=1, seconds="10")
        w.run(2)
        assert w.states(first, second) == ["RUNNING", "PENDING"]
        view = w.job(second)
        assert view.ray_status == "PENDING" and view.reason is not None
        assert view.reason["code"] == "team-limit" and first in view.message
        assert view.reason["held_milli_gpu"] == 2000 == w.held("research")
        w.run(12)
        assert w.states(first, second) == ["SUCCEEDED", "RUNNING"]


def test_quota_of_others_is_borrowed_up_to_the_limit(tmp_path: Path) -> None:
    """S2: ops has 4, may take 6 while research is idle."""
    with world(tmp_path) as w:
        jobs = [w.submit("ops", workers=2, seconds="60") for _ in range(4)]
        w.run(3)
        assert sorted(w.states(*jobs)) == ["PENDING", "RUNNING", "RUNNING", "RUNNING"]
        assert w.held("ops") == 6000


def test_the_applier_itself_refuses_what_is_over_quota(tmp_path: Path) -> None:
    """S2: a plan made under other quotas is re-checked, not believed."""
    with world(tmp_path) as w:
        w.submit("research", workers=2, seconds="60")
        third = w.submit("research", workers=1, seconds="60")
        core = w.service.core
        loose = Book(type(core.book.teams).model_validate({"teams": {"ops": {}, "research": {}}}))
        with w.service.store.read() as db:
            loose.reload(db)
        now = w.clock.now().control_ns
        loose.ledger.version = core.book.ledger.version
        snapshot = Snapshot(
            version=core.book.ledger.version, ledger=loose.ledger, pending=Queue.of(core.book.waiting(now))
        )
        plan = planner.plan(snapshot, Policy(), now)
        assert len(plan.admitted) == 2, "the loose plan admits both"
        assert apply_plan(core, snapshot, plan) == 1
        assert w.held("research") == 2000 and w.states(third) == ["PENDING"]


def test_a_plan_from_an_older_ledger_is_dropped(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        w.submit("ops", seconds="60")
        core, now = w.service.core, w.clock.now().control_ns
        ledger = core.book.ledger.copy()
        snapshot = Snapshot(
            version=ledger.version - 1, ledger=ledger, pending=Queue.of(core.book.waiting(now))
        )
        assert apply_plan(core, snapshot, planner.plan(snapshot, Policy(), now)) == 0
        assert not core.book.ledger.leases


@pytest.mark.parametrize(("team", "workers"), [("ops", 9), ("ops", 7), ("research", 3)])
def test_a_gang_that_can_never_start_is_refused_at_once(tmp_path: Path, team: str, workers: int) -> None:
    """S3: larger than the pool (9 of 8), or than the team's limit; with the figures."""
    with world(tmp_path) as w:
        with pytest.raises(Infeasible) as refused:
            w.submit(team, workers=workers)
        assert refused.value.extra["asked_milli_gpu"] == workers * 1000
        assert refused.value.extra["pool_milli_gpu"] == 8000
        assert w.service.jobs(w.caller(team)) == []


def test_exit_codes_fail_the_job_and_lost_attempts_are_tried_again(tmp_path: Path) -> None:
    """G6: a user's error is final, the infrastructure's is retried, then quarantined."""
    with world(tmp_path, settings=PoolSettings(infra_attempts=3)) as w:
        wrong = w.submit("ops", exit="1", seconds="1")
        again = w.submit("ops", exit="3", seconds="1", max_attempts="3")
        lost = w.submit("ops", exit="lost", seconds="1")
        w.run(40)
        assert w.states(wrong, again, lost) == ["FAILED", "FAILED", "QUARANTINED"]
        assert w.job(wrong).driver_exit_code == 1
        attempts = {
            job: [a["submission_id"] for a in w.service.attempts(job)] for job in (wrong, again, lost)
        }
        assert attempts == {
            j: [f"{j}-{n + 1}" for n in range(k)] for j, k in ((wrong, 1), (again, 3), (lost, 3))
        }
        assert w.job(lost).ray_status == "FAILED" and "3 attempts" in w.job(lost).message


def test_a_vanished_attempt_is_started_once_more(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        job = w.submit("ops", seconds="30")
        w.run(2)
        w.backend.lose(f"{job}-1")
        w.run(5)
        assert w.states(job) == ["RUNNING"], "a short blindness is no loss"
        w.run(20)
        assert w.backend.launches == [f"{job}-1", f"{job}-2"] and w.states(job) == ["RUNNING"]


def test_max_runtime_stops_the_job(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        job = w.submit("ops", seconds="100", max_runtime="5s")
        w.run(4)
        assert w.states(job) == ["RUNNING"]
        w.run(4)
        assert w.states(job) == ["FAILED"] and "max_runtime" in w.job(job).message
        assert w.held("ops") == 0


def test_nothing_expires_and_nothing_starts_while_ray_does_not_answer(tmp_path: Path) -> None:
    """G6: leases end by what is seen, never by silence."""
    with world(tmp_path) as w:
        running = w.submit("ops", seconds="500", max_runtime="60s")
        w.run(2)
        w.backend.unavailable = True
        waiting = w.submit("ops", seconds="60")
        w.run(300)
        assert w.states(running, waiting) == ["RUNNING", "PENDING"] and w.held("ops") == 1000
        assert "Ray cannot be reached" in w.job(waiting).message
        w.backend.unavailable = False
        w.run(2)
        assert w.states(running, waiting) == ["FAILED", "RUNNING"]


def test_stop_in_every_state(tmp_path: Path) -> None:
    with world(tmp_path, start_s=2) as w:
        running = w.submit("research", workers=2, seconds="100")
        waiting = w.submit("research", workers=2, seconds="100")
        w.run(4)
        admin = w.caller("admin")
        assert w.service.stop(admin, waiting) and w.states(waiting) == ["STOPPED"]
        assert w.service.stop(admin, running)
        w.run(2)
        assert w.states(running) == ["STOPPED"] and not w.service.stop(admin, running)
        with w.service.store.lock:  # admitted, not launched: stopped without ever reaching Ray
            w.backend.unavailable = True
            third = w.submit("research", seconds="100")
            w.service.loop._plan()
            assert w.states(third) == ["ADMITTED"]
            w.service.stop(admin, third)
            w.backend.unavailable = False
        w.run(1)
        assert w.states(third) == ["STOPPED"] and f"{third}-1" not in w.backend.launches


def test_a_refused_launch_fails_with_the_clusters_words(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        w.backend.refuse.add("bad")
        w.submit("ops", job="bad")
        w.run(1)
        assert w.states("bad") == ["FAILED"] and "refuses" in w.job("bad").message and w.held("ops") == 0


def test_starts_wait_until_the_cluster_has_freed_the_devices(tmp_path: Path) -> None:
    """S4: the raylet's choice of device is predictable only when each release is awaited."""
    nodes = (SimNode(name="node-0", devices=2),)
    teams = "teams: {ops: {quota: 2}}"
    with world(tmp_path, nodes=nodes, teams=teams, free_lag_s=3) as w:
        first = w.submit("ops", workers=2, seconds="2")
        second = w.submit("ops", workers=2, seconds="2")
        w.run(3)
        assert w.states(first, second) == ["SUCCEEDED", "ADMITTED"]
        assert w.backend.launches == [f"{first}-1"]
        w.run(4)
        assert w.backend.launches == [f"{first}-1", f"{second}-1"]


def test_one_start_at_a_time_per_node_in_order(tmp_path: Path) -> None:
    with world(tmp_path, nodes=NODES[:1], start_s=2) as w:
        jobs = [w.submit("ops", job=f"j{n}", seconds="60") for n in range(4)]
        w.run(1.5)
        assert w.backend.launches == ["j0-1"] and w.states(*jobs)[1:] == ["ADMITTED"] * 3
        w.run(10)
        assert w.backend.launches == [f"{job}-1" for job in jobs]


def test_a_node_lost_before_the_start_gives_the_job_back(tmp_path: Path) -> None:
    with world(tmp_path, nodes=NODES[:1], start_s=5) as w:
        w.submit("ops", job="one", seconds="60")
        w.submit("ops", job="two", seconds="60")
        w.run(1)
        assert w.states("two") == ["ADMITTED"]
        w.backend.down.add("node-0")
        w.run(1)
        assert w.states("two") == ["PENDING"] and w.job("two").reason is not None
        w.backend.down.clear()
        w.backend.incarnation["node-0"] = 1
        w.run(20)
        assert w.states("two") == ["RUNNING"]


def test_the_same_id_with_the_same_content_is_one_job(tmp_path: Path) -> None:
    """S9: a client that lost its answer may ask again."""
    with world(tmp_path) as w:
        ops = w.caller("ops")
        submission = Submission(entrypoint="a", submission_id="x", metadata={"gpus_per_worker": "1"})
        assert w.service.submit(ops, submission) == w.service.submit(ops, submission) == "x"
        with pytest.raises(Conflict):
            w.service.submit(
                ops, Submission(entrypoint="b", submission_id="x", metadata={"gpus_per_worker": "1"})
            )
        free = Submission(entrypoint="a", metadata={"gpus_per_worker": "1"})
        key = w.service.submit(ops, free, None, "key-1")
        assert w.service.submit(ops, free, None, "key-1") == key
        with pytest.raises(Conflict):
            w.service.submit(ops, Submission(entrypoint="c"), None, "key-1")
        w.run(5)
        assert len(w.backend.launches) == 2


def test_a_restart_goes_on_where_the_store_says(tmp_path: Path) -> None:
    """G6: nothing lost, nothing started twice."""
    with world(tmp_path) as w:
        jobs = [w.submit("ops", workers=2, seconds="20") for _ in range(4)]
        for _ in range(15):
            w.restart()
            w.run(4, step=1)
        assert w.states(*jobs) == ["SUCCEEDED"] * 4
        assert sorted(w.backend.launches) == sorted(f"{job}-1" for job in jobs)


def test_an_attempt_pinned_to_a_node_that_was_restarted_is_taken_back(tmp_path: Path) -> None:
    """G6: Ray's node ids change with each start of a raylet; the pin of a start in flight is then void."""
    with world(tmp_path, nodes=NODES[:1], start_s=30) as w:
        ask = Submission(entrypoint="x", entrypoint_num_cpus=1, metadata={"sim.seconds": "60"})
        job = w.service.submit(w.caller("ops"), ask)
        w.run(2)
        assert w.states(job) == ["STARTING"]
        w.backend.incarnation["node-0"] = 1
        w.run(40)
        assert w.backend.launches == [f"{job}-1", f"{job}-2"] and w.states(job) == ["RUNNING"]


def test_an_attempt_that_ray_does_not_begin_is_given_up_and_tried_elsewhere(tmp_path: Path) -> None:
    """G6: Ray took it and says PENDING for ever; its devices are not held for that."""
    settings = PoolSettings(start_timeout_s=10, infra_attempts=2)
    with world(tmp_path, nodes=NODES[:1], start_s=3600, settings=settings) as w:
        job = w.service.submit(w.caller("ops"), Submission(entrypoint="x", entrypoint_num_gpus=1))
        w.run(9)
        assert w.states(job) == ["STARTING"]
        w.run(12)
        assert w.backend.launches == [f"{job}-1", f"{job}-2"]
        w.run(20)
        seen = w.service.job(w.caller("ops"), job)
        assert (seen.state, seen.lease) == ("QUARANTINED", None)
        told = {one["message"] for one in w.service.attempts(job)}
        assert told == {"Ray did not begin it within the pool's start_timeout_s"}


@pytest.mark.parametrize(
    ("status", "message", "code", "stop", "left", "kind"),
    [
        ("SUCCEEDED", "", 0, "", 0, "succeeded"),
        ("SUCCEEDED", "", 0, "user", 0, "succeeded"),
        ("FAILED", "Job entrypoint command failed with exit code 1", 1, "", 0, "failed"),
        ("FAILED", "Job entrypoint command failed with exit code 1", 1, "", 2, "retry"),
        ("FAILED", "runtime_env setup failed: pip", None, "", 0, "failed"),
        ("FAILED", "Failed to set up runtime environment: no runtime env agent", None, "", 0, "lost"),
        ("FAILED", "Job supervisor actor died: node died", None, "", 0, "lost"),
        ("FAILED", "Job supervisor actor died", None, "max_runtime", 0, "failed"),
        ("STOPPED", "", None, "user", 0, "stopped"),
        ("STOPPED", "", None, "", 0, "stopped"),
        ("STOPPED", "", None, "max_runtime", 0, "failed"),
        ("STOPPED", "", None, "node_lost", 0, "lost"),
        ("STOPPED", "", None, "not_begun", 0, "lost"),
        ("SUCCEEDED", "", 0, "not_begun", 0, "succeeded"),
    ],
)
def test_what_an_end_means(
    status: str, message: str, code: int | None, stop: str, left: int, kind: str
) -> None:
    assert judge(status, message, code, stop, left).kind == kind


@pytest.mark.parametrize(
    ("teams", "first", "second"),
    [
        ("teams: {a: {quota: 4}, b: {quota: {L4: 2}}}", {}, {}),
        (
            "teams: {a: {quota: {gpus: 2, A100: 2}}, b: {quota: 2}}",
            {"workers": 2, "gpu_model": "L4"},
            {"gpu_model": "A100"},
        ),
    ],
    ids=["the free model is another team's quota", "the quota of all models together is used up"],
)
def test_what_its_quota_of_one_model_does_not_cover_is_borrowed(
    tmp_path: Path, teams: str, first: dict[str, Any], second: dict[str, Any]
) -> None:
    """S2: quotas of different models do not leave a job waiting beside idle devices that it may borrow."""
    nodes = (SimNode(name="n0"), SimNode(name="n1", gpu_model="A100"))
    with world(tmp_path, teams=teams, nodes=nodes[: 1 + bool(first)]) as w:
        jobs = [w.submit("a", seconds="60", **first), w.submit("a", seconds="60", **second)]
        w.run(2)
        assert w.states(*jobs) == ["RUNNING", "RUNNING"], w.job(jobs[1]).message


def test_a_job_may_name_several_models(tmp_path: Path) -> None:
    """S1: it takes whichever is free, and no third."""
    nodes = (
        SimNode(name="n0"),
        SimNode(name="n1", gpu_model="A100"),
        SimNode(name="n2", gpu_model="T4"),
    )
    with world(tmp_path, teams="teams: {a: {}}", nodes=nodes) as w:
        first, second = (w.submit("a", workers=4, seconds="60", gpu_model="A100|T4") for _ in range(2))
        third = w.submit("a", seconds="60", gpu_model="A100|T4")
        w.run(2)
        assert w.states(first, second, third) == ["RUNNING", "RUNNING", "PENDING"]
        nodes_held = {
            task.node for lease in w.service.core.book.ledger.leases.values() for task in lease.tasks
        }
        assert nodes_held == {"n1", "n2"}
        assert "A100 or T4" in w.job(third).message


def test_a_limit_of_all_models_refuses_what_the_limit_of_one_would_allow(tmp_path: Path) -> None:
    """S2, S3: three L4 fit the limit of L4, never that of two GPUs in all: refused, not queued for ever."""
    with world(tmp_path, teams="teams: {a: {limit: {gpus: 2, L4: 4}}, b: {limit: {L4: 1, A100: 8}}}") as w:
        for team, gang, allowed in (
            ("a", {"workers": 3, "gpu_model": "L4"}, 2000),
            ("b", {"workers": 2}, 1000),
        ):
            with pytest.raises(Infeasible) as refused:
                w.submit(team, **gang)  # type: ignore[arg-type]
            assert refused.value.extra["reason"] == "team-limit"
            assert refused.value.extra["allowed_milli_gpu"] == allowed


def test_a_large_gang_waits_for_a_node_that_is_away(tmp_path: Path) -> None:
    """S3, S8: what fits the pool with its lost node back is queued with that reason, not refused."""
    with world(tmp_path) as w:
        w.backend.down.add("node-1")
        w.run(1)
        gang = w.submit("ops", workers=6, seconds="60")
        w.run(1)
        assert w.states(gang) == ["PENDING"] and "comes back" in w.job(gang).message
        w.backend.down.clear()
        w.run(2)
        assert w.states(gang) == ["RUNNING"]


def test_a_node_that_comes_back_smaller_gets_nothing_new_until_its_leases_end(tmp_path: Path) -> None:
    """G6: neither the rounds meanwhile nor a restart stumble over leases that its new figures do not hold."""
    with world(tmp_path) as w:
        job = w.submit("ops", workers=4, seconds="20")
        w.run(2)
        lease = w.job(job).lease
        assert lease is not None
        home = lease["workers"][0]["node"]
        w.backend.nodes = tuple(replace(n, devices=2) if n.name == home else n for n in w.backend.nodes)
        w.run(1)
        before = len(w.service.events(w.caller("admin"), 0, 1000))
        w.run(5)
        assert len(w.service.events(w.caller("admin"), 0, 1000)) == before, (
            "it is recorded once, not each round"
        )
        w.restart()
        other = w.submit("ops", seconds="60")
        w.run(2)
        lease = w.job(other).lease
        assert lease is not None and lease["workers"][0]["node"] != home
        w.run(30)
        node = next(n for n in w.service.status(w.caller("ops"))["nodes"] if n["name"] == home)
        assert w.states(job) == ["SUCCEEDED"] and (node["alive"], node["devices"]) == (True, 2)


@pytest.mark.parametrize("error", [BackendUnavailable("Ray answers 500 for this job"), ValueError("a bug")])
def test_one_job_that_cannot_be_launched_does_not_hold_up_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with world(tmp_path) as w:
        launch = w.backend.launch

        def sick(asked: Launch) -> None:
            if asked.submission_id == "bad-1":
                raise error
            launch(asked)

        monkeypatch.setattr(w.backend, "launch", sick)
        w.submit("ops", job="bad", seconds="10")
        good = w.submit("research", seconds="100")
        w.run(3)
        assert w.states("bad", good) == ["ADMITTED", "RUNNING"]
        monkeypatch.undo()
        w.run(10)
        assert w.states("bad") == ["RUNNING"] and w.backend.launches.count("bad-1") == 1


def test_how_an_attempt_ended_is_for_its_own_team(tmp_path: Path) -> None:
    """S10: Ray quotes the end of a job's log, and the queue is shown to all."""
    with world(tmp_path) as w:
        job = w.submit("ops", seconds="100")
        w.run(2)
        w.backend.kill(f"{job}-1", "the node died; last lines: password=hunter2")
        w.run(0.5)
        theirs, own = (w.service.status(w.caller(team))["queue"][0] for team in ("research", "ops"))
        assert "hunter2" in own["message"] and "hunter2" not in json.dumps(theirs)
        assert "attempt 1 ended; tried again in" in theirs["message"]


@pytest.mark.parametrize(
    "more",
    [{"entrypoint": "echo \ud800"}, {"metadata": {"a.b": "\udfff"}}, {"runtime_env": {"pip": ["\ud800"]}}],
)
def test_half_a_surrogate_pair_is_refused(tmp_path: Path, more: dict[str, Any]) -> None:
    """It could be stored, but the launch could never be sent to Ray."""
    with world(tmp_path) as w, pytest.raises(InvalidRequest, match="Unicode"):
        w.service.submit(w.caller("ops"), Submission(**{"entrypoint": "x", **more}))
