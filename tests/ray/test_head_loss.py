"""G6: SIGKILL of a raylet under a gang, and of the GCS, with and without a store of its own. What the victims did is
read from their own files."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from diaries import Job, complaints, read
from pools import Pool, discard, free_port, short_folder, start
from waiting import until

SCRIPTS = Path(__file__).parent / "scripts"
SHAPE = {"nodes": 3, "logical_gpus": 2, "teams": "teams: {ops: {quota: 6}}"}
WITHIN_S = 120.0


@pytest.fixture
def folder() -> Iterator[Path]:
    made = short_folder()
    yield made
    shutil.rmtree(made)


def submit(pool: Pool, name: str, command: list[str], **body: Any) -> None:
    whole = {"submission_id": name, "entrypoint": "exec " + shlex.join(command), **body}

    def accepted() -> bool:
        with suppress(httpx.TransportError), pool.http("ops") as door:
            answer = door.post("/api/jobs/", json=whole, timeout=60)
            assert answer.status_code in (200, 502, 503, 504), answer.text
            return answer.status_code == 200
        return False

    until(accepted, 60, f"{name} to be acknowledged")


def plain(pool: Pool, folder: Path, name: str, beats: int) -> None:
    command = ["sh", str(SCRIPTS / "soak_job.sh"), str(folder), str(beats), "0"]
    submit(pool, name, command, entrypoint_num_gpus=1)


def gang(pool: Pool, folder: Path, name: str, workers: int, seconds: float) -> None:
    command = [sys.executable, str(SCRIPTS / "soak_gang.py"), str(folder), str(seconds)]
    metadata = {"workers": str(workers), "gpus_per_worker": "1", "cpus_per_worker": "0"}
    submit(pool, name, command, metadata=metadata)


def beats(folder: Path, name: str, attempt: int) -> int:
    return sum(line.word == "beat" and line.attempt == attempt for line in read(folder / name))


def state(pool: Pool, name: str) -> str:
    with suppress(httpx.TransportError), pool.http("ops") as door:
        return str(door.get(f"/moorage/v1/jobs/{name}").json().get("state"))
    return ""


def events(pool: Pool, name: str) -> list[dict[str, Any]]:
    with pool.http("ops") as door:
        found: list[dict[str, Any]] = door.get(
            f"/moorage/v1/jobs/{name}/events", params={"limit": 1000}
        ).json()
    return found


def status(pool: Pool) -> dict[str, Any]:
    with pool.http("ops") as door:
        found: dict[str, Any] = door.get("/moorage/v1/status").json()
    return found


def raylets(pool: Pool) -> dict[str, int]:
    """Pid of each node's raylet by the node's name, the head left out."""
    head, *others = pool.record().nodes
    assert "gcs_server" in head["processes"]
    return {node["name"]: node["processes"]["raylet"][0] for node in others}


def holding(pool: Pool, job: str) -> set[str]:
    """Nodes with devices of a job."""
    return {
        device["node"]
        for device in status(pool)["devices"]
        if job in {holder["job"] for holder in device["holders"]}
    }


def judged(pool: Pool, folder: Path, excused: dict[str, int]) -> None:
    jobs = [Job(name, ["SUCCEEDED"], state(pool, name), allowed) for name, allowed in excused.items()]
    assert complaints(jobs, {path.name: read(path) for path in folder.iterdir()}) == []


def kill_gcs(pool: Pool) -> None:
    os.kill(pool.record().nodes[0]["processes"]["gcs_server"][0], signal.SIGKILL)


@pytest.fixture
def up() -> Iterator[Callable[..., Pool]]:
    """Pools of `SHAPE` with more options of `moorage up`; all are stopped at the end."""
    pools: list[Pool] = []

    def make(*options: str) -> Pool:
        pools.append(start({**SHAPE, "options": options}))
        return pools[-1]

    yield make
    for pool in pools:
        discard(pool)


def test_a_gang_survives_its_node_and_all_survive_the_head(
    up: Callable[..., Pool], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """First a raylet under a running gang, then the GCS, which without a store takes the cluster with it."""
    pool = up()
    gang(pool, folder, "ops-gang", 4, 8)
    until(lambda: beats(folder, "ops-gang", 1) >= 2, WITHIN_S, "the gang to work")
    before = raylets(pool)
    victim = sorted(holding(pool, "ops-gang") - {"node-0"})[0]
    took = {"raylet": time.monotonic()}
    os.kill(before[victim], signal.SIGKILL)
    until(lambda: beats(folder, "ops-gang", 2) >= 1, WITHIN_S, "the gang to work again", every=0.2)
    took["raylet"] = time.monotonic() - took["raylet"]
    until(
        lambda: (now := raylets(pool)).keys() == before.keys() and now[victim] != before[victim],
        WITHIN_S,
        "the raylet to be replaced",
    )
    until(lambda: state(pool, "ops-gang") == "SUCCEEDED", WITHIN_S, "the gang to end", every=0.2)
    told = Counter((one["kind"], one.get("lease_id")) for one in events(pool, "ops-gang"))
    leases = {lease for kind, lease in told if kind == "lease.granted"}
    assert len(leases) == 2 and all(told["lease.released", lease] == 1 for lease in leases), told

    for n in range(3):
        plain(pool, folder, f"ops-{n}", 24)
    until(lambda: beats(folder, "ops-0", 1) >= 2, WITHIN_S, "a job to work")
    took["head"] = time.monotonic()
    kill_gcs(pool)
    plain(pool, folder, "ops-3", 2)  # acknowledged while there is no Ray
    until(lambda: beats(folder, "ops-0", 2) >= 1, WITHIN_S, "a job to work again", every=0.2)
    took["head"] = time.monotonic() - took["head"]
    names = [f"ops-{n}" for n in range(4)]
    until(lambda: all(state(pool, name) == "SUCCEEDED" for name in names), WITHIN_S, "all to end", every=0.3)
    judged(pool, folder, {"ops-gang": 1, "ops-0": 1, "ops-1": 1, "ops-2": 1, "ops-3": 0})
    assert pool.record().restarts["ray"] == 1
    assert all(not device["holders"] for device in status(pool)["devices"])
    with capsys.disabled():
        print("".join(f"\n  SIGKILL of the {what}: works again after {s:.1f} s" for what, s in took.items()))


@pytest.fixture
def redis() -> Iterator[str]:
    """HOST:PORT of a Redis of our own."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server")
    port, folder = free_port(), short_folder()
    flags = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with subprocess.Popen([program, *flags], stdout=subprocess.DEVNULL) as running:
        yield f"127.0.0.1:{port}"
        running.terminate()
    shutil.rmtree(folder)


