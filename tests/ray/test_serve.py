"""Endpoints on a real Ray cluster (V1, V2, V3, S4): contracts, batches, one device for two, and no app left behind."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from pools import free_port, short_folder
from waiting import until

from moorage.cluster.binding import LeaseView, WorkerView, encode
from moorage.cluster.paths import ClusterPaths
from moorage.runtime.pool.environment import ray_environment

GOOD = {"carrier": "UA", "distance": 1250.0}
DRIVER = Path(__file__).with_name("serve_driver.py")


@dataclass
class Driver:
    """A running serve_driver.py and the lines it printed so far."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]

    def stop(self) -> list[dict[str, Any]]:
        self.process.send_signal(signal.SIGTERM)
        out, _ = self.process.communicate(timeout=30)
        return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


@dataclass
class World:
    """One node with two logical GPUs, and Serve's address on it."""

    environment: dict[str, str]
    port: int
    nodes: list[str]
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def lease(self) -> str:
        """Two workers of half a GPU each on one node: the first device, which an empty node gives out first."""
        worker = WorkerView(
            node="node-0", ray_node_id=self.nodes[0], devices=(0,), milli_gpu=500, gpu_mib=1024, milli_cpu=500
        )
        return encode(LeaseView(lease_id="lease-1", epoch=1, head=None, workers=(worker, worker)))

    def drive(self, team: str) -> Driver:
        log = self.folder / f"driver-{team}.log"
        with open(log, "w") as errors:
            process = subprocess.Popen(
                [sys.executable, str(DRIVER), str(self.port), team],
                env=self.environment | {"MOORAGE_LEASE": self.lease()},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert process.stdout is not None
        line = process.stdout.readline()
        while line and not line.startswith("{"):
            line = process.stdout.readline()
        assert line, f"the driver ended: {log.read_text()[-4000:]}"
        return Driver(process, json.loads(line))

    def routes(self) -> dict[str, str] | None:
        """Application by route; None while Serve does not say."""
        answer = httpx.get(f"{self.url}/-/routes", timeout=10, trust_env=False)
        return dict(answer.json()) if answer.status_code == 200 else None


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    folder = short_folder()
    paths = ClusterPaths(folder)
    paths.make()
    paths.ray_token.touch(mode=0o600)
    paths.ray_token.write_text(secrets.token_urlsafe(32))
    environment = ray_environment(paths, local=True)
    command = ["-P", "-m", "moorage.cluster.local", "--nodes", "1", "--logical-gpus", "2"]
    with open(folder / "local.log", "w") as log:
        cluster = subprocess.Popen(
            [sys.executable, *command, "--home", str(folder), "--dashboard-port", str(free_port())],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        until(
            lambda: paths.ray_json.exists() or cluster.poll() is not None,
            120,
            "the cluster to write ray.json",
        )
        assert cluster.poll() is None, (folder / "local.log").read_text()[-4000:]
        told = json.loads(paths.ray_json.read_text())
        environment |= {"RAY_ADDRESS": told["ray_address"]}
        yield World(environment, free_port(), [node["ray_node_id"] for node in told["nodes"]], folder)
    finally:
        cluster.terminate()
        cluster.wait(90)
        shutil.rmtree(paths.ray_temp, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def driver(world: World) -> Iterator[Driver]:
    driver = world.drive("ops")
    yield driver
    if driver.process.poll() is None:
        driver.stop()


@pytest.fixture
def http(world: World, driver: Driver) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{world.url}/ops-trips", timeout=30, trust_env=False) as client:
        yield client


def info(http: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = http.get("/info").json()
    return found


def test_an_answer_is_typed_and_versioned(http: httpx.Client) -> None:
    """V1: what answered, on which data, for which request."""
    answer = http.post("/predict", json=GOOD, headers={"x-request-id": "r-1"})
    assert answer.json() == {
        "model": {"name": "trips", "version": "2"},
        "data_version": "v001",
        "request_id": "r-1",
        "probability": 0.25,
        "late": False,
    }
    assert answer.headers["x-request-id"] == "r-1"
    made = http.post("/predict", json=GOOD)
    assert made.json()["request_id"] == made.headers["x-request-id"] != ""


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"carrier": "UA"}, "distance"),
        ({**GOOD, "distance": float("nan")}, "distance"),
        ({**GOOD, "distance": float("-inf")}, "distance"),
        ({**GOOD, "distance": "far"}, "distance"),
        ({**GOOD, "weather": 1}, "weather"),
    ],
)
def test_a_bad_request_names_the_field_and_the_replica_lives(
    http: httpx.Client, body: dict[str, Any], field: str
) -> None:
    before = info(http)["pid"]
    answer = http.post("/predict", content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert http.post("/predict", json=GOOD).status_code == 200
    assert info(http)["pid"] == before


def test_requests_that_arrive_together_are_computed_together(http: httpx.Client) -> None:
    """V2: more than one row per batch under concurrency, never more than the limit, and everybody gets their own."""
    before = info(http)["batching"]
    distances = [float(100 + step) for step in range(120)]
    with ThreadPoolExecutor(24) as pool:
        answers = list(
            pool.map(lambda d: http.post("/predict", json={**GOOD, "distance": d}).json(), distances)
        )
    assert [answer["probability"] for answer in answers] == [distance / 5000 for distance in distances]
    after = info(http)["batching"]
    rows, batches = after["rows"] - before["rows"], after["batches"] - before["batches"]
    assert rows == 120
    assert batches < 60, f"{batches} batches for {rows} rows"
    assert 2 <= after["largest"] <= 16


def test_a_row_that_breaks_the_model_fails_alone(http: httpx.Client) -> None:
    before = info(http)["pid"]
    rows = [{**GOOD, "carrier": "XX" if place == 7 else "UA"} for place in range(24)]
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda row: http.post("/predict", json=row), rows))
    assert [answer.status_code for answer in answers] == [500 if place == 7 else 200 for place in range(24)]
    assert answers[7].json()["code"] == "model-failed"
    assert info(http)["pid"] == before


