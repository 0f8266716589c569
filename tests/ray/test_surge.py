"""V4: an inference surge takes GPUs from preemptible training of another team and gives them back, on real raylets.

It is `examples/surge` that runs: what users are told to run is what is tested. What training did is read from its own
files, what requests got from whoever sent them; the pool's events must agree.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from pools import Pool, discard, start
from waiting import until

from moorage.runtime.client import Client
from moorage.runtime.telemetry.surge import Story, draw
from moorage.train.steplog import read_steps

EXAMPLE = Path(__file__).parents[2] / "examples" / "surge"
STEPS = 250


def example() -> Any:
    spec = importlib.util.spec_from_file_location("surge_example", EXAMPLE / "surge.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["surge_example"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Two nodes of two devices, so that replicas are spread over nodes too; the example's teams and settings."""
    wishes = {
        "nodes": 2,
        "logical_gpus": 2,
        "teams": (EXAMPLE / "teams.yaml").read_text(),
        "settings": (EXAMPLE / "pool.yaml").read_text(),
    }
    running = start(wishes)
    yield running
    discard(running)


@pytest.fixture(scope="module")
def told(pool: Pool) -> dict[str, Any]:
    """The example's whole run; the endpoint is left running."""
    options = argparse.Namespace(
        home=pool.home, steps=STEPS, calm=0.3, surge=14.0, before=2.0, during=4.0, keep=True
    )
    found: dict[str, Any] = asyncio.run(example().run(options))
    return found


def endpoint(pool: Pool) -> dict[str, Any]:
    with Client.from_env(pool.home, "serving") as client:
        found: dict[str, Any] = client.endpoints()[0]
    return found


def held(pool: Pool) -> int:
    """milli-GPU that the endpoint's team has leased."""
    with Client.from_env(pool.home) as client:
        return int(
            next(one["used_milli_gpu"] for one in client.status()["teams"] if one["team"] == "serving")
        )


def routes(pool: Pool) -> set[str] | None:
    """None while Serve does not say."""
    serve = pool.record().serve
    answer = httpx.get(f"{serve}/-/routes", timeout=10, trust_env=False)
    return set(answer.json()) if answer.status_code == 200 else None


def test_training_gives_its_gpus_to_a_surge_and_gets_them_back(pool: Pool, told: dict[str, Any]) -> None:
    """Notice, checkpoint, release, replicas; then drained, given back, and training goes on where it was."""
    story = Story.of(told)
    moments = story.moments
    order = ("wanted", "notice", "checkpointed", "released", "granted", "serving", "back", "resumed")
    assert set(order) <= set(moments), f"{set(order) - set(moments)} never came"
    times = [moments[name] for name in order]
    assert times == sorted(times), dict(zip(order, times, strict=True))
    statuses = Counter(status for *_, status in told["requests"])
    assert set(statuses) == {200}, f"requests failed: {statuses}"

    steps = list(read_steps(pool.files.data / "runs" / told["training"] / "steps-rank0.jsonl"))
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1)), "no step lost, none done twice"
    assert max(line["attempt"] for line in steps) >= 2, "it was resumed"

    placed = {
        task["node"]
        for one in told["events"]
        if one["kind"] == "lease.granted" and one["job_id"] == told["endpoint"]
        for task in one["payload"]["tasks"]
        if task["milli_gpu"]
    }
    assert placed == {"node-0", "node-1"}, "replicas were on both nodes"
    sums = {at: sum(_at(steps, at) for steps in story.gpus.values()) for at, _ in story.gpus["serving"]}
    assert max(sums.values()) == 4 and max(value for _, value in story.gpus["serving"]) > 1
    figure = draw(story)
    assert "Requests a second (0 of" in figure and figure.count("<svg") == 1


def _at(steps: list[tuple[float, float]], at: float) -> float:
    return next((value for when, value in reversed(steps) if when <= at), 0.0)


