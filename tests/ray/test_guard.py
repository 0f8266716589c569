"""S9: the guard over real raylets: what bypasses the front door is warned about and stopped, what is leased beside it
goes on. Who works is read from the workers' own files, what is booked from Ray."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pools import Pool
from waiting import until

from moorage.cluster.client import RayBackend
from moorage.runtime.pool.environment import ray_environment

POOL = {
    "nodes": 2,
    "logical_gpus": 2,
    "settings": "guard: {confirm_s: 2, grace_s: 4, interval_ms: 500}",
    "teams": "teams: {ops: {quota: 4}}",
}
SCRIPT = Path(__file__).parent / "scripts" / "holders.py"
GRACE_NS = 4 * 10**9
WITHIN_S = 200.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@contextmanager
def rogue(pool: Pool, way: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A driver that goes straight to the Ray cluster, as one who holds its token can."""
    env = ray_environment(pool.files, local=True)
    command = [sys.executable, str(SCRIPT), way, str(folder), pool.record().ray_address]
    with (folder / f"{way}.log").open("wb") as log:
        driver = subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log)
    try:
        yield driver
    finally:
        driver.kill()
        driver.wait()


def submit(pool: Pool, job: str, way: str, folder: Path) -> None:
    command = shlex.join([sys.executable, str(SCRIPT), way, str(folder)])
    body = {"entrypoint": command, "submission_id": job, "metadata": {"gpus_per_worker": "1"}}
    with pool.http("ops") as client:
        # The first one may wait until the planner's kernels are compiled.
        answer = client.post("/api/jobs/", json=body, timeout=WITHIN_S)
    assert answer.status_code == 200, answer.text


def state(pool: Pool, job: str) -> str:
    with pool.http("ops") as client:
        return str(client.get(f"/moorage/v1/jobs/{job}").raise_for_status().json()["state"])


def findings(pool: Pool, principal: str = "admin") -> list[dict[str, Any]]:
    with pool.http(principal) as client:
        return list(client.get("/moorage/v1/guard").raise_for_status().json()["findings"])


def one(pool: Pool, **wanted: str) -> dict[str, Any] | None:
    """The newest finding with these values."""
    return next((f for f in findings(pool) if all(f[name] == value for name, value in wanted.items())), None)


def found(pool: Pool, **wanted: str) -> Callable[[], dict[str, Any] | None]:
    return lambda: one(pool, **wanted)


def beats(path: Path) -> list[float]:
    return [float(line) for line in path.read_text().splitlines()] if path.exists() else []


def works_on(path: Path) -> None:
    """It has written after now."""
    now = time.time()
    until(lambda: beats(path)[-1:] > [now], 60, f"{path.name} to go on")


def free(pool: Pool) -> int:
    """Milli-GPU that Ray has not booked."""
    backend = RayBackend(pool.home)
    try:
        return sum(node.free_milli_gpu for node in backend.observe().nodes)
    finally:
        backend.close()


def empty(pool: Pool) -> None:
    until(lambda: free(pool) == 4000, 60, "Ray to have all GPUs free")


def test_a_rogue_driver_is_warned_then_stopped_and_leased_work_goes_on(pool: Pool, folder: Path) -> None:
    submit(pool, "good", "one", folder)
    until(lambda: beats(folder / "first"), WITHIN_S, "the leased actor to work")
    with rogue(pool, "actor", folder) as driver:
        until(lambda: beats(folder / "rogue"), WITHIN_S, "the rogue to work")
        warned = until(found(pool, kind="no-lease"), WITHIN_S, "a warning")
        assert warned["target"] == "actor" and warned["detail"]["name"] == "bad" and warned["job"] == ""
        stopped = until(found(pool, state="STOPPED", id=warned["id"]), WITHIN_S, "the rogue to be stopped")
        died = folder / "rogue.died"
        assert (
            until(lambda: died.exists() and died.read_text(), 60, "its driver to hear it") == "ActorDiedError"
        )
        assert stopped["ended_ns"] - stopped["warned_ns"] >= GRACE_NS, "warned first"
        last = beats(folder / "rogue")[-1]
        assert last * 1e9 >= stopped["warned_ns"] + GRACE_NS / 2, "it worked on after the warning"
        works_on(folder / "first")
        assert beats(folder / "rogue")[-1] == last and stopped["target_id"] == warned["target_id"]
        assert driver.poll() is None, "its driver holds no GPU: it was left alone"
    assert state(pool, "good") == "RUNNING" and findings(pool, "ops") == []
    (folder / "end").touch()
    until(lambda: state(pool, "good") == "SUCCEEDED", WITHIN_S, "the leased job to succeed")
    steady = [b - a for a, b in zip(beats(folder / "first"), beats(folder / "first")[1:], strict=False)]
    assert steady, "it worked all along"
    empty(pool)


