"""Step 6, the page: report.json with every figure and check, report.html made from nothing but that."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import Any

from demo_steps import page
from demo_steps.checks import StepFailed
from demo_steps.pool import tool
from demo_steps.run import Run
from moorage.runtime.telemetry.report import render

HTML, JSON = "report.html", "report.json"
NAMES = (HTML, JSON)


def collected(demo: Run, failure: StepFailed | None, seconds: float) -> dict[str, Any]:
    """The whole content of report.json."""
    import moorage

    return {
        "held": demo.checks.all_held and failure is None,
        "failure": None
        if failure is None
        else {"step": failure.step, "what": failure.what, "log": failure.log},
        "seconds": round(seconds, 1),
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(demo.began)),
        "machine": {"cpus": len_cpus(), "python": platform.python_version(), "system": platform.system()},
        "moorage": moorage.__version__,
        "step_seconds": demo.screen.seconds(),
        "checks": demo.checks.as_json(),
        **demo.facts,
    }


def len_cpus() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0


def write(demo: Run, failure: StepFailed | None, seconds: float) -> dict[str, Path]:
    """Both files; where they are."""
    found = collected(demo, failure, seconds)
    paths = {"html": demo.out / HTML, "json": demo.out / JSON}
    paths["json"].write_text(json.dumps(found, indent=1, default=str) + "\n", encoding="utf-8")
    # from the file's own content: what the page shows is what the file holds
    paths["html"].write_text(
        render(page.build(json.loads(paths["json"].read_text(encoding="utf-8")))), encoding="utf-8"
    )
    return paths


def summary(demo: Run, failure: StepFailed | None, report: dict[str, Path], kept: bool) -> None:
    """The end of the screen: the figures, what failed, where to look."""
    say = demo.screen.print
    found = json.loads(report["json"].read_text(encoding="utf-8"))
    lines = page.headlines(found)
    width = max((len(name) for name, _ in lines), default=0)
    say()
    for name, value in lines:
        say(f"{name:<{width}}  {value}", markup=False)
    say()
    for check in demo.checks.failed:
        say(
            f"NOT HELD  {check.step}: {check.name}: measured {check.measured}, wanted {check.wanted}",
            markup=False,
        )
    if failure is not None:
        say(f"FAILED    {failure.step}: {failure.what}", markup=False)
        for line in failure.lines:
            say(f"          | {line}", markup=False)
        if failure.log:
            say(f"          log: {failure.log}", markup=False)
    held = sum(check.held for check in demo.checks.made)
    say(f"{held} of {len(demo.checks.made)} checks held in {found['seconds']:.0f} s", markup=False)
    say(f"report    {report['html']}", markup=False)
    say(f"figures   {report['json']}", markup=False)
    if kept:
        environment = demo.pool.environment("ops")
        say(f"\nStill up: {demo.pool.url}", markup=False)
        say(
            f"endpoint  {demo.pool.url}/endpoints/flights/docs   (password: what the token file below holds)",
            markup=False,
        )
        say(
            f"dashboard {demo.pool.record.get('dashboard')}   (asks for the token in {demo.pool.home}/ray.token)",
            markup=False,
        )
        for name in ("RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
            say(f"  export {name}={environment[name]}", markup=False)
        say(f"Stop it with: MOORAGE_HOME={demo.pool.home} {tool('moorage')} down", markup=False)
