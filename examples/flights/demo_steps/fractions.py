"""Fractions: six actors of 0.6 GPU, in plain Ray code, run all at once, each on the device that the plan named."""

from __future__ import annotations

from typing import Any

from demo_steps.run import BATCH, PATIENCE_S, Run

STEP, JOB = "fractions", "six-models"
ASKED = {"workers": "6", "gpus_per_worker": "0.6", "cpus_per_worker": "0.1"}


def run(demo: Run) -> None:
    demo.screen.start(STEP, "submitting")
    job = demo.submit(STEP, JOB, BATCH, "python", "fractional.py", metadata=ASKED)
    job.wait(PATIENCE_S)
    check(demo, job.latest("placed") or {})
    made = demo.facts["fractions"]
    demo.screen.done(
        STEP, f"{made['running']} models of {made['gpu']} GPU at once, {made['devices']} devices"
    )


def check(demo: Run, said: dict[str, Any]) -> None:
    running = said.get("running", [])
    names = {node["ray_node_id"]: node["name"] for node in demo.pool.get("/moorage/v1/status")["nodes"]}
    ran = sorted((names.get(node, node), device) for node, devices in running for device in devices)
    granted = [one for one in demo.pool.events() if (one["job_id"], one["kind"]) == (JOB, "lease.granted")]
    tasks = granted[0]["payload"]["tasks"] if granted else []
    planned = sorted((task["node"], device) for task in tasks for device in task["devices"])
    expect, count = demo.checks.expect, int(ASKED["workers"])
    expect(
        STEP,
        "all of them ran at once",
        len(running) == count and said.get("hanging") == 0,
        f"{len(running)} of {count}",
        "Ray alone may leave two waiting for ever",
    )
    expect(
        STEP,
        "each on the device that the plan named",
        len(ran) == count and ran == planned,
        ", ".join(f"{node}/{device}" for node, device in ran),
        ", ".join(f"{node}/{device}" for node, device in planned),
    )
    demo.facts["fractions"] = {
        "job": JOB,
        "running": len(running),
        "gpu": float(ASKED["gpus_per_worker"]),
        "devices": len(set(ran)),
        "seconds": said.get("seconds"),
    }
