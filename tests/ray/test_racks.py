"""Topology, taints and budgets on a joined cluster whose labels are Ray's own (S1, S5, L5): what counts is where Ray
says that each task ran."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pools import Pool, discard, short_folder, start
from waiting import until

from moorage.cluster.paths import read_json, write_private
from moorage.runtime.pool.environment import ray_environment
from moorage.runtime.pool.home import PoolHome

SCRIPTS = Path(__file__).parent / "scripts"
WITHIN_S = 90.0
TEAMS = "teams: {ops: {}, thrifty: {budget: {gpu_hours: %s, per: year}}}"


@dataclass
class Cluster:
    """A Ray cluster that is not the pool's own, and the pool that joined it."""

    home: PoolHome
    pool: Pool | None = None

    def join(self, gpu_hours: str) -> Pool:
        """`up --address`, with that budget; for the second time in the folder of the first."""
        token = self.home.ray_token.read_text(encoding="utf-8")
        address = read_json(self.home.ray_json)["ray_address"]
        return start(
            {
                "teams": TEAMS % gpu_hours,
                "options": ["--address", address],
                "environment": {"RAY_AUTH_TOKEN": token},
                "again": self.pool,
            }
        )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    home = PoolHome(short_folder())
    home.make()
    write_private(home.ray_token, "a-token-that-is-long-enough-for-ray-to-take")
    command = [sys.executable, "-P", str(SCRIPTS / "racks.py"), "--home", str(home.root)]
    with home.log("ray").open("wb") as log:
        ray = subprocess.Popen(
            [*command, "--dashboard-port", "0"],
            env=ray_environment(home, local=True),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    found = Cluster(home)
    try:
        until(lambda: home.ray_json.exists() or ray.poll() is not None, 120, "four raylets")
        assert ray.poll() is None, home.log("ray").read_text(encoding="utf-8")
        found.pool = found.join("0.001")
        yield found
    finally:
        if found.pool is not None:
            discard(found.pool)
        ray.terminate()
        ray.wait(timeout=60)


@pytest.fixture()
def pool(cluster: Cluster) -> Iterator[Pool]:
    """The pool; a test leaves nothing running, and nothing waiting."""
    assert cluster.pool is not None
    yield cluster.pool
    with cluster.pool.http("admin") as http:

        def left() -> list[str]:
            found = http.get("/moorage/v1/status").raise_for_status().json()
            return [row["job"] for row in (*found["queue"], *found["running"])]

        for job in until(lambda: [*left(), ""], 60, "the pool to answer")[:-1]:
            http.post(f"/api/jobs/{job}/stop")
        until(lambda: not left(), 60, "all jobs to stop")


def submit(pool: Pool, job: str, out: Path | None, *, team: str = "ops", **metadata: str) -> None:
    """A job that stays until it is stopped. With `out` its tasks say where they are, in `out`/job.json."""
    words = ["sleep", "1000"]
    if out is not None:
        words = [sys.executable, str(SCRIPTS / "whereabouts.py"), str(out / f"{job}.json")]
    asked = {"gpus_per_worker": "1", "cpus_per_worker": "0.5", **metadata}
    body = {
        "entrypoint": shlex.join(words),
        "submission_id": job,
        "metadata": asked,
        "entrypoint_num_cpus": 0.5,
    }
    with pool.http(team) as http:
        answer = http.post("/api/jobs/", json=body)
    assert answer.status_code == 200, answer.text


def seen(pool: Pool, job: str, out: Path) -> dict[str, Any]:
    """What a job's own tasks said, once all of them have."""
    said = out / f"{job}.json"
    try:
        until(said.exists, WITHIN_S, f"the tasks of {job}")
    except AssertionError as late:
        raise AssertionError(f"{late}\n{view(pool, job)}\n{pool.logs()}") from None
    return dict(json.loads(said.read_text(encoding="utf-8")))


def view(pool: Pool, job: str) -> dict[str, Any]:
    with pool.http("admin") as http:
        return dict(http.get(f"/moorage/v1/jobs/{job}").raise_for_status().json())


def waits(pool: Pool, job: str) -> str:
    """The code and the words of why, once there are some."""
    reason = until(lambda: view(pool, job)["reason"], 30, f"why {job} waits")
    assert view(pool, job)["state"] == "PENDING"
    return f"{reason['code']}: {reason['text']}"


def runs(pool: Pool, job: str) -> bool:
    return bool(view(pool, job)["state"] == "RUNNING")


def racks(said: dict[str, Any]) -> list[str]:
    """The rack of each worker, by the labels that Ray has of the node it ran on."""
    return [said["labels"][node]["rack"] for node, _ in said["workers"]]


def leased(pool: Pool, job: str) -> set[str]:
    """The nodes on which a job holds devices, by the pool's own book."""
    with pool.http("admin") as http:
        devices = http.get("/moorage/v1/status").raise_for_status().json()["devices"]
    return {device["node"] for device in devices for one in device["holders"] if one["job"] == job}


def test_a_gang_within_a_rack_runs_in_one_rack(pool: Pool, tmp_path: Path) -> None:
    """S5: three workers and their driver are where Ray's labels say one rack, each on a device of its own."""
    submit(pool, "loose", None, workers="3")
    until(lambda: leased(pool, "loose"), WITHIN_S, "a gang that nothing holds together")
    assert leased(pool, "loose") == {"node-0", "node-1"}, "two racks: else the next gang shows nothing"
    with pool.http("ops") as http:
        http.post("/api/jobs/loose/stop")
    submit(pool, "near", tmp_path, workers="3", required_topology="rack")
    said = seen(pool, "near", tmp_path)
    assert racks(said) == ["r0"] * 3 and said["labels"][said["driver"]]["rack"] == "r0"
    assert len({(node, tuple(devices)) for node, devices in said["workers"]}) == 3


def test_spread_and_taints_hold_where_tasks_run(pool: Pool, tmp_path: Path) -> None:
    """S1, S5: one worker per node; once all but the tainted node is full, only who tolerates the taint goes there."""
    submit(pool, "spread", tmp_path, workers="3", max_per_domain="1")
    said = seen(pool, "spread", tmp_path)
    assert sorted(racks(said)) == ["r0", "r0", "r1"] and len({node for node, _ in said["workers"]}) == 3
    submit(pool, "rest", None, workers="3")
    until(lambda: leased(pool, "rest") == {"node-0", "node-1", "node-2"}, WITHIN_S, "the rest to be leased")
    submit(pool, "kept-out", None, workers="1")
    assert waits(pool, "kept-out").startswith(
        "pool-full: asks for 1 GPUs, 0 are free on the nodes that it may use (3)"
    )
    submit(pool, "let-in", tmp_path, workers="1", tolerations="team=ml:NoSchedule")
    assert racks(seen(pool, "let-in", tmp_path)) == ["r2"]
    assert view(pool, "kept-out")["state"] == "PENDING", "another device there is free"


def test_who_is_out_of_budget_waits_until_it_is_raised(cluster: Cluster, pool: Pool, tmp_path: Path) -> None:
    """L5: 3.6 GPU-seconds are spent soon; the next job waits for more of them, which the pool is started again with."""
    submit(pool, "spends", None, team="thrifty", workers="1")

    def spent() -> bool:
        with pool.http("admin") as http:
            (row,) = http.get("/moorage/v1/status").raise_for_status().json()["budgets"]
        return bool(row["spent"] >= row["budget"])

    until(spent, WITHIN_S, "the budget to be used up")
    submit(pool, "saves", tmp_path, team="thrifty", workers="1")
    said = waits(pool, "saves")
    assert said.startswith("budget: team thrifty has spent") and "of its 0.001 GPU-hours this year" in said
    submit(pool, "others", None, workers="1")
    until(lambda: runs(pool, "others"), WITHIN_S, "another team's job")
    assert runs(pool, "spends") and view(pool, "saves")["state"] == "PENDING"
    assert pool.moorage("down").returncode == 0
    cluster.join("100")
    assert racks(seen(pool, "saves", tmp_path))
    until(
        lambda: runs(pool, "saves") and runs(pool, "spends") and runs(pool, "others"), 30, "all three to run"
    )
    assert [len(view(pool, job)["attempts"]) for job in ("spends", "saves", "others")] == [1, 1, 1]
