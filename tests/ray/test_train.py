"""The user's own train.py and sweep.py on real raylets under a lease (T1, T2, T3, S3): kill, resume, placement."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pools import free_port, short_folder
from waiting import until

from moorage.cluster.binding import LeaseView, WorkerView, encode
from moorage.cluster.paths import ClusterPaths
from moorage.runtime.pool.environment import ray_environment
from moorage.train import CheckpointStore
from moorage.train.steplog import read_steps

SCRIPTS = Path(__file__).resolve().parents[2] / "examples" / "flights"
STEPS, EVERY = 2400, 50


@dataclass
class World:
    """Two nodes with two logical GPUs each, a small version of the features, and a data folder."""

    environment: dict[str, str]
    nodes: list[str]
    data: Path

    def start(self, job: str, script: str, *arguments: str, milli_gpu: int = 1000) -> subprocess.Popen[str]:
        """Run a script as the job `job`, with one worker of its lease on each node."""
        workers = tuple(
            WorkerView(
                node=f"node-{i}",
                ray_node_id=node,
                devices=(0,),
                milli_gpu=milli_gpu,
                gpu_mib=0,
                milli_cpu=1000,
            )
            for i, node in enumerate(self.nodes)
        )
        lease = LeaseView(lease_id="lease-1", epoch=1, head=None, workers=workers)
        more = {
            "MOORAGE_LEASE": encode(lease),
            "MOORAGE_DATA": str(self.data),
            "MOORAGE_JOB_ID": job,
            "MOORAGE_ATTEMPT": "1",
            "MOORAGE_TEAM": "ops",
        }
        with open(self.log(job), "w") as log:
            return subprocess.Popen(
                [sys.executable, script, *arguments],
                cwd=SCRIPTS,
                env=self.environment | more,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def log(self, job: str) -> Path:
        return self.data / f"{job}.log"

    def tail(self, job: str) -> str:
        return self.log(job).read_text(errors="replace")[-4000:]

    def said(self, job: str, event: str) -> list[dict[str, Any]]:
        """What a job printed for programs, of one kind."""
        lines = self.log(job).read_text(errors="replace").splitlines()
        found = [json.loads(line.removeprefix("@moorage ")) for line in lines if line.startswith("@moorage ")]
        return [line for line in found if line["event"] == event]


def write_features(data: Path, rows: int = 6000) -> None:
    """A version directory of the feature view's format, with a signal to learn."""
    rng, folder = np.random.default_rng(0), data / "features" / "flights" / "v001"
    folder.mkdir(parents=True)
    numeric = rng.normal(size=(rows, 6)).astype(np.float32)
    month = np.sort(rng.integers(1, 8, rows)).astype(np.int32)
    carrier = rng.integers(0, 5, rows).astype(np.int32)
    label = (rng.random(rows) < 1 / (1 + np.exp(-numeric.sum(axis=1) + 1))).astype(np.float32)
    columns = {f"f{i}": numeric[:, i] for i in range(6)}
    split = np.where(month <= 6, "train", "gate")
    table = pa.table({**columns, "carrier": carrier, "month": month, "label": label, "split": split})
    pq.write_table(table, folder / "part-0.parquet")
    manifest = {"features": list(columns), "categoricals": {"carrier": {"cardinality": 5, "vocabulary": []}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    home = short_folder()
    paths = ClusterPaths(home)
    paths.make()
    paths.ray_token.write_text(secrets.token_hex(32))
    paths.ray_token.chmod(0o600)
    environment = ray_environment(paths, local=True)
    shape = ["--nodes", "2", "--logical-gpus", "2", "--cpus-per-node", "4", "--object-store-mib", "128"]
    command = [sys.executable, "-m", "moorage.cluster.local", "--home", str(home), *shape]
    with open(home / "ray.log", "w") as log:
        ray = subprocess.Popen(
            [*command, "--dashboard-port", str(free_port())],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        until(lambda: paths.ray_json.exists() or ray.poll() is not None, 150, "two raylets")
        assert ray.poll() is None, (home / "ray.log").read_text()[-4000:]
        described = json.loads(paths.ray_json.read_text())
        data = home / "data"
        write_features(data)
        nodes = [node["ray_node_id"] for node in described["nodes"]]
        yield World({**environment, "RAY_ADDRESS": described["ray_address"]}, nodes, data)
    finally:
        ray.send_signal(signal.SIGTERM)
        ray.wait(60)
        shutil.rmtree(home, ignore_errors=True)


def steps_of(world: World, job: str, rank: int) -> list[dict[str, Any]]:
    path = world.data / "runs" / job / f"steps-rank{rank}.jsonl"
    return list(read_steps(path)) if path.exists() else []


def test_a_killed_worker_resumes_from_the_last_checkpoint(world: World) -> None:
    """Headline "resume" (T2): a worker is SIGKILLed midway; the logged steps show where the run went on, and
    that it ended at the step count of a run that nobody disturbed, and did the repeated steps alike."""
    sizes = ("--steps", str(STEPS), "--checkpoint-every", str(EVERY), "--batch", "256")
    run = world.start("killed", "train.py", *sizes)
    try:
        midway = until(
            lambda: (
                [s for s in steps_of(world, "killed", 1) if s["step"] >= 2 * EVERY] or run.poll() is not None
            ),
            150,
            "steps of rank 1 to kill it at",
            every=0.01,
        )
        assert isinstance(midway, list), world.tail("killed")
        os.kill(midway[-1]["pid"], signal.SIGKILL)
        assert run.wait(240) == 0, world.tail("killed")
    finally:
        run.kill()
        run.wait(30)

    for rank in (0, 1):
        lines = steps_of(world, "killed", rank)
        starts = sorted({line["start"] for line in lines})
        assert len(starts) == 2, f"rank {rank} was started from {starts}"
        before = [line["step"] for line in lines if line["start"] == 0]
        after = [line["step"] for line in lines if line["start"] == starts[1]]
        assert before == list(range(1, len(before) + 1)) and len(before) < STEPS, "the kill came too late"
        # a checkpoint may be complete although the report of it was cut off: at most one interval is repeated
        assert starts[1] % EVERY == 0 and 0 <= len(before) - starts[1] <= EVERY
        assert after == list(range(starts[1] + 1, STEPS + 1))
        assert len({line["pid"] for line in lines}) == 2
        again = {line["step"]: line["loss"] for line in lines if line["start"] > 0}
        repeated = [line for line in lines if line["start"] == 0 and line["step"] > starts[1]]
        assert all(again[line["step"]] == pytest.approx(line["loss"], rel=1e-5) for line in repeated)
    assert world.said("killed", "trained")[0]["step"] == STEPS
    assert CheckpointStore(world.data / "checkpoints" / "killed").steps()[-1] == STEPS


def test_the_sweep_runs_every_trial_on_its_slot_and_is_tracked(world: World) -> None:
    """T3, T5: as many trials at a time as the lease has workers, on the lease's nodes; each one a tracked run."""
    sizes = ("--trials", "4", "--rungs", "2", "--steps-per-rung", "20", "--batch", "256")
    run = world.start("sweep", "sweep.py", *sizes, milli_gpu=500)
    try:
        assert run.wait(240) == 0, world.tail("sweep")
    finally:
        run.kill()
        run.wait(30)
    (swept,) = world.said("sweep", "swept")
    assert swept["trials"] == 4 and swept["errors"] == 0
    table = json.loads((world.data / "runs" / "sweep" / "sweep.json").read_text())["trials"]
    assert [row["log_loss"] for row in table] == sorted(row["log_loss"] for row in table)
    slots = {}
    for params in sorted((world.data / "ray-tune").glob("sweep-*/trial-*/params.json")):
        slots[params.parent.name] = json.loads(params.read_text())["moorage_slot"]
    assert len(slots) == 4 and set(slots.values()) == {0, 1}
    from moorage.runtime.registry import Registry, load_model

    client = Registry(world.data).client
    runs = client.search_runs([client.get_experiment_by_name("flights").experiment_id])
    trials = [run for run in runs if run.data.tags.get("moorage.job") == "sweep"]
    assert len(trials) == 4 and all(run.info.status == "FINISHED" for run in trials)
    assert all("log_loss" in run.data.metrics and "lr" in run.data.params for run in trials)
    weights, card, _ = load_model(world.data / "runs" / "sweep" / "best")
    assert weights and card["data_version"] == "v001"


def test_deepspeed_goes_on_in_the_jobs_next_attempt(world: World) -> None:
    """T1, T2: ZeRO-2 on two workers; a second attempt of the same job resumes from the sharded checkpoint."""
    for steps in (40, 60):
        sizes = ("--steps", str(steps), "--checkpoint-every", "20", "--batch", "256")
        run = world.start("zero", "train.py", "--deepspeed", *sizes)
        try:
            assert run.wait(300) == 0, world.tail("zero")
        finally:
            run.kill()
            run.wait(30)
    for rank in (0, 1):
        lines = steps_of(world, "zero", rank)
        assert [line["step"] for line in lines] == list(range(1, 61))
        assert [line["start"] for line in lines] == [0] * 40 + [40] * 20
    losses = [line["loss"] for line in steps_of(world, "zero", 0)]
    assert sum(losses[-10:]) < sum(losses[:10])
