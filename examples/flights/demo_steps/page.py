"""report.json to the sections of the page. Pure: every figure comes from the file's content."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from demo_steps import reclaiming, sections
from demo_steps.evaluating import BOOSTING, CHAMPION, MAJORITY
from moorage.runtime.telemetry.report import Report, Section, Table, Tile

Facts = dict[str, Any]


def minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"


def build(found: Facts) -> Report:
    """The page of a run, whole or cut short: a section is left out when its step did not get there."""
    made: list[tuple[str, Callable[[Facts], Section]]] = [
        ("timeline", sections.devices),
        ("decisions", sections.decided),
        ("queue", sections.queue),
        ("features", sections.features),
        ("train", sections.training),
        ("reclaim", reclaiming.section),
        ("sweeps", sections.sweeps),
        ("registry", sections.registry),
        ("requests", sections.serving),
        ("evaluation", sections.quality),
        ("evaluation", sections.shifted),
        ("cost", sections.cost),
    ]
    held = sum(check["held"] for check in found["checks"])
    verdict = f"All {held} checks held" if found["held"] else f"{held} of {len(found['checks'])} checks held"
    if found["failure"]:
        verdict += f": stopped in {found['failure']['step']}"
    return Report(
        title="Flights on Moorage",
        lead=lead(found),
        verdict=verdict,
        held=found["held"],
        tiles=tiles(found),
        sections=[*(make(found) for key, make in made if key in found), steps(found), checks(found)],
        foot=f"Moorage {found['moorage']}, Python {found['machine']['python']}, {found['machine']['cpus']} CPU cores, "
        f"began {found['began']}. Every figure on this page is in report.json beside it.",
    )


def lead(found: Facts) -> str:
    pool = found.get("pool")
    shape = f"a pool of {pool['nodes']} nodes with {pool['gpus']:g} logical GPUs" if pool else "a pool"
    return (
        f"Two teams share {shape}, under quotas. From the raw files of 2013's flights out of New York to a "
        "trained, gated and served model that says whether a flight will arrive more than 15 minutes late, all "
        "of it submitted with the ordinary `ray job submit`."
    )


def headlines(found: Facts) -> list[tuple[str, str]]:
    """The few figures that sum the run up."""
    lines = []
    if "features" in found:
        rows = found["features"]["rows"]
        lines.append(
            ("features", f"{sum(rows.values()):,} labelled rows, {found['features']['features']} features")
        )
    if "fractions" in found:
        made = found["fractions"]
        lines.append(
            (
                "fractions",
                f"{made['running']} models of {made['gpu']} GPU at once, on {made['devices']} devices, plain Ray code",
            )
        )
    if "queue" in found and "waited_s" in found["queue"]:
        lines.append(
            (
                "queue",
                f"the second sweep waited {found['queue']['waited_s']:.1f} s: {found['queue']['message']}",
            )
        )
    if "train" in found and found["train"]["resumed_from"] is not None:
        train = found["train"]
        lines.append(
            (
                "training",
                f"killed at step {train['killed']['step']}, back after {train['seconds_until_back']:.1f} s from step "
                f"{train['resumed_from']}, {train['steps']} steps in all",
            )
        )
    if "deepspeed" in found:
        zero = found["deepspeed"]
        lines.append(
            ("DeepSpeed", f"{zero['steps']} steps, loss {zero['first_loss']:.4f} to {zero['last_loss']:.4f}")
        )
    if "registry" in found:
        champion, decisions = found["registry"]["champion"], found["registry"]["decisions"]
        refused = sum(not d["passed"] for d in decisions)
        lines.append(
            (
                "registry",
                f"champion is version {champion['version']}, {refused} of {len(decisions)} candidates refused",
            )
        )
    if "requests" in found:
        sent, latency = found["requests"], found["requests"]["latency_ms"]
        lines.append(
            (
                "endpoint",
                f"{sent['sent']:,} requests, {sent['errors']} errors, p50 {latency['p50']:.1f} ms, "
                f"p95 {latency['p95']:.1f} ms, p99 {latency['p99']:.1f} ms",
            )
        )
    if "evaluation" in found:
        metrics = found["evaluation"]["metrics"]
        for name in (CHAMPION, BOOSTING, MAJORITY):
            of = metrics[name]["all"]
            lines.append((f"test, {name}", f"ROC-AUC {of['auc']:.4f}, log-loss {of['log_loss']:.4f}"))
        lines.append(("test, against boosting", sections.verdict_of(found["evaluation"]["against_boosting"])))
    if "cost" in found:
        for team in found["cost"]["teams"]:
            lines.append(
                (
                    f"cost, {team['team']}",
                    f"{team['gpu_seconds']:.0f} GPU-seconds, ${team['micro_dollars'] / 1e6:.4f}",
                )
            )
    return lines


def tiles(found: Facts) -> list[Tile]:
    made = [Tile(figure=minutes(found["seconds"]), text="from nothing to this page")]
    if "evaluation" in found:
        auc = found["evaluation"]["metrics"][CHAMPION]["all"]["auc"]
        made.append(Tile(figure=f"{auc:.3f}", text="ROC-AUC on August to December"))
    if "requests" in found:
        latency = found["requests"]["latency_ms"]
        made.append(
            Tile(
                figure=f"{latency['p50']:.1f} ms",
                text=f"median of {found['requests']['sent']:,} requests; p99 {latency['p99']:.1f} ms",
            )
        )
    if "train" in found and found["train"]["resumed_from"] is not None:
        made.append(
            Tile(
                figure=f"{found['train']['seconds_until_back']:.1f} s",
                text="from a killed worker to the next step",
            )
        )
    if "cost" in found:
        seconds = sum(team["gpu_seconds"] for team in found["cost"]["teams"])
        money = sum(team["micro_dollars"] for team in found["cost"]["teams"]) / 1e6
        made.append(Tile(figure=f"{seconds:.0f}", text=f"GPU-seconds, billed ${money:.3f}"))
    return made


def steps(found: Facts) -> Section:
    rows = [[name, f"{seconds:.1f}"] for name, seconds in found["step_seconds"].items()]
    rows.append(["everything, overlapped", f"{found['seconds']:.1f}"])
    table = Table(
        head=["step", "seconds"], rows=rows, numbers=frozenset({1}), strong=frozenset({len(rows) - 1})
    )
    return Section(title="How long each step took", parts=[table])


def checks(found: Facts) -> Section:
    rows = [
        ["held" if c["held"] else "NOT held", c["step"], c["name"], c["measured"][:300], c["wanted"]]
        for c in found["checks"]
    ]
    table = Table(
        head=["", "step", "check", "measured", "wanted"],
        rows=rows,
        tones=["good" if c["held"] else "bad" for c in found["checks"]],
    )
    return Section(title="Checks", parts=["The demo's exit code is 0 only if each of these held.", table])
