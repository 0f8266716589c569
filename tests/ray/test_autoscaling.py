"""S6: a pool that joined a Ray cluster with an autoscaler: unmet demand becomes a node, an idle node is drained,
then goes.

The autoscaler is Ray's own (v2) with its fake provider of nodes: real raylets on this machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from diaries import read
from pools import Pool, clean_environment, discard, free_port, short_folder, start
from waiting import until

pytestmark = pytest.mark.soak
SCRIPTS = Path(__file__).parent / "scripts"
HEAD = "f" * 51 + "00000"
"""As Ray's fake provider calls the head."""
WITHIN_S = 150.0
TOKEN = "f" * 64
SETTINGS = """
autoscaling:
  idle_s: 6
  node_types:
    gpu: {devices: 2, gpu_model: L4, device_mib: 24576, cpus: 4, max_nodes: 1}
"""


def config(gcs: str) -> dict[str, Any]:
    """Ray ends an idle node by itself only after an hour: what ends one here is the pool."""
    labels = {"moorage.io/node": "fake-gpu", "moorage.io/gpu-model": "L4", "moorage.io/device-mib": "24576"}
    return {
        "cluster_name": "fake",
        "max_workers": 2,
        "idle_timeout_minutes": 60,
        "provider": {
            "type": "external",  # the fake one by its own name wants a file of defaults that Ray's wheel does not have
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": HEAD,
            "gcs_address": gcs,
        },
        "head_node_type": "ray.head.default",
        **{f"{which}setup_commands": [] for which in ("", "head_", "worker_")},
        "initialization_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
        "upscaling_speed": 1.0,
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 4}, "node_config": {}, "max_workers": 0},
            "gpu": {
                "resources": {"CPU": 4, "GPU": 2, "object_store_memory": 100 * 2**20},
                "labels": labels,
                "node_config": {},
                "min_workers": 0,
                "max_workers": 1,
            },
        },
    }


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    folder = short_folder()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def telling(folder: Path, pool: Pool) -> Iterator[None]:
    """A failure says what the autoscaler, the GCS and the pool wrote last: who asked for a node, who started none."""
    try:
        yield
    except BaseException as error:
        for name in (
            "monitor.log",
            "monitor.out",
            "monitor.err",
            "events/event_AUTOSCALER.log",
            "gcs_server.out",
        ):
            for path in (folder / "ray").glob(f"session_2*/logs/{name}"):
                lines = path.read_text(errors="replace").splitlines()
                said = [line for line in lines if "Dropping the empty legacy field" not in line]
                error.add_note("\n".join([f"--- {name}", *said[-80:]]))
        error.add_note(pool.logs())
        raise


@pytest.fixture
def cluster(ray_folder: Path) -> Iterator[str]:
    """HOST:PORT of the GCS of a Ray cluster of one head without GPUs, and an autoscaler."""
    folder, port = ray_folder, free_port()
    gcs = f"127.0.0.1:{port}"
    (folder / "autoscaler.json").write_text(json.dumps(config(gcs)))
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    command += ["--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=4", "--num-gpus=0"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={free_port()}", f"--temp-dir={folder}/ray"]
    command += ["--object-store-memory=104857600", f"--autoscaling-config={folder}/autoscaler.json"]
    more = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_worker_register_timeout_seconds": "300",
    }
    environment = clean_environment() | more
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    with (folder / "log").open("wb") as log:
        ray = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        until(
            lambda: "Ray runtime started" in (folder / "log").read_text() or ray.poll() is not None,
            90,
            "Ray to start",
        )
        assert ray.poll() is None, (folder / "log").read_text()
        yield gcs
    finally:
        tree = psutil.Process(ray.pid).children(recursive=True) if ray.poll() is None else []
        ray.terminate()
        with suppress(subprocess.TimeoutExpired):
            ray.wait(timeout=20)
        for process in tree:
            with suppress(psutil.Error):
                process.kill()
        ray.kill()
        ray.wait()


@pytest.fixture
def pool(cluster: str) -> Iterator[Pool]:
    wishes = {"teams": "teams: {ops: {limit: 4}}", "settings": SETTINGS, "options": ["--address", cluster]}
    running = start({**wishes, "environment": {"RAY_AUTH_TOKEN": TOKEN}})
    yield running
    discard(running)


def get(pool: Pool, path: str) -> Any:
    with pool.http("admin") as door:
        return door.get(f"/moorage/v1/{path}", params={"limit": 1000} if "events" in path else None).json()


def nodes(pool: Pool) -> dict[str, bool]:
    return {node["name"]: node["alive"] for node in get(pool, "status")["nodes"]}


def submit(pool: Pool, folder: Path, name: str, gpus: int) -> httpx.Response:
    body = {
        "submission_id": name,
        "entrypoint": f"exec sh {SCRIPTS / 'soak_job.sh'} {folder} 4 0",
        "entrypoint_num_gpus": gpus,
    }
    with pool.http("ops") as door:
        return door.post("/api/jobs/", json=body, timeout=120)


def test_a_node_comes_for_who_waits_and_goes_when_nobody_does(
    pool: Pool, ray_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with telling(ray_folder, pool):
        took = comes_and_goes(pool)
    with capsys.disabled():
        print("".join(f"\n  {what}: {seconds:.1f} s" for what, seconds in took.items()))


def comes_and_goes(pool: Pool) -> dict[str, float]:
    """How long a node took to come and to go, in seconds."""
    folder = short_folder()
    assert list(nodes(pool).values()) == [True], "only the head, which has no GPU"
    assert submit(pool, folder, "too-much", 3).status_code == 422, "no node type has so many"
    took = {"from the submission to the first line of the job, with a new node": time.monotonic()}
    assert submit(pool, folder, "ops-1", 2).status_code == 200

    def asked() -> str:
        reason = get(pool, "jobs/ops-1")["reason"] or {}
        return str(reason.get("text")) if reason.get("code") == "node-asked" else ""

    assert "1 node of type gpu" in until(asked, 60, "the reason to say so")
    until(lambda: read(folder / "ops-1"), WITHIN_S, "the job to run", every=0.2)
    now = time.monotonic()
    took = {what: now - began for what, began in took.items()}
    assert nodes(pool)["fake-gpu"]
    until(lambda: get(pool, "jobs/ops-1")["state"] == "SUCCEEDED", 60, "the job to end", every=0.2)
    began = time.monotonic()
    until(lambda: not nodes(pool)["fake-gpu"], WITHIN_S, "the node to go", every=0.2)
    took["from the end of the job to the end of the node (6 s of it idle)"] = time.monotonic() - began
    told = [one for one in get(pool, "events") if one["payload"].get("node") == "fake-gpu"]
    kinds = [one["kind"] for one in told]
    assert kinds.index("node.up") < kinds.index("node.drained") < kinds.index("node.down"), kinds
    until(
        lambda: not any(node.get("drained") for node in get(pool, "status")["nodes"]),
        30,
        "the drain to be over",
    )
    shutil.rmtree(folder)
    return took