@pytest.mark.parametrize("storage", ["redis", pytest.param("rocksdb", marks=pytest.mark.soak)])
def test_jobs_run_on_while_the_gcs_is_away(
    up: Callable[..., Pool],
    folder: Path,
    storage: str,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With a store, the GCS comes back and nothing is started again: neither a job, nor the cluster."""
    where = request.getfixturevalue("redis") if storage == "redis" else storage
    pool = up("--gcs-storage", where)
    gang(pool, folder, "ops-gang", 2, 20)
    plain(pool, folder, "ops-0", 30)
    until(lambda: beats(folder, "ops-0", 1) >= 2, WITHIN_S, "a job to work")
    until(lambda: beats(folder, "ops-gang", 1) >= 2, WITHIN_S, "the gang to work")
    old, ray = pool.record().nodes, pool.process("ray")
    began = time.monotonic()
    kill_gcs(pool)
    plain(pool, folder, "ops-1", 2)
    until(lambda: beats(folder, "ops-1", 1) >= 1, WITHIN_S, "a new job to work", every=0.2)
    took = time.monotonic() - began
    for name in ("ops-gang", "ops-0", "ops-1"):
        until(lambda n=name: state(pool, n) == "SUCCEEDED", WITHIN_S, f"{name} to end", every=0.3)
    judged(pool, folder, {"ops-gang": 0, "ops-0": 0, "ops-1": 0})
    now = pool.record().nodes
    assert now[0]["processes"]["gcs_server"] != old[0]["processes"]["gcs_server"]
    assert [node["ray_node_id"] for node in now] == [node["ray_node_id"] for node in old]
    assert pool.process("ray") == ray
    with capsys.disabled():
        print(f"\n  SIGKILL of the GCS on {storage}: a new job works after {took:.1f} s")
