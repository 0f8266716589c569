"""Subleases, endpoints, cost and the answer to bad submissions (S2 S9 V1 L5)."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from control_world import World, world
from waiting import until

from moorage.configs.pool import PoolSettings
from moorage.errors import Conflict, Infeasible, InvalidRequest, LeaseTimeout, MoorageError, NotFound
from moorage.runtime import answers
from moorage.runtime.control.admission import QueueFull
from moorage.runtime.control.api import GrowAsk, Submission


def grow(w: World, job: str, **ask: Any) -> answers.Lease | MoorageError:
    """Ask in a thread, as the front door does, while this one runs the loop."""
    found: list[answers.Lease | MoorageError] = []

    def asking() -> None:
        try:
            found.append(w.service.grow(w.caller("ops"), GrowAsk(job_id=job, **ask)))
        except MoorageError as error:
            found.append(error)

    thread = threading.Thread(target=asking)
    thread.start()
    until(lambda: w.service.loop.tick() or found, 60, "the answer")
    thread.join()
    return found[0]


def test_a_lease_grows_within_quota_and_is_given_back_once(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        job = w.submit("ops", seconds="100")
        w.run(2)
        more = grow(w, job, workers=2, milli_gpu=1000, timeout_s=60, name="more")
        assert isinstance(more, dict) and w.held("ops") == 3000
        assert [worker["milli_gpu"] for worker in more["lease"]["workers"]] == [1000, 1000]
        again = grow(w, job, workers=2, milli_gpu=1000, timeout_s=60, name="more")
        assert isinstance(again, dict) and again["lease_id"] == more["lease_id"], (
            "a lost answer is asked again"
        )
        ops = w.caller("ops")
        assert w.service.release_sublease(ops, more["lease_id"]) and w.held("ops") == 1000
        assert not w.service.release_sublease(ops, more["lease_id"])
        with pytest.raises(NotFound):
            w.service.release_sublease(w.caller("research"), more["lease_id"])


def test_an_ask_that_still_waits_is_joined_not_doubled(tmp_path: Path) -> None:
    """The client lost the answer while its ask waited, and asks again: one sublease, held once, billed once."""
    with world(tmp_path) as w:
        job, other = w.submit("ops", seconds="100"), w.submit("ops", workers=5, seconds="4")
        w.run(2)
        found: list[answers.Lease] = []
        ask = GrowAsk(job_id=job, workers=2, milli_gpu=1000, timeout_s=20, name="more")
        threads = [
            threading.Thread(target=lambda: found.append(w.service.grow(w.caller("ops"), ask)))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        until(lambda: len(w.service.core.book.pending) == 1, 10, "one ask waits")
        w.run(6)
        assert w.states(other) == ["SUCCEEDED"]
        for thread in threads:
            thread.join(20)
        assert len({view["lease_id"] for view in found}) == 1 and len(found) == 2
        assert w.held("ops") == 3000


def test_what_does_not_come_in_time_fails_with_the_reason_and_holds_nothing(tmp_path: Path) -> None:
    """No hold-and-wait."""
    with world(tmp_path) as w:
        job = w.submit("ops", workers=4, seconds="100")
        w.run(2)
        failed = grow(w, job, workers=3, milli_gpu=1000, timeout_s=2)
        assert isinstance(failed, LeaseTimeout) and "limit of 6" in failed.why
        assert w.held("ops") == 4000 and not w.service.core.book.pending
        never = grow(w, job, workers=7, milli_gpu=1000, timeout_s=60)
        assert isinstance(never, Infeasible)
        w.service.stop(w.caller("ops"), job)
        w.run(2)
        assert isinstance(grow(w, job, timeout_s=60), Conflict), "an ended job does not grow"


def test_subleases_end_with_their_job(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        job = w.submit("ops", seconds="8")
        w.run(2)
        assert isinstance(grow(w, job, milli_gpu=500, timeout_s=60), dict) and w.held("ops") == 1500
        w.run(10)
        assert w.states(job) == ["SUCCEEDED"] and w.held("ops") == 0


def test_endpoints_belong_to_their_team_and_live_with_their_job(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        ops, research = w.caller("ops"), w.caller("research")
        job, other = w.submit("ops", seconds="6"), w.submit("research", seconds="60")
        w.run(2)
        view = w.service.publish_endpoint(ops, "flights", "app", "/flights", job)
        assert view.live and view.team == "ops" and w.service.endpoint("flights") == view
        with pytest.raises(Conflict):
            w.service.publish_endpoint(research, "flights", "app", "/x", other)
        assert [e.name for e in w.service.endpoints(ops)] == ["flights"] and not w.service.endpoints(research)
        for route in ("/flights", "/flights/", "/flights/admin"):
            with pytest.raises(Conflict, match="route"):
                w.service.publish_endpoint(research, "mine", "app", route, other)
        assert w.service.publish_endpoint(research, "mine", "app", "/flights2", other).live
        names = (("Bad", "/x"), ("a/b", "/x"), ("ok", "x"), ("ok", "/../x"), ("ok", "/a b"))
        routes = ("/", "//x", "/./x", "/x//y", "/-/routes", "/" + "x" * 256)
        for name, route in (*names, *(("ok", route) for route in routes)):
            with pytest.raises(InvalidRequest):
                w.service.publish_endpoint(ops, name, "app", route, job)
        w.run(8)
        assert not w.service.endpoint("flights").live
        with pytest.raises(NotFound):
            w.service.endpoint("none")


def test_cost_is_exact_and_of_ones_own_team(tmp_path: Path) -> None:
    """L5: 2 GPUs for the time the lease was held, at the price of their model."""
    settings = PoolSettings(prices={"gpus": 9, "L4": 3.6})
    with world(tmp_path, settings=settings) as w:
        job = w.submit("ops", workers=2, seconds="10")
        w.submit("research", seconds="10")
        w.run(15)
        bill = w.service.cost(w.caller("ops"))
        row = bill["jobs"][0]
        assert [r["job"] for r in bill["jobs"]] == [job] and [r["team"] for r in bill["teams"]] == ["ops"]
        assert row["gpu_seconds"] == 20.0 and row["milli_gpu_ns"] == 2000 * 10 * 10**9
        assert row["micro_dollars"] == 20 * 1000, "3.6 dollars an hour is 1000 micro-dollars a second"


BAD: list[dict[str, Any]] = [
    {"entrypoint": ""},
    {"entrypoint": "x\x00"},
    {"entrypoint": "x" * 70_000},
    {"entrypoint": "x", "submission_id": "../x"},
    {"entrypoint": "x", "submission_id": ""},
    {"entrypoint": "x", "runtime_env": {"env_vars": {"MOORAGE_LEASE": "{}"}}},
    {"entrypoint": "x", "runtime_env": {"env_vars": {"RAY_AUTH_TOKEN": "x"}}},
    {"entrypoint": "x", "runtime_env": {"env_vars": {"A": 1}}},
    {"entrypoint": "x", "runtime_env": {"env_vars": ["A"]}},
    {"entrypoint": "x", "runtime_env": {"working_dir": "/etc"}},
    {"entrypoint": "x", "runtime_env": {"working_dir": "file:///etc/x.zip"}},
    {"entrypoint": "x", "runtime_env": {"config": float("nan")}},
    {"entrypoint": "x", "entrypoint_resources": {"GPU": 8}},
    {"entrypoint": "x", "entrypoint_resources": {"tpu": float("inf")}},
    {"entrypoint": "x", "entrypoint_resources": {"tpu": -1}},
    {"entrypoint": "x", "entrypoint_num_gpus": float("nan")},
    {"entrypoint": "x", "entrypoint_num_cpus": -1},
    {"entrypoint": "x", "entrypoint_memory": -5},
    {"entrypoint": "x", "entrypoint_label_selector": {"ray.io/node-id": "abc"}},
    {"entrypoint": "x", "metadata": {"gpus_per_worker": "100000"}},
    {"entrypoint": "x", "metadata": {"gpu_model": "H100", "gpus_per_worker": "1"}},
    {"entrypoint": "x", "metadata": {"gpu_memory_mib": "99999", "gpus_per_worker": "1"}},
    {"entrypoint": "x", "metadata": {"team": "nobody"}},
]


def test_bad_submissions_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        admin = w.caller("admin")
        for values in BAD:
            metadata = {"team": "ops", **values.get("metadata", {})}
            with pytest.raises(InvalidRequest) as refused:
                w.service.submit(admin, Submission(**{**values, "metadata": metadata}))
            assert 400 <= refused.value.http_status < 500, values
        assert w.service.jobs(admin) == [] and not w.service.core.book.pending


def test_too_many_waiting_jobs_are_refused(tmp_path: Path) -> None:
    with world(tmp_path, settings=PoolSettings(max_pending=2)) as w:
        for _ in range(2):
            w.submit("ops")
        with pytest.raises(QueueFull) as refused:
            w.submit("ops")
        assert refused.value.http_status == 429
        w.submit("research")


def test_status_says_who_holds_which_part_of_which_device(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        halves = [w.submit("ops", gpus=0.5, seconds="60", gpu_memory_mib="4096") for _ in range(2)]
        w.run(5)
        status = w.service.status(w.caller("ops"))
        shared = [device for device in status["devices"] if device["holders"]]
        assert [len(device["holders"]) for device in shared] == [2], "two halves share one device"
        assert {h["job"] for h in shared[0]["holders"]} == set(halves)
        assert shared[0]["free_milli_gpu"] == 0 and shared[0]["free_mib"] == 24576 - 2 * 4096
        assert status["teams"][0]["used_milli_gpu"] == 1000