def test_what_came_for_the_surge_is_gone_after_it(pool: Pool, told: dict[str, Any]) -> None:
    until(lambda: held(pool) == 1000, 60, "the leases of the drained replicas to end")
    until(lambda: routes(pool) == {"/serving-trips"}, 60, "Serve to forget them")
    scaling = endpoint(pool)["scaling"]
    (left,) = scaling["replicas"]
    assert (left["app"], left["state"], len(left["devices"])) == ("serving-trips", "SERVING", 1)
    shown = pool.moorage("endpoints", "trips")
    assert "1 replicas serve" in shown.stdout
    assert f"SERVING   serving-trips on {left['node']}/{left['devices'][0]}" in shown.stdout
    with Client.from_env(pool.home) as client:
        assert "replicas hold" not in client.logs(told["endpoint"]), "each held the device of its lease"


def test_replicas_outlive_the_control_plane_and_not_their_driver(pool: Pool, told: dict[str, Any]) -> None:
    """Each killed by SIGKILL: the one leaves everything as it is, the other's replicas and leases end."""
    module = example()
    with Client.from_env(pool.home) as admin, Client.from_env(pool.home, "serving") as client:
        requests = module.Requests(f"{admin.url}/endpoints/trips", client.token, rate=14.0)

        async def surge() -> None:
            sending = asyncio.create_task(requests.run())
            try:
                await module.until(lambda: serving(pool) >= 2, 120, "a second replica")
            finally:
                requests.ended = True
                await sending

        asyncio.run(surge())
        before = endpoint(pool)["scaling"]["replicas"]
        old = pool.process("control").pid
        os.kill(old, signal.SIGKILL)
        until(
            lambda: pool.process("control").pid != old and answers(admin), 60, "the control plane to be back"
        )
        kept = {one["lease_id"] for one in endpoint(pool)["scaling"]["replicas"]}
        assert kept and kept <= {one["lease_id"] for one in before} | {""}
        until(lambda: endpoint(pool)["scaling"]["load"], 30, "the endpoint's job to report again")
        until(lambda: held(pool) == 1000, 90, "what is not wanted any more to be given back")

        driver = next(
            one
            for one in pool.tree()
            if (line := _line(one)) and line[-1].endswith("surge/endpoint.py") and "python" in line[0]
        )
        driver.kill()
        until(lambda: held(pool) == 0, 60, "the leases to end with the attempt")
        until(lambda: routes(pool) == set(), 60, "the replica to remove its application")
        assert not endpoint(pool)["live"] and endpoint(pool)["scaling"] is None


def serving(pool: Pool) -> int:
    return sum(
        one["state"] == "SERVING" for one in (endpoint(pool)["scaling"] or {"replicas": []})["replicas"]
    )


def answers(client: Client) -> bool:
    try:
        return bool(client.status()["ray"]["reachable"])
    except Exception:
        return False


def _line(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def test_an_application_of_ones_own_stays_within_the_lease(pool: Pool) -> None:
    """Its replicas must fit, Serve's own autoscaling ends where the lease does, and it runs on the lease's node."""
    script = Path(__file__).parent / "scripts" / "own_app.py"
    with Client.from_env(pool.home, "serving") as client:
        body = {"entrypoint": f"{sys.executable} {script}", "submission_id": "own"}
        client.submit({**body, "metadata": {"workers": "1", "gpus_per_worker": "1"}})
        done = until(
            lambda: (now := client.job("own"))["state"] in ("SUCCEEDED", "FAILED") and now, 120, "it"
        )
        logs = client.logs("own")
    assert done["state"] == "SUCCEEDED", logs[-3000:]
    told = json.loads(next(line for line in logs.splitlines() if line.startswith("told "))[5:])
    granted = next(one for one in _events(pool, "own") if one["kind"] == "lease.granted")
    node = granted["payload"]["tasks"][-1]["node"]
    with Client.from_env(pool.home) as admin:
        ids = {one["name"]: one["ray_node_id"] for one in admin.status()["nodes"]}
    assert told == {"replicas": "lease-too-small", "autoscaling": ids[node], "fits": ids[node]}
    assert "Model: max_replicas 2 becomes 1" in logs


def _events(pool: Pool, job: str) -> list[dict[str, Any]]:
    with Client.from_env(pool.home) as admin:
        return admin.events(job, limit=1000)
