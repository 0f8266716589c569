"""`moorage status`: nodes, devices and their holders, the queue with its reasons, the teams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from moorage.runtime.commands import shared

BAR = 20
"""Characters of a device's bar: one is 50 milli-GPU."""
_COLOURS = ("blue", "green", "magenta", "cyan", "yellow", "red")


@click.command(epilog="\b\nExamples:\n  moorage status\n  moorage status --as research --json")
@shared.pool_options
def status(home: Path | None, principal: str, as_json: bool) -> None:
    """Show nodes, devices (who holds which part of which), the queue with the reason of each waiting job, and
    the teams with quota, used and borrowed GPUs."""
    with shared.connect(home, principal) as client:
        found = client.status()
    if as_json:
        shared.print_json(found)
        return
    screen = shared.console()
    ray = found.get("ray") or {}
    if not ray.get("reachable", True):
        screen.print(Text(f"Ray is unreachable: {ray.get('message', '')}", "red"))
    for part in (nodes(found), devices(found), running(found), queue(found), teams(found)):
        screen.print(part if part.row_count else Text(f"{part.title}: none", "bold"))
        screen.print()


def nodes(found: dict[str, Any]) -> Table:
    made = shared.table(
        "node", "state", "model", "GPUs free", "CPUs free", title="Nodes", right=("GPUs free", "CPUs free")
    )
    for node in found.get("nodes", []):
        made.add_row(
            node["name"],
            state(node),
            node["gpu_model"] or "-",
            f"{shared.gpus(node['free_milli_gpu'])} of {node['devices']}",
            f"{shared.gpus(node['free_milli_cpu'])} of {shared.gpus(node['milli_cpu'])}",
        )
    return made


def state(node: dict[str, Any]) -> Text:
    """up, gone, or drained: up, and taking nothing new."""
    if not node["alive"]:
        return Text("gone", "red")
    return Text("drained", "yellow") if node.get("drained") else Text("up", "green")


def devices(found: dict[str, Any]) -> Table:
    """One bar per device: a letter block per holder, dots for what is free."""
    made = shared.table("device", "use", "memory MiB", "held by", title="Devices", right=("memory MiB",))
    colours = team_colours(found)
    for device in found.get("devices", []):
        holders = device["holders"]
        made.add_row(
            device["id"],
            bar(holders, colours),
            f"{device['mib'] - device['free_mib']} / {device['mib']}" if device["mib"] else "-",
            Text(", ").join(
                Text(
                    f"{one['job']} ({one['team']}) {shared.gpus(one['milli_gpu'])}",
                    colours.get(one["team"], ""),
                )
                for one in holders
            ),
        )
    return made


def bar(holders: list[dict[str, Any]], colours: dict[str, str], length: int = BAR) -> Text:
    """`[########......]`; a holder however small shows at least one character."""
    text, used = Text("["), 0
    for number, one in enumerate(holders):
        width = max(1, round(one["milli_gpu"] * length / 1000))
        width = min(width, length - used)
        text.append("#="[number % 2] * width, colours.get(one["team"], ""))
        used += width
    text.append("." * (length - used), "bright_black")
    return text.append("]")


def running(found: dict[str, Any]) -> Table:
    made = shared.table("job", "team", "state", "GPUs", "since", "where", title="Running", right=("GPUs",))
    for job in found.get("running", []):
        made.add_row(
            job["job"],
            job["team"],
            shared.state_text(job["state"]),
            shared.gpus(job["milli_gpu"]),
            shared.clock(job["started_ns"]),
            job.get("places", ""),
        )
    return made


def queue(found: dict[str, Any]) -> Table:
    made = shared.table(
        "job",
        "team",
        "priority",
        "GPUs",
        "waiting",
        "reason",
        title="Queue",
        right=("priority", "GPUs", "waiting"),
    )
    for job in found.get("queue", []):
        made.add_row(
            job["job"],
            job["team"],
            str(job["priority"]),
            shared.gpus(job["milli_gpu"]),
            shared.span(job["created_ns"], found.get("at_ns")),
            job["message"],
        )
    return made


def teams(found: dict[str, Any]) -> Table:
    numbers = ("quota", "limit", "used", "borrowed")
    made = shared.table("team", *numbers, "", title="Teams (GPUs)", right=numbers)
    for team in found.get("teams", []):
        made.add_row(
            team["team"],
            shared.gpus(team["quota_milli_gpu"]),
            shared.gpus(team["limit_milli_gpu"]),
            shared.gpus(team["used_milli_gpu"]),
            shared.gpus(team["borrowed_milli_gpu"]),
            f"of {team['parent']}" if team.get("parent") else "",
        )
    return made


def team_colours(found: dict[str, Any]) -> dict[str, str]:
    names = sorted(team["team"] for team in found.get("teams", []))
    return {name: _COLOURS[position % len(_COLOURS)] for position, name in enumerate(names)}