def test_a_job_with_one_actor_too_many_loses_that_one_only(pool: Pool, folder: Path) -> None:
    submit(pool, "greedy", "two", folder)
    until(lambda: beats(folder / "second"), WITHIN_S, "both actors to work")
    warned = until(found(pool, job="greedy"), WITHIN_S, "a warning")
    assert warned["kind"] == "beyond-lease" and warned["team"] == "ops"
    assert (warned["detail"]["held_milli_gpu"], warned["detail"]["leased_milli_gpu"]) == (2000, 1000)
    until(found(pool, state="STOPPED", id=warned["id"]), WITHIN_S, "the second to be stopped")
    until(lambda: (folder / "second.died").exists(), 60, "its driver to be told")
    works_on(folder / "first")
    assert state(pool, "greedy") == "RUNNING"
    with pool.http("ops") as client:
        events = client.get("/moorage/v1/jobs/greedy/events").json()
    assert [e["kind"] for e in events if e["kind"].startswith("guard.")] == [
        "guard.warned",
        "guard.stopping",
        "guard.stopped",
    ]
    (folder / "end").touch()
    until(lambda: state(pool, "greedy") == "SUCCEEDED", WITHIN_S, "the job to succeed")
    empty(pool)


def test_a_group_that_a_dead_driver_left_is_freed(pool: Pool, folder: Path) -> None:
    with rogue(pool, "group", folder) as driver:
        assert driver.wait(60) == 0, (folder / "group.log").read_text()
    freed = until(
        found(pool, state="STOPPED", kind="leaked-placement-group"), WITHIN_S, "the group to be freed"
    )
    assert freed["milli_gpu"] == 1000, "it had outlived its driver"
    empty(pool)


@pytest.mark.parametrize(("way", "target"), [("task", "driver"), ("slow", "actor")])
def test_tasks_and_constructors_are_seen_too(pool: Pool, folder: Path, way: str, target: str) -> None:
    """A task is in no table of actors, an actor in its constructor not yet."""
    before = {found["id"] for found in findings(pool)}
    with rogue(pool, way, folder):
        until(lambda: beats(folder / way), WITHIN_S, "it to work")

        def stopped() -> list[dict[str, Any]]:
            return [f for f in findings(pool) if f["id"] not in before and f["state"] == "STOPPED"]

        (one,) = until(stopped, WITHIN_S, "it to be stopped")
        assert (one["kind"], one["target"]) == ("no-lease", target)
        until(lambda: (folder / f"{way}.died").exists(), 60, "its driver to be told")
        empty(pool)
        assert one["ended_ns"] / 1e9 > beats(folder / way)[-1]


def test_serve_under_a_lease_is_left_alone_and_what_it_leaves_is_freed(pool: Pool, folder: Path) -> None:
    """Its replica is booked under whoever started Serve: the agent."""
    submit(pool, "host", "serve", folder)
    until(lambda: (folder / "serving").exists(), WITHIN_S, "the application to serve")
    assert free(pool) == 3000
    looked = time.time_ns() + 8 * 10**9  # beyond confirmation and grace

    def looks() -> bool:
        with pool.http("admin") as client:
            return bool(client.get("/moorage/v1/guard").raise_for_status().json()["looked_ns"] > looked)

    until(looks, WITHIN_S, "the guard to have looked for long enough")
    assert not [f for f in findings(pool) if f["job"] == "host" or f["target"] == "serve-app"]
    with pool.http("ops") as client:
        client.post("/api/jobs/host/stop")
    freed = until(found(pool, state="STOPPED", target="serve-app"), WITHIN_S, "what it left to be freed")
    assert freed["kind"] == "dead-owner" and freed["target_id"] == "guarded"
    empty(pool)
