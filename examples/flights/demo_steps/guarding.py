"""The guard: a driver takes a GPU past the front door while ops's features are made; it is warned about and stopped.

What it held and holds is read from Ray itself, what became of it from its own file.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from demo_steps.checks import StepFailed
from demo_steps.run import Run
from moorage.cluster.paths import ClusterPaths
from moorage.runtime.pool.environment import ray_environment

STEP = "guard"
SCRIPT = Path(__file__).resolve().parents[1] / "rogue.py"
PATIENCE_S = 90.0
POLL_S = 0.1


def run(demo: Run) -> None:
    """Let the rogue in, watch what happens to it, and check it. Ends its driver in any case."""
    demo.screen.start(STEP, "a driver connects straight to Ray and takes a GPU")
    said, log = demo.out / "rogue.txt", demo.logs / "rogue.log"
    said.unlink(missing_ok=True)
    environment = ray_environment(ClusterPaths(demo.pool.home), local=True)
    with log.open("wb") as out:
        driver = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(said)],
            env=environment | {"RAY_ADDRESS": str(demo.pool.record["ray_address"])},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        _until(demo, lambda: _lines(said), "the rogue to hold a GPU")
        booked = _until(demo, lambda: demo.pool.ray_gpus()[0], "Ray to have it booked")
        warned = _until(demo, lambda: _finding(demo, "WARNED", "STOPPING", "STOPPED"), "the guard to warn")
        demo.screen.say(STEP, warned["message"])
        stopped = _until(demo, lambda: _finding(demo, "STOPPED"), "the guard to stop it")
        _until(demo, lambda: len(_lines(said)) > 1, "the rogue to notice")
        _until(demo, lambda: demo.pool.ray_gpus()[0] == 0, "Ray to have its GPU free")
    finally:
        driver.kill()
        driver.wait()
    _check(demo, booked, stopped, _lines(said))


def _check(demo: Run, booked: float, stopped: dict[str, Any], said: list[str]) -> None:
    expect, found = demo.checks.expect, demo.pool.get("/moorage/v1/guard")["findings"]
    warned_s = (stopped["ended_ns"] - stopped["warned_ns"]) / 1e9
    expect(
        STEP,
        "Ray had the rogue's GPU booked, and has it free again",
        booked == 1,
        f"{booked:g}, then 0 booked",
        "1, then 0",
    )
    expect(
        STEP,
        "it was warned about, then exactly its actor was stopped",
        (stopped["kind"], stopped["target"], said[1:]) == ("no-lease", "actor", ["ActorDiedError"])
        and stopped["warned_ns"] < stopped["ended_ns"],
        f"{stopped['kind']}, {stopped['target']}, {', '.join(said)}, {warned_s:.1f} s after the warning",
        "no-lease, actor, ActorDiedError",
    )
    demo.facts["guard"] = {"message": stopped["message"], "warned_s": round(warned_s, 3)}
    demo.screen.done(STEP, f"stopped {warned_s:.0f} s after the warning; {len(found)} finding")


def check_others(demo: Run) -> None:
    """Of everything that the demo ran under leases, nothing was ever taken for a rogue."""
    found = [one for one in demo.pool.get("/moorage/v1/guard")["findings"] if one["owner"] != ""]
    leased = [one["message"] for one in found if one["job"] or one["kind"] != "no-lease"]
    demo.checks.expect(
        STEP,
        "no leased work was ever warned about",
        len(found) == 1 and not leased,
        f"{len(found)} findings" + (f": {'; '.join(leased)}" if leased else ""),
        "the rogue's, and no other",
    )


def _finding(demo: Run, *states: str) -> dict[str, Any] | None:
    found = demo.pool.get("/moorage/v1/guard")["findings"]
    return next((one for one in found if one["state"] in states), None)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _until(demo: Run, condition: Any, what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise StepFailed(STEP, f"waited {PATIENCE_S:.0f} s for {what}", str(demo.logs / "rogue.log"))
        time.sleep(POLL_S)
    return answer
