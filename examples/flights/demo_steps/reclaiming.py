"""A job trains on what others lend; the owner wants it back. The borrower saves, leaves, and goes on with less.

What happened is read from the borrower's own step log, and compared with the pool's events.
"""

from __future__ import annotations

import time
from typing import Any

from demo_steps import sections
from demo_steps.jobs import Submitted
from demo_steps.run import BATCH, OPS, PATIENCE_S, Run
from demo_steps.training import steps_of, thin
from moorage.runtime.telemetry import charts
from moorage.runtime.telemetry.charts import Curve
from moorage.runtime.telemetry.report import Section

STEP = "reclaim"
JOB, OWNER_JOB = "flights-borrowed", "flights-own-quota"
ASKED = {
    "workers": "6",
    "min_workers": "2",
    "gpus_per_worker": "1",
    "cpus_per_worker": "1",
    "preemptible": "true",
}
OWN = {"workers": "4", "gpus_per_worker": "1", "cpus_per_worker": "1"}
BEGUN, OWNER_S, STAYS = 50, "4", "900"
"""Steps of the borrower after which the owner comes, how long it stays, and the step that the borrower does not pass
before it was told: on a slow machine it would have ended."""
POLL_S = 0.1


def run(demo: Run) -> None:
    demo.screen.start(STEP, "submitting")
    borrower = demo.submit(STEP, JOB, BATCH, "python", "borrowed.py", "--stay-at", STAYS, metadata=ASKED)
    _until_begun(demo, borrower)
    owner = demo.submit(STEP, OWNER_JOB, OPS, "sleep", OWNER_S, metadata=OWN)
    owner.wait(PATIENCE_S)
    borrower.wait(PATIENCE_S)
    check(demo, borrower)
    made = demo.facts["reclaim"]
    sizes = " to ".join(str(one["workers"]) for one in made["attempts"])
    demo.screen.done(
        STEP, f"left at step {made['left_at']} of {made['steps']}, went on there; {sizes} workers"
    )


def _until_begun(demo: Run, job: Submitted) -> None:
    folder, deadline = demo.pool.data / "runs" / JOB, time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and not job.finished:
        if folder.exists() and len(steps_of(folder).get(0, ())) >= BEGUN:
            return
        time.sleep(POLL_S)
    raise job.failure("never began to train")


def check(demo: Run, job: Submitted) -> None:
    lines = steps_of(demo.pool.data / "runs" / JOB)[0]
    total = int((job.latest("trained") or {}).get("step", 0))
    first, second = ([line for line in lines if line["attempt"] == number] for number in (1, 2))
    left_at = len(first)
    starts = {line["start"] for line in second}
    events = [one for one in demo.pool.events() if one["job_id"] == JOB]
    told = [one for one in events if one["kind"].startswith("preemption.")]
    story = [(one["kind"].removeprefix("preemption."), one["payload"].get("step")) for one in told]
    expect = demo.checks.expect
    expect(
        STEP, "told to leave midway", BEGUN <= left_at < total, f"step {left_at} of {total}", "before the end"
    )
    expect(
        STEP,
        "no step was lost and none done twice",
        [line["step"] for line in lines] == list(range(1, total + 1)),
        f"{len(lines)} steps logged, {len({line['step'] for line in lines})} different",
        f"each of 1..{total} once",
    )
    expect(
        STEP, "it went on at the step that it left", starts == {left_at}, sorted(starts), f"from {left_at}"
    )
    expect(
        STEP,
        "notice, checkpoint, release",
        story == [("notice", None), ("checkpointed", left_at), ("leaving", left_at)],
        "; ".join(f"{kind}" + (f" at step {step}" if step is not None else "") for kind, step in story),
        f"in this order, at step {left_at}, and no kill",
    )
    attempts = [one["state"] for one in demo.pool.job(JOB)["attempts"]]
    expect(
        STEP,
        "the attempt that left is no failure",
        attempts == ["PREEMPTED", "SUCCEEDED"],
        ", ".join(attempts),
        "PREEMPTED, SUCCEEDED",
    )
    times = {one["kind"]: one["wall_ns"] / 1e9 for one in told}
    demo.facts["reclaim"] = {
        "job": JOB,
        "owner": OWNER_JOB,
        "rule": told[0]["payload"]["text"] if told else "",
        "steps": total,
        "left_at": left_at,
        "noticed_at": times.get("preemption.notice", 0.0),
        "seconds_to_leave": round(times.get("preemption.leaving", 0) - times.get("preemption.notice", 0), 2),
        "seconds_until_back": round(second[0]["time"] - first[-1]["time"], 2) if first and second else None,
        "attempts": _sizes(job),
        "trace": thin(lines),
    }


def _sizes(job: Submitted) -> list[dict[str, Any]]:
    """Attempt -> workers of its lease, as the job itself said."""
    return [
        {"attempt": one["attempt"], "workers": one["workers"], "from_step": one["from_step"]}
        for one in job.events
        if one["event"] == "borrows"
    ]


def section(found: dict[str, Any]) -> Section:
    made = found["reclaim"]
    left_at = made["left_at"]
    points, began = made["trace"], made["trace"][0]["time"]
    curves = []
    for number, pid in enumerate(dict.fromkeys(point["pid"] for point in points), 1):
        mine = [point for point in points if point["pid"] == pid]
        x, y = [p["time"] - began for p in mine], [p["step"] for p in mine]
        curves.append(Curve(name=f"attempt {number}", x=x, y=y))
    sizes = " and then ".join(f"{one['workers']}" for one in made["attempts"])
    return Section(
        title="What is lent comes back",
        parts=[
            f"A preemptible job trains on GPUs that others leave idle ({sizes} of them). While it runs, "
            f"{made['rule']}: it is told to leave, saves step {left_at} of {made['steps']}, and is gone "
            f"{made['seconds_to_leave']:g} s after the notice. Its next attempt takes step {left_at + 1} "
            f"{made['seconds_until_back']:g} s after the last one: no step is lost, and none is done twice.",
            sections.picture(
                charts.progress,
                curves,
                at=made["noticed_at"] - began,
                caption="Optimiser steps over seconds, as the job itself logged them. Dashed: the notice.",
            ),
        ],
    )
