"""Step 3: research sweeps while ops trains; its quota makes the second sweep wait, and the reason is read."""

from __future__ import annotations

import json
import time
from typing import Any

from demo_steps.jobs import Submitted, ray_job
from demo_steps.run import PATIENCE_S, RESEARCH, Run

WIDE, DEEP = "sweep wide", "sweep deep"
WIDE_JOB, DEEP_JOB = "flights-sweep-wide", "flights-sweep-deep"
TRIALS = 6
PER_SWEEP = {"workers": "2", "gpus_per_worker": "1", "cpus_per_worker": "1", "max_runtime": "15m"}
POLL_S = 0.25


def start_wide(demo: Run) -> Submitted:
    demo.screen.start(WIDE, "submitting")
    return _submit(demo, WIDE, WIDE_JOB, "wide")


def start_deep(demo: Run) -> Submitted:
    """Only once the first sweep holds its devices: then this one is the one that must wait."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and not demo.jobs[WIDE_JOB].finished:
        if known(demo, WIDE_JOB).get("lease"):
            break
        time.sleep(POLL_S)
    demo.screen.queued(DEEP, "submitting")
    return _submit(demo, DEEP, DEEP_JOB, "deep")


def _submit(demo: Run, step: str, job_id: str, space: str) -> Submitted:
    command = ("python", "sweep.py", "--space", space, "--trials", str(TRIALS))
    return demo.submit(step, job_id, RESEARCH, *command, metadata=PER_SWEEP)


def known(demo: Run, job_id: str) -> dict[str, Any]:
    """The job as Moorage shows it; {} while it has not arrived."""
    import httpx

    try:
        return demo.pool.job(job_id)
    except httpx.HTTPStatusError as error:
        if error.response.status_code == 404:
            return {}
        raise


def watch_the_wait(demo: Run, train_job: str) -> None:
    """While the second sweep waits: its reason through `ray job status`, and what Ray itself has booked just then."""
    gpus = asked(demo)
    deadline = time.monotonic() + PATIENCE_S
    seen, job, printed = (0.0, 0.0), demo.jobs[DEEP_JOB], ""
    waiting: dict[str, Any] = {}
    while time.monotonic() < deadline and not job.finished:
        state = known(demo, DEEP_JOB)
        if state.get("ray_status") == "RUNNING":
            break
        if state:
            demo.screen.say(DEEP, state["message"][:160])
            waiting = state
        seen = max(seen, demo.pool.ray_gpus())
        # As soon as it waits: the first sweep may have ended before a command has started.
        if state and not _names_the_rule(printed):
            printed = ray_job(demo.pool, RESEARCH, "status", DEEP_JOB, log=demo.logs / "ray-job-status.log")
        if state and seen[0] >= gpus["held"] and _names_the_rule(printed):
            break
        time.sleep(POLL_S)
    after = demo.pool.ray_gpus()
    reason = waiting.get("reason") or {}
    expect = demo.checks.expect
    waits = "PENDING" in printed
    expect(
        WIDE,
        "the second sweep waits",
        waits,
        "PENDING" if waits else printed[-200:],
        "`ray job status` says PENDING",
    )
    told = next(
        (line.split("Status message: ")[1] for line in printed.splitlines() if "Status message: " in line), ""
    )
    names = _names_the_rule(printed)
    expect(
        WIDE,
        "the reason names the rule and what would free it",
        names,
        told or printed[-200:],
        "team, limit and the holding job",
    )
    expect(
        WIDE,
        "Ray itself shows the devices held",
        seen[0] >= gpus["held"],
        f"{seen[0]:g} of {seen[1]:g} GPUs booked in Ray",
        f"at least {gpus['held']:g}: what the running leases of both teams hold",
    )
    expect(
        WIDE,
        "it waits though the pool has room",
        seen[1] - seen[0] >= gpus["asked"],
        f"{seen[1] - seen[0]:g} GPUs free",
        f"at least the {gpus['asked']:g} it asks for",
    )
    demo.facts["queue"] = {
        "job": DEEP_JOB,
        "message": waiting.get("message", ""),
        "reason": reason,
        "ray_job_status": told,
        "ray_gpus_before": {"booked": seen[0], "total": seen[1]},
        "ray_gpus_after": {"booked": after[0], "total": after[1]},
        "train_job": train_job,
    }


def _names_the_rule(printed: str) -> bool:
    return RESEARCH in printed and "limit" in printed and WIDE_JOB in printed


def asked(demo: Run) -> dict[str, float]:
    """GPUs that the running gangs hold by their own asks, and that the waiting one asks for."""
    from demo_steps.training import GANG

    def size(metadata: dict[str, str]) -> float:
        return int(metadata["workers"]) * float(metadata["gpus_per_worker"])

    return {"held": size(GANG) + size(PER_SWEEP), "asked": size(PER_SWEEP)}


def finish_deep(demo: Run, job: Submitted) -> None:
    """Follow the second sweep from the queue to its end."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and not job.finished:
        if known(demo, job.job_id).get("ray_status") == "RUNNING":
            demo.screen.start(DEEP, "room appeared: started")
            break
        time.sleep(POLL_S * 2)
    finish(demo, job)


def finish(demo: Run, job: Submitted) -> None:
    job.wait(PATIENCE_S)
    said = job.latest("swept") or {}
    best = said.get("best", {})
    demo.screen.done(
        job.step, f"{said.get('trials')} trials, best log-loss {best.get('log_loss', float('nan')):.5f}"
    )


def check(demo: Run) -> None:
    expect, sweeps = demo.checks.expect, {}
    for step, job_id in ((WIDE, WIDE_JOB), (DEEP, DEEP_JOB)):
        said = demo.jobs[job_id].latest("swept") or {}
        table = json.loads((demo.pool.data / "runs" / job_id / "sweep.json").read_text(encoding="utf-8"))
        trials = table["trials"]
        expect(
            step,
            "all trials ended well",
            len(trials) == TRIALS and not said.get("errors"),
            f"{len(trials)} trials",
            f"{TRIALS}, no error",
        )
        most = max(trial["rungs"] for trial in trials)
        early = sum(trial["rungs"] < most for trial in trials)
        expect(step, "ASHA stopped weak trials early", early > 0, f"{early} of {len(trials)}", "at least 1")
        sweeps[job_id] = {**table, "stopped_early": early, "seconds": said.get("seconds")}
    wide, deep = demo.pool.job(WIDE_JOB), demo.pool.job(DEEP_JOB)
    waited = (deep["started_ns"] - deep["created_ns"]) / 1e9
    released = [
        e["wall_ns"] for e in demo.pool.events() if e["kind"] == "lease.released" and e["job_id"] == WIDE_JOB
    ]
    granted = [
        e["wall_ns"] for e in demo.pool.events() if e["kind"] == "lease.granted" and e["job_id"] == DEEP_JOB
    ]
    in_order = bool(released and granted) and granted[0] >= released[-1]
    after = (granted[0] - released[-1]) / 1e9 if released and granted else float("nan")
    expect(DEEP, "started when the first sweep's lease ended", in_order, f"{after:.2f} s after", "not before")
    demo.facts["sweeps"] = sweeps
    demo.facts["queue"]["waited_s"] = round(waited, 2)
    demo.facts["queue"]["first_sweep_ended_ns"] = wide["ended_ns"]
