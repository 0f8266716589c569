"""S2 S3 S9: a running job's lease shrinks and grows on real raylets, and what runs under it follows: Train, Tune, Data.

What a job did is read from its own files; the events of the pool are compared with them.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pool_jobs import ended, events, job, logs, steps, submit, workers
from pools import Pool, discard, short_folder, start
from waiting import until

SCRIPTS = Path(__file__).parent / "scripts"
STEPS, GRACE_S = 1300, 60
TEAMS = "teams: {research: {quota: 1}, serving: {quota: 3}}"


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """One node of four devices; research owns one of them."""
    folder = short_folder()
    settings = folder / "pool.yaml"
    settings.write_text(f"preemption: {{grace_s: {GRACE_S}, least_run_s: 0}}\nelastic: {{settle_s: 2}}\n")
    running = start({"nodes": 1, "logical_gpus": 4, "teams": TEAMS, "options": ["--pool", settings]})
    yield running
    discard(running)
    settings.unlink()
    folder.rmdir()


def sizes(pool: Pool, name: str) -> list[tuple[str, int]]:
    """What was asked of a job and what its lease became, in order."""
    return [
        (one["kind"], one["payload"]["workers"])
        if one["kind"] == "resize.asked"
        else (one["kind"], len([task for task in one["payload"]["tasks"] if task["role"] == "worker"]))
        for one in events(pool, name, "resize.asked", "lease.resized", "preemption.", "resize.grace-over")
    ]


SHAPE = {"workers": "3", "min_workers": "1", "gpus_per_worker": "1", "preemptible": "true"}
SIZES = [("lease.resized", 3), ("resize.asked", 1), ("lease.resized", 1), ("lease.resized", 3)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def say_how_long(pool: Pool, name: str) -> None:
    asked, shrunk = (one["wall_ns"] for one in events(pool, name, "resize.asked", "lease.resized")[1:3])
    print(f"{name}: asked to shrunk in {(shrunk - asked) / 1e9:.1f} s")


def test_a_train_job_goes_on_smaller_and_larger_and_ends_as_if_nothing_had_been(
    pool: Pool, tmp_path: Path
) -> None:
    """Asked, saved, restarted with one worker of three, and with three again: no step lost, none done twice."""
    runs = pool.files.data / "runs" / "lent"
    command = [sys.executable, str(SCRIPTS / "lent.py"), str(STEPS), "follow"]
    submit(pool, "research", "lent", command, **SHAPE)
    first = runs / "steps-rank0.jsonl"
    until(
        lambda: len(steps(first)) >= 30 or job(pool, "lent")["ended_ns"], 180, "steps to interrupt", every=0.1
    )
    assert job(pool, "lent")["state"] == "RUNNING", logs(pool, "lent")
    assert workers(pool, "lent") == 3, "lent quota too: nobody else waited"
    submit(pool, "serving", "owner", ["sleep", "1"], workers="3", gpus_per_worker="1")
    assert ended(pool, "owner", 120)["state"] == "SUCCEEDED", logs(pool, "lent")
    done = ended(pool, "lent", 300)
    assert done["state"] == "SUCCEEDED", logs(pool, "lent")

    worlds = [json.loads(line)["world"] for line in (runs / "worlds.jsonl").read_text().splitlines()]
    assert worlds == [3, 1, 3]
    did = steps(first)
    assert [line["step"] for line in did] == list(range(1, STEPS + 1)), "no step lost, none done twice"
    starts = sorted({line["start"] for line in did})
    assert len(starts) == 3 and starts[0] == 0
    others = [line["step"] for line in steps(runs / "steps-rank1.jsonl")]
    assert others == [*range(1, starts[1] + 1), *range(starts[2] + 1, STEPS + 1)]
    spec = importlib.util.spec_from_file_location("lent", SCRIPTS / "lent.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    undisturbed = script.reference(STEPS, tmp_path / "alone")
    assert [line["loss"] for line in did] == pytest.approx(undisturbed, rel=1e-3)

    assert [(one["attempt"], one["state"]) for one in done["attempts"]] == [(1, "SUCCEEDED")]
    assert sizes(pool, "lent") == SIZES
    say_how_long(pool, "lent")


def lend_and_take_back(
    pool: Pool, name: str, command: list[str], busy: Callable[[], object]
) -> tuple[float, float]:
    """Run a job on three devices; once it is `busy` their owner takes its own back for some seconds, and the job goes
    on with one, then with three. When (Unix time) the owner ran."""
    submit(pool, "research", name, command, **SHAPE)
    until(lambda: busy() or job(pool, name)["ended_ns"], 180, f"{name} to use three devices", every=0.2)
    assert job(pool, name)["state"] == "RUNNING", logs(pool, name)
    submit(pool, "serving", f"{name}-owner", ["sleep", "4"], workers="3", gpus_per_worker="1")
    owner = ended(pool, f"{name}-owner", 150)
    assert owner["state"] == "SUCCEEDED", logs(pool, name)
    done = ended(pool, name, 300)
    assert done["state"] == "SUCCEEDED", logs(pool, name)
    assert [(one["attempt"], one["state"]) for one in done["attempts"]] == [(1, "SUCCEEDED")]
    assert sizes(pool, name) == SIZES
    say_how_long(pool, name)
    return owner["started_ns"] / 1e9, owner["ended_ns"] / 1e9


@pytest.mark.soak
def test_a_sweep_runs_as_many_trials_as_its_lease_has_workers_at_any_time(pool: Pool) -> None:
    """Trials that are too many are paused with their checkpoint and go on later: every step of every trial, once."""
    did = pool.files.data / "runs" / "sweep" / "steps.jsonl"
    command = [sys.executable, str(SCRIPTS / "sweep.py"), "40"]
    began, over = lend_and_take_back(
        pool, "sweep", command, lambda: {line["slot"] for line in lines(did)} == {0, 1, 2}
    )
    found = lines(did)
    assert {line["slot"] for line in found if began + 0.5 < line["at"] < over} == {0}, "one worker, one trial"
    assert {line["slot"] for line in found if line["at"] > over} == {0, 1, 2}, "and three again"
    of_trials: dict[int, list[int]] = {}
    for line in found:
        of_trials.setdefault(line["trial"], []).append(line["step"])
    assert of_trials == {trial: list(range(1, 41)) for trial in range(6)}, "no step lost, none done twice"
    said = json.loads(did.with_name("ended.json").read_text())
    assert said == {"errors": 0, "trials": 6}


@pytest.mark.soak
def test_a_data_jobs_actor_pool_follows_the_lease_though_it_is_busy(pool: Pool, tmp_path: Path) -> None:
    """Plain Ray Data with a pool of a fixed size: its actors go when they have done what they were given."""
    did, said = tmp_path / "lines.jsonl", tmp_path / "said.json"
    command = [sys.executable, str(SCRIPTS / "infer.py"), "1200", str(did), str(said)]
    began, over = lend_and_take_back(
        pool, "infer", command, lambda: len({line["pid"] for line in lines(did)}) == 3
    )
    found = lines(did)
    assert len({line["pid"] for line in found if began + 0.5 < line["at"] < over}) == 1, "one actor"
    assert len({line["pid"] for line in found if line["at"] > over}) == 3, "and three again"
    rows = sorted(row for line in found for row in line["rows"])
    assert rows == list(range(1200)), "no row lost, none computed twice"
    assert json.loads(said.read_text()) == [2 * row for row in range(1200)]


@pytest.mark.soak
def test_one_lease_is_prepared_on_trained_on_and_both_at_once(pool: Pool) -> None:
    """S9: the group of plain tasks and actors, Ray Data's too, leaves the lease to Ray Train's workers, and takes what
    they leave. Ray gives nobody's GPUs back by itself: with the whole lease held for tasks, training never began."""
    out = pool.home / "prepared"
    out.mkdir()
    command = [sys.executable, str(SCRIPTS / "prepares_and_trains.py"), "3", str(out)]
    ask = {"workers": "3", "gpus_per_worker": "1", "cpus_per_worker": "0.1"}
    submit(pool, "serving", "prepares-and-trains", command, **ask)
    done = ended(pool, "prepares-and-trains", 240)
    said = logs(pool, "prepares-and-trains")
    assert done["state"] == "SUCCEEDED", said
    assert json.dumps({"embedded": sum(range(96)) * 2, "computed": [3, 3, 3]}) in said, "all three at once"
    ranks = [int((out / f"rank-{rank}").read_text()) for rank in range(2)]
    assert sum(ranks) == sum(range(64)) * 2, "each row was read once"

    spans = [json.loads(path.read_text()) for path in out.glob("*.json")]
    at_once = [[one for one in spans if one["begin"] <= span["begin"] < one["end"]] for span in spans]
    assert max(map(len, at_once)) <= 3, "never more GPU time at once than was leased"
    assert any({one["what"] for one in beside} == {"train", "embed"} for beside in at_once)
    assert not events(pool, "prepares-and-trains", "guard.")


def test_what_tasks_started_from_a_task_leaves_the_lease_to_a_group(pool: Pool) -> None:
    """S9: also when the process that had started them was killed; a group that would wait for its maker is refused."""
    command = [sys.executable, str(SCRIPTS / "starts_from_tasks.py"), "3"]
    ask = {"workers": "3", "gpus_per_worker": "1", "cpus_per_worker": "0.1"}
    submit(pool, "serving", "starts-from-tasks", command, **ask)
    done = ended(pool, "starts-from-tasks", 240)
    said = logs(pool, "starts-from-tasks")
    assert done["state"] == "SUCCEEDED", said
    assert json.dumps([[[*range(6)], True, 3], ["killed", True, 3], "lease-taken"]) in said