def test_two_models_share_one_device_by_the_raylets_book(world: World, driver: Driver) -> None:
    """V3, S4: read from each replica's raylet, not from what we asked for."""
    infos = [
        httpx.get(f"{world.url}/{app}/info", timeout=30, trust_env=False).json()
        for app in driver.ready["apps"]
    ]
    assert [one["model"]["version"] for one in infos] == ["2", "1"]
    assert [(one["devices"], one["shares"]) for one in infos] == [([0], [0.5]), ([0], [0.5])]
    assert {one["ray_node_id"] for one in infos} == {world.nodes[0]}
    assert len({one["pid"] for one in infos}) == 2


def test_openapi_and_the_open_inference_protocol(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert document["components"]["schemas"]["Trip"]["additionalProperties"] is False
    assert 'href="openapi.json"' in http.get("/docs").text
    tensors = [
        {"name": "carrier", "shape": [2], "datatype": "BYTES", "data": ["UA", "DL"]},
        {"name": "distance", "shape": [2], "datatype": "FP64", "data": [500.0, 5000.0]},
    ]
    answer = http.post("/v2/models/trips/infer", json={"inputs": tensors}).json()
    assert {tensor["name"]: tensor["data"] for tensor in answer["outputs"]} == {
        "probability": [0.1, 1.0],
        "late": [False, True],
    }


def test_sigterm_takes_the_applications_away(world: World, driver: Driver) -> None:
    """What `ray job stop` does to a driver; within the 3 s that Ray leaves it."""
    assert "/ops-trips" in until(world.routes, 30, "Serve to say its routes")
    lines = driver.stop()
    assert driver.process.returncode == 0
    assert lines[-1] == {"event": "removed", "apps": ["ops-trips", "ops-trips-challenger"]}
    until(lambda: world.routes() == {}, 40, "Serve to forget the routes")


def test_sigkill_leaves_no_application_for_long(world: World, driver: Driver) -> None:
    """A SIGKILLed driver removes nothing; its replicas see that it is dead and remove themselves."""
    if driver.process.poll() is None:
        driver.stop()
    killed = world.drive("research")
    served = until(world.routes, 30, "Serve to say its routes")
    assert set(served.values()) >= {"research-trips", "research-trips-challenger"}
    os.kill(killed.process.pid, signal.SIGKILL)
    killed.process.wait(10)
    until(lambda: world.routes() == {}, 60, "the replicas to remove their applications")
