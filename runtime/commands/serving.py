"""`moorage simulate serving`: which models share which devices, and how many requests then meet their targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from moorage.errors import InvalidRequest
from moorage.runtime.commands import shared

MOST_REQUESTS = 5_000_000


@click.command(
    epilog="""\b
Examples:
  moorage simulate serving models.yaml
  moorage simulate serving models.yaml --seconds 600 --seeds 1..5 --json
"""
)
@click.argument("file", metavar="MODELS", type=click.Path(path_type=Path))
@click.option(
    "--seconds", type=float, default=300.0, show_default=True, help="How long requests are simulated."
)
@click.option("--seeds", default="1..3", show_default=True, metavar="A..B", help="Other requests each.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
def serving(file: Path, seconds: float, seeds: str, as_json: bool) -> None:
    """Pack models onto devices by memory, load and latency target, and simulate their requests.

    MODELS is a YAML file with `devices` (a list of count and mib) and `models` (by name: mib, service_ms, rate,
    target_ms, and if they vary service_scv and burst_scv). Nothing is deployed.
    """
    from moorage.configs.serving import load_serving
    from moorage.runtime.commands.simulate import parse_seeds
    from moorage.runtime.history.serving import report
    from moorage.scheduling.serving.model import Goal, Model
    from moorage.scheduling.serving.search import pack

    given = load_serving(file)
    numbers = parse_seeds(seeds)
    rate = sum(m.rate for m in given.models.values())
    if not seconds > 0 or rate * seconds > MOST_REQUESTS:
        raise InvalidRequest(
            f"--seconds {seconds:g} is not allowed",
            why=f"it must be above 0 and stand for at most {MOST_REQUESTS:,} requests",
            code="bad-seconds",
        )
    models = [Model(name=name, **one.model_dump()) for name, one in given.models.items()]
    devices = [d.mib for d in given.devices for _ in range(d.count)]
    placed = pack(models, devices, Goal(attained=given.attained, most_load=given.most_load))
    found = {"file": file.name, "seconds": seconds, "seeds": numbers}
    found |= report(models, devices, placed, seconds, numbers)
    if as_json:
        shared.print_json(found)
    else:
        show(found)


def show(found: dict[str, Any]) -> None:
    screen = shared.console()
    screen.print(
        f"{len(found['models'])} models on {found['devices_used']} of {found['devices']} devices; requests that meet "
        f"their target: {100 * found['attained_predicted']:.2f}% predicted, "
        f"{100 * found['attained_simulated']:.2f}% simulated"
    )
    made = shared.table("device", "load", "models (milli-GPU)", right=("device", "load"))
    for device, load in enumerate(found["load"]):
        here = [f"{r['model']} ({r['milli_gpu']})" for r in found["replicas"] if r["device"] == device]
        if here:
            made.add_row(str(device), f"{load:.2f}", ", ".join(here))
    screen.print(made)
    screen.print()
    made = shared.table(
        "model",
        "replicas",
        "predicted %",
        "simulated %",
        title="Requests within their target",
        right=("replicas", "predicted %", "simulated %"),
    )
    for name, one in found["models"].items():
        shares = (f"{100 * one[key]:.2f}" for key in ("attained_predicted", "attained_simulated"))
        made.add_row(name, str(one["replicas"]), *shares)
    screen.print(made)
    for one in found["unplaced"]:
        screen.print(f"not placed: {one['model']}: {one['reason']}")
