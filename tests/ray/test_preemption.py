"""S2, S3: lent quota is taken back from a running Train job, which goes on where it was; and from one that will not go.

What a job did is read from its own files; the events of the pool are compared with them.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from pool_jobs import ended, events, job, logs, steps, submit
from pools import Pool, discard, short_folder, start
from waiting import until

from moorage.train import CheckpointStore

SCRIPT = Path(__file__).parent / "scripts" / "lent.py"
STEPS, GRACE_S = 500, 40
TEAMS = "teams: {research: {quota: 1}, serving: {quota: 3}}"


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """One node of four devices; research owns one of them."""
    folder = short_folder()
    settings = folder / "pool.yaml"
    settings.write_text(f"preemption: {{grace_s: {GRACE_S}, least_run_s: 0}}\n")
    wishes = {"nodes": 1, "logical_gpus": 4, "teams": TEAMS, "options": ["--pool", settings]}
    running = start(wishes)
    yield running
    discard(running)
    settings.unlink()
    folder.rmdir()


def test_a_train_job_gives_lent_gpus_back_and_ends_as_if_nothing_had_been(pool: Pool, tmp_path: Path) -> None:
    """Notice, checkpoint, release: no step lost, none done twice; the next attempt has two workers of three."""
    runs = pool.files.data / "runs" / "lent"
    submit(
        pool,
        "research",
        "lent",
        [sys.executable, str(SCRIPT), str(STEPS)],
        workers="3",
        min_workers="2",
        gpus_per_worker="1",
        preemptible="true",
    )
    until(
        lambda: len(steps(runs / "steps-rank0.jsonl")) >= 30 or job(pool, "lent")["ended_ns"],
        180,
        "steps to interrupt",
        every=0.1,
    )
    assert job(pool, "lent")["state"] == "RUNNING", logs(pool, "lent")
    seen = tmp_path / "owner.json"
    code = f"import os, time; open({str(seen)!r}, 'w').write(os.environ['MOORAGE_LEASE']); time.sleep(3)"
    submit(pool, "serving", "owner", [sys.executable, "-c", code], workers="2", gpus_per_worker="1")
    told = until(lambda: events(pool, "lent", "preemption."), 30, "the notice")[0]
    assert told["payload"]["for_job"] == "owner" and told["payload"]["rule"] == "reclaim"
    assert ended(pool, "owner", 120)["state"] == "SUCCEEDED", logs(pool, "owner")
    done = ended(pool, "lent", 240)
    assert done["state"] == "SUCCEEDED", logs(pool, "lent")

    taken = steps(runs / "steps-rank0.jsonl")
    first = [line for line in taken if line["attempt"] == 1]
    second = [line for line in taken if line["attempt"] == 2]
    left_at = len(first)
    assert 30 <= left_at < STEPS, "it was told while it ran"
    assert [line["step"] for line in taken] == list(range(1, STEPS + 1)), "no step lost, none done twice"
    assert {line["start"] for line in second} == {left_at}
    worlds = [json.loads(line) for line in (runs / "worlds.jsonl").read_text().splitlines()]
    assert worlds == [{"attempt": 1, "world": 3}, {"attempt": 2, "world": 2}]
    of_ranks = [[line["step"] for line in steps(runs / f"steps-rank{rank}.jsonl")] for rank in (1, 2)]
    assert of_ranks == [list(range(1, STEPS + 1)), list(range(1, left_at + 1))]
    for rank in (0, 1, 2):
        heard = (runs / f"heard-{rank}-1").read_text()
        assert "takes back quota" in heard, f"rank {rank} heard {heard}"
    assert CheckpointStore(runs / "checkpoints").steps()[-1] == STEPS

    spec = importlib.util.spec_from_file_location("lent", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    undisturbed = script.reference(STEPS, tmp_path / "alone")
    assert [line["loss"] for line in taken] == pytest.approx(undisturbed, rel=1e-3)

    attempts = [(one["attempt"], one["state"]) for one in done["attempts"]]
    assert attempts == [(1, "PREEMPTED"), (2, "SUCCEEDED")]
    said = [
        (one["kind"].removeprefix("preemption."), one["payload"].get("step"))
        for one in events(pool, "lent", "preemption.")
    ]
    assert said == [("notice", None), ("checkpointed", left_at), ("leaving", left_at)]
    assert [one["kind"] for one in events(pool, "owner", "preemption.")] == ["preemption.promised"]
    assert len(json.loads(seen.read_text())["workers"]) == 2


def test_who_ignores_the_notice_is_killed_after_the_grace_and_queued_again(
    pool: Pool, tmp_path: Path
) -> None:
    """SIGTERM does not help either: Ray's SIGKILL does. Nothing else on the pool is touched."""
    mark = tmp_path / "pids"
    code = (
        "import os, signal, time; signal.signal(15, signal.SIG_IGN); "
        f"open({str(mark)!r}, 'a').write(f'{{os.getpid()}}\\n'); time.sleep(9e4)"
    )
    submit(pool, "serving", "bystander", ["sleep", "900"], workers="1", gpus_per_worker="1")
    submit(
        pool,
        "research",
        "stubborn",
        [sys.executable, "-c", code],
        workers="3",
        gpus_per_worker="1",
        preemptible="true",
    )
    until(lambda: mark.exists() and mark.read_text().endswith("\n"), 60, "the job to run")
    until(lambda: job(pool, "stubborn")["state"] == "RUNNING", 30, "the pool to see it")
    submit(pool, "serving", "owner-2", ["sleep", "2"], workers="2", gpus_per_worker="1")
    until(lambda: events(pool, "stubborn", "preemption."), 30, "the notice")
    pid = int(mark.read_text())
    shown = pool.moorage("why", "stubborn")
    assert "owner-2" in shown.stdout and "takes back quota" in shown.stdout, shown.stdout + shown.stderr
    waits = pool.moorage("why", "owner-2")
    assert "stubborn" in waits.stdout and "room is being made" in waits.stdout, waits.stdout + waits.stderr
    assert psutil.pid_exists(pid) and job(pool, "stubborn")["state"] == "PREEMPTING"
    assert ended(pool, "owner-2", GRACE_S + 60)["state"] == "SUCCEEDED"
    until(lambda: not psutil.pid_exists(pid), 20, "the first attempt's process to be gone")
    notice, over = events(pool, "stubborn", "preemption.")
    assert over["kind"] == "preemption.grace-over"
    assert over["wall_ns"] - notice["wall_ns"] >= GRACE_S * 10**9, "not before its grace was over"
    until(lambda: len(mark.read_text().split()) == 2, 60, "its second attempt")
    until(lambda: job(pool, "stubborn")["state"] == "RUNNING", 30, "the pool to see it")
    assert job(pool, "bystander")["attempt"] == 1 and job(pool, "bystander")["state"] == "RUNNING"
    for name, team in (("stubborn", "research"), ("bystander", "serving")):
        assert pool.ray_job(team, "stop", name).returncode == 0
    assert ended(pool, "stubborn", 60)["state"] == "STOPPED"
    assert [one["state"] for one in job(pool, "stubborn")["attempts"]] == ["PREEMPTED", "STOPPED"]
