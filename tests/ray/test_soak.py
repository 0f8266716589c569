"""G6, S2: churn with kills. An observer that reads only Ray never sees a team above its limit or a device with two
owners; no acknowledged job is lost, none runs twice. A minute in every test run, ten in `make soak`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import churn
import pytest
from churn import LIMITS, Churn, Figures, Plan, observed
from pools import Pool, discard, short_folder, start
from waiting import until

from moorage.runtime.pool.environment import ray_environment

POOL = churn.POOL
pytestmark = pytest.mark.timeout(1500)


@pytest.fixture
def folder() -> Iterator[Path]:
    made = short_folder()
    yield made
    shutil.rmtree(made)


def judged(figures: Figures, say: pytest.CaptureFixture[str]) -> None:
    with say.disabled():
        print("\n" + "\n".join(figures.lines()))
    assert not figures.violations, figures.violations[:5]
    assert not figures.complaints, figures.complaints
    assert figures.observer["samples"] > figures.seconds, "the observer hardly looked"
    assert figures.observer["busiest"] > 1500, "the pool was hardly used: nothing was tried"


def test_a_minute_of_churn_with_kills(pool: Pool, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan(seconds=60, kills={"control": 25, "agent": 35, "worker": 12})
    figures = Churn(pool, folder, plan).run()
    judged(figures, capsys)
    assert {"control", "agent"} <= set(figures.kills), figures.kills


def test_the_observer_sees_what_moorage_does_not_allow(pool: Pool, folder: Path) -> None:
    """Plain Ray beside the front door, with Ray's own token: nobody's GPUs, and the observer says so."""
    figures = Figures(0)
    task = "ray.remote(num_gpus=1)(lambda: time.sleep(60)).remote()"
    rogue = f"import ray, time; ray.init(log_to_driver=False); held = {task}; time.sleep(60)"
    env = ray_environment(pool.files, local=True) | {"RAY_ADDRESS": pool.record().ray_address}
    with observed(pool, LIMITS, figures) as observer, (folder / "rogue.log").open("wb") as log:
        out = Path(observer.args[-1])
        driver = subprocess.Popen([sys.executable, "-c", rogue], env=env, stdout=log, stderr=log)
        try:
            until(lambda: "(nobody)" in out.read_text(encoding="utf-8"), 60, "the observer to see it")
        finally:
            driver.kill()
            driver.wait()
    assert {one["rule"] for one in figures.violations} == {"team-above-limit"}


@pytest.mark.soak
def test_ten_minutes_of_churn_with_kills(
    pool: Pool, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(line: str) -> None:
        with capsys.disabled():
            print(line, flush=True)

    kills = {"control": 30, "agent": 45, "worker": 20, "raylet": 75}
    figures = Churn(pool, folder, Plan(seconds=600, seed=2, kills=kills, infra=True), say).run()
    judged(figures, capsys)
    if os.environ.get("SOAK_JSON"):
        Path(os.environ["SOAK_JSON"]).write_text(figures.as_json(), encoding="utf-8")


RPCS = (
    "NodeManagerService.grpc_client.RequestWorkerLease",
    "NodeManagerService.grpc_client.ReturnWorkerLease",
    "CoreWorkerService.grpc_client.PushTask",
    "ray::rpc::ActorInfoGcsService.grpc_client.RegisterActor",
    "ray::rpc::ActorInfoGcsService.grpc_client.CreateActor",
    "ray::rpc::InternalKVGcsService.grpc_client.InternalKVPut",
    "ray::rpc::InternalKVGcsService.grpc_client.InternalKVGet",
    "ray::rpc::JobInfoGcsService.grpc_client.AddJob",
)


@pytest.mark.soak
def test_churn_while_rays_calls_fail(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ray's own switch: in each process up to so many calls of each kind fail before they are sent, or after they were
    answered."""
    failing = {rpc: {"num_failures": 50, "req_failure_prob": 10, "resp_failure_prob": 10} for rpc in RPCS}
    told = {"RAY_testing_rpc_failure": json.dumps(failing)}
    settings = POOL["settings"].replace(
        "{", "{start_timeout_s: 20, ", 1
    )  # Ray loses starts, and says PENDING for ever
    shaky = start({**POOL, "settings": settings, "environment": told})
    try:
        plan = Plan(seconds=60, seed=3, kills={}, outstanding=8, infra=True)
        judged(Churn(shaky, folder, plan).run(), capsys)
        assert "Inject RPC" in (shaky.files.logs / "agent.log").read_text(errors="replace")
    finally:
        discard(shaky)
