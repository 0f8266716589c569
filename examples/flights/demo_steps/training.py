"""Step 2: DDP on two workers; one is SIGKILLed midway and the run goes on from its last checkpoint.

What happened is read from the files the workers wrote, not from anybody's database.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil

from demo_steps.checks import StepFailed
from demo_steps.jobs import Submitted
from demo_steps.run import OPS, PATIENCE_S, Run
from moorage.runtime.pool.home import PoolHome, read_pool
from moorage.train.checkpoint import CheckpointStore
from moorage.train.steplog import read_steps

STEP, DEEPSPEED_STEP = "train", "deepspeed"
JOB, DEEPSPEED_JOB = "flights-train", "flights-deepspeed"
GANG = {"workers": "2", "gpus_per_worker": "1", "cpus_per_worker": "1"}
CHECKPOINT_EVERY = 50
KILL_FROM, KILL_BEFORE = 0.2, 0.8
"""The part of the run in which the worker is killed."""
CLEAR_AFTER, CLEAR_BEFORE = 8, 15
"""Steps from a checkpoint to the kill and from the kill to the next one: none may be half written just then."""
POLL_S = 0.1


def start(demo: Run) -> Submitted:
    demo.screen.start(STEP, "submitting")
    command = ("python", "train.py", "--checkpoint-every", str(CHECKPOINT_EVERY))
    return demo.submit(STEP, JOB, OPS, *command, metadata=GANG)


def start_deepspeed(demo: Run) -> Submitted:
    demo.screen.start(DEEPSPEED_STEP, "submitting")
    command = ("python", "train.py", "--deepspeed", "--epochs", "1")
    return demo.submit(DEEPSPEED_STEP, DEEPSPEED_JOB, OPS, *command, metadata=GANG)


def steps_of(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """rank -> the lines its processes wrote, in order."""
    found = {}
    for path in sorted(folder.glob("steps-rank*.jsonl")):
        lines = list(read_steps(path))
        if lines:
            found[int(lines[0]["rank"])] = lines
    return found


def total_of(folder: Path) -> int:
    """Optimiser steps the run is to have, as its workers wrote it; 0 before they did."""
    return max((int(path.name.removeprefix("total-")) for path in folder.glob("total-*")), default=0)


def kill_midway(demo: Run, job: Submitted) -> dict[str, Any]:
    """Wait for the middle of the run and SIGKILL the worker of the highest rank. What was killed, and when."""
    folder, deadline = demo.pool.data / "runs" / job.job_id, time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and not job.finished:
        total, lines = total_of(folder), steps_of(folder) if folder.exists() else {}
        if total and len(lines) > 1:
            rank = max(lines)
            last = lines[rank][-1]
            if last["step"] >= KILL_BEFORE * total:
                raise job.failure("was past the middle before it could be looked at")
            clear = last["step"] > max(KILL_FROM * total, CHECKPOINT_EVERY) and _is_clear(last["step"])
            worker = the_worker(demo, int(last["pid"])) if clear else None
            held = worker and _held(worker, folder, rank)
            if worker and held:
                last = held
                os.kill(worker.pid, signal.SIGKILL)
                at = time.time()
                sealed = CheckpointStore(demo.pool.data / "checkpoints" / job.job_id).steps()
                demo.screen.say(
                    STEP, f"worker {rank} (process {worker.pid}) killed at step {last['step']} of {total}"
                )
                return {
                    "rank": rank,
                    "pid": worker.pid,
                    "at": at,
                    "step": last["step"],
                    "total": total,
                    "checkpoint": max(sealed, default=0),
                }
        time.sleep(POLL_S)
    raise job.failure("never reached the middle: no worker was killed")


def _held(worker: psutil.Process, folder: Path, rank: int) -> dict[str, Any] | None:
    """Stop the worker, and say the step that it is at; None, and it goes on, where that is too near to a checkpoint.
    Between a look and the kill it would go on, into a checkpoint perhaps."""
    worker.suspend()
    try:
        last = steps_of(folder)[rank][-1]
    except BaseException:
        worker.resume()
        raise
    if _is_clear(last["step"]):
        return last
    worker.resume()
    return None


def _is_clear(step: int) -> bool:
    """Whether a step is far enough from both of its checkpoints."""
    return CLEAR_AFTER <= step % CHECKPOINT_EVERY <= CHECKPOINT_EVERY - CLEAR_BEFORE


def the_worker(demo: Run, pid: int) -> psutil.Process:
    """The process, if it is a Ray worker below a raylet of this pool: nothing else may ever be killed."""
    process = psutil.Process(pid)
    name = " ".join(process.cmdline())
    raylet = next((p for p in process.parents() if p.name() == "raylet"), None)
    # the raylet's own command line names its session folder, which lies in (or belongs to) this pool
    ours = raylet is not None and any(p.pid in supervised(demo) for p in [raylet, *raylet.parents()])
    if not name.startswith("ray::") or process.uids().real != os.getuid() or not ours:
        raise StepFailed(STEP, f"process {pid} ({name[:60]!r}) is not a Ray worker of this pool: not killed")
    return process


def supervised(demo: Run) -> set[int]:
    """The process ids that `moorage up` recorded."""
    record = read_pool(PoolHome(demo.pool.home))
    return {process.pid for process in record.processes} if record else set()


def check(demo: Run, job: Submitted, killed: dict[str, Any]) -> None:
    """The whole story from the steps the workers logged."""
    folder = demo.pool.data / "runs" / job.job_id
    lines, total = steps_of(folder), killed["total"]
    mine = lines[killed["rank"]]
    dead = [line for line in mine if line["pid"] == killed["pid"]]
    after = [line for line in mine if line["pid"] != killed["pid"] and line["time"] > killed["at"]]
    resumed_at = after[0]["start"] if after else None
    starts = {rank: since(of_rank, killed["at"]) for rank, of_rank in lines.items()}
    expect = demo.checks.expect
    last_step = dead[-1]["step"]
    expect(
        STEP,
        "killed midway",
        last_step < KILL_BEFORE * total,
        f"step {last_step} of {total}",
        f"before {KILL_BEFORE:.0%} of the run",
    )
    expect(
        STEP,
        "another process went on",
        bool(after),
        f"{killed['pid']} -> {after[0]['pid'] if after else 'nobody'}",
        "a new process id",
    )
    # a step is logged only after the checkpoint before it was written: the lines say which one was the last
    last_checkpoint = (last_step - 1) // CHECKPOINT_EVERY * CHECKPOINT_EVERY
    expect(
        STEP,
        "the last checkpoint is known",
        killed["checkpoint"] == last_checkpoint > 0,
        f"step {killed['checkpoint']} was the newest in the store at the kill",
        f"step {last_checkpoint}: every {CHECKPOINT_EVERY}, the dead worker had logged {last_step}",
    )
    expect(
        STEP,
        "resumed from the last checkpoint",
        len(starts) > 1 and set(starts.values()) == {(killed["checkpoint"], killed["checkpoint"] + 1)},
        "; ".join(f"rank {rank}: {told_start(start)}" for rank, start in sorted(starts.items())),
        f"each rank from step {killed['checkpoint']}, with step {killed['checkpoint'] + 1} next",
    )
    finals = {rank: of_rank[-1]["step"] for rank, of_rank in lines.items()}
    expect(STEP, "same final step count", set(finals.values()) == {total}, finals, f"{total} on each rank")
    gaps = {rank: gap(of_rank, total) for rank, of_rank in lines.items()}
    expect(STEP, "no step is missing", not any(gaps.values()), gaps, f"each of 1..{total} logged")
    repeated = None if resumed_at is None else last_step - resumed_at
    back = after[0]["time"] - killed["at"] if after else float("nan")
    model = folder / "model" / "model.safetensors"
    expect(
        STEP,
        "the model was left",
        model.is_file(),
        model.name if model.is_file() else "no file",
        "model.safetensors",
    )
    demo.facts["train"] = {
        "job": job.job_id,
        "steps": total,
        "ranks": len(lines),
        "killed": {**killed, "step": last_step},
        "resumed_from": resumed_at,
        "repeated_steps": repeated,
        "missing_steps": sum(gaps.values()),
        "seconds_until_back": round(back, 2),
        "final_loss": mine[-1]["loss"],
        "trace": {rank: thin(of_rank) for rank, of_rank in lines.items()},
    }


def since(lines: list[dict[str, Any]], at: float) -> tuple[int, int] | None:
    """(step resumed from, first step done) of the process that logged first after `at` and had not before."""
    before = {line["pid"] for line in lines if line["time"] <= at}
    new = next((line for line in lines if line["time"] > at and line["pid"] not in before), None)
    return None if new is None else (new["start"], new["step"])


def told_start(start: tuple[int, int] | None) -> str:
    return "nobody went on" if start is None else f"from step {start[0]}, then {start[1]}"


def gap(lines: list[dict[str, Any]], total: int) -> int:
    """How many of the steps 1..total were never logged."""
    return total - len({line["step"] for line in lines} & set(range(1, total + 1)))


def thin(lines: list[dict[str, Any]], most: int = 150) -> list[dict[str, Any]]:
    """At most about `most` points per process, its first and last kept, for the picture."""
    kept: list[dict[str, Any]] = []
    for _, group in itertools.groupby(lines, key=lambda line: line["pid"]):
        of_process = list(group)
        stride = max(1, len(of_process) // most)
        chosen = of_process[::stride]
        if chosen[-1] is not of_process[-1]:
            chosen.append(of_process[-1])
        kept += [
            {"step": c["step"], "time": c["time"], "pid": c["pid"], "loss": round(c["loss"], 5)}
            for c in chosen
        ]
    return kept


def check_deepspeed(demo: Run, job: Submitted) -> None:
    folder = demo.pool.data / "runs" / job.job_id
    lines, total = steps_of(folder), total_of(folder)
    finals = {rank: of_rank[-1]["step"] for rank, of_rank in lines.items()}
    expect = demo.checks.expect
    expect(
        DEEPSPEED_STEP,
        "all steps on each rank",
        set(finals.values()) == {total} and total > 0,
        finals,
        f"{total}",
    )
    losses = [line["loss"] for line in lines.get(0, [])]
    tenth = max(1, len(losses) // 10)
    first, last = sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth
    expect(
        DEEPSPEED_STEP,
        "the loss fell",
        last < first,
        f"{first:.4f} -> {last:.4f}",
        "last tenth below first tenth",
    )
    demo.facts["deepspeed"] = {"job": job.job_id, "steps": total, "first_loss": first, "last_loss": last}
