"""`moorage top`: teams, nodes, what runs and what waits, in one table after another, again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from moorage.errors import Unavailable
from moorage.runtime.client import Client
from moorage.runtime.commands import shared
from moorage.runtime.commands.status import bar, state, team_colours


@click.command(
    epilog="\b\nExamples:\n  moorage top\n  moorage top --every 10\n  moorage top --once --as research\n"
    "  moorage top --json"
)
@click.option(
    "--every",
    default=2.0,
    show_default=True,
    type=click.FloatRange(0.5, 3600),
    metavar="SECONDS",
    help="How often it is read again.",
)
@click.option("--once", is_flag=True, help="Print it once [as into a pipe].")
@shared.pool_options
def top(every: float, once: bool, home: Path | None, principal: str, as_json: bool) -> None:
    """Watch the pool: each team's use beside its quota and limit, nodes and devices, what runs, and what waits for
    which rule. In a terminal until interrupted; what does not fit its height is counted."""
    screen = shared.console()
    with shared.connect(home, principal) as client:
        if as_json:
            shared.print_json(summary(client.status()))
        elif once or not screen.is_terminal:
            screen.print(drawn(client.status()))
        else:
            found = client.status()
            with Live(drawn(found, screen.height), console=screen, screen=True, auto_refresh=False) as live:
                watch(client, found, every, lambda shown: _show(live, shown, screen.height))


def _show(live: Live, found: dict[str, Any], height: int) -> None:
    live.update(drawn(found, height), refresh=True)


def watch(
    client: Client,
    found: dict[str, Any],
    every: float,
    show: Callable[[dict[str, Any]], None],
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Read and show for ever. While the front door does not answer, what was read last stays, and says so."""
    while True:
        pause(every)
        try:
            found = client.status()
        except Unavailable as error:
            found = {**found, "stale": " ".join(str(error).split())}
        show(found)


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """What is shown, as data."""
    nodes = [node for node in found["nodes"] if node["alive"]]
    devices = sum(node["devices"] for node in nodes)
    return {
        "at_ns": found["at_ns"],
        "pool": {
            "nodes_up": len(nodes),
            "nodes": len(found["nodes"]),
            "devices": devices,
            "held_milli_gpu": 1000 * devices - sum(node["free_milli_gpu"] for node in nodes),
            "running": len(found["running"]),
            "waiting": len(found["queue"]),
            "ray_reachable": found["ray"]["reachable"],
        },
        "teams": found["teams"],
        "nodes": found["nodes"],
        "running": found["running"],
        "waiting": found["queue"],
    }


def drawn(found: dict[str, Any], height: int | None = None) -> Group:
    """For a terminal of so many lines; None = all of it. The queue gives way first, then what runs, then nodes."""
    said = summary(found)
    parts = [said["teams"], said["nodes"], said["running"], said["waiting"]]
    room = [len(part) for part in parts]
    if height is not None:
        left = height - 1 - sum(3 for part in parts if part)
        for i, part in enumerate(parts):
            later = sum(min(len(p), 2) for p in parts[i + 1 :])
            room[i] = min(len(part), max(1, left - later))
            left -= room[i]
    makers = (_teams, _nodes, _running, _waiting)
    made: list[Table | Text] = [_head(found, said)]
    for maker, part, rows in zip(makers, parts, room, strict=True):
        if part:
            table = maker(found, part[: rows if rows == len(part) else rows - 1])
            if rows < len(part):
                table.add_row(Text(f"and {len(part) - rows + 1} more", "bright_black"))
            made += [table, Text()]
    return Group(*made[:-1] if len(made) > 1 else made)


def _head(found: dict[str, Any], said: dict[str, Any]) -> Text:
    pool = said["pool"]
    text = Text(
        f"{shared.clock(found['at_ns'])}  {pool['nodes_up']} of {pool['nodes']} nodes up, "
        f"{shared.gpus(pool['held_milli_gpu'])} of {pool['devices']} GPUs held, "
        f"{pool['running']} running, {pool['waiting']} waiting",
        "bold",
    )
    if not pool["ray_reachable"]:
        text.append(f"  Ray is unreachable: {found['ray'].get('message', '')}", "red")
    if "stale" in found:
        text.append(f"  as it was last read: {found['stale']}", "red")
    return text


def _teams(found: dict[str, Any], part: list[dict[str, Any]]) -> Table:
    numbers = ("used", "quota", "limit", "borrowed")
    made = shared.table("team", "use of quota", *numbers, "", title="Teams (GPUs)", right=numbers)
    colours = team_colours(found)
    for team in part:
        used, quota = team["used_milli_gpu"], team["quota_milli_gpu"]
        whole = max(used, quota, 1)
        block = {"team": team["team"], "milli_gpu": 1000 * used // whole}
        made.add_row(
            Text(team["team"], colours[team["team"]]),
            bar([block] if used else [], colours),
            *(shared.gpus(x) for x in (used, quota, team["limit_milli_gpu"], team["borrowed_milli_gpu"])),
            f"of {team['parent']}" if team.get("parent") else "",
        )
    return made


def _nodes(found: dict[str, Any], part: list[dict[str, Any]]) -> Table:
    """Devices of a node beside each other, eight characters each at the most."""
    made = shared.table("node", "state", "model", "GPUs free", "devices", title="Nodes", right=("GPUs free",))
    colours, on = team_colours(found), dict[str, list[dict[str, Any]]]()
    for device in found["devices"]:
        on.setdefault(device["node"], []).append(device)
    for node in part:
        devices = on.get(node["name"], [])
        width = max(2, min(8, 48 // max(1, len(devices))))
        bars = [Text("-", "bright_black") if not devices else Text("").join(_cells(devices, colours, width))]
        free = f"{shared.gpus(node['free_milli_gpu'])} of {node['devices']}"
        made.add_row(node["name"], state(node), node["gpu_model"] or "-", free, *bars)
    return made


def _cells(devices: list[dict[str, Any]], colours: dict[str, str], width: int) -> list[Text]:
    return [bar(device["holders"], colours, width) for device in devices]


def _running(found: dict[str, Any], part: list[dict[str, Any]]) -> Table:
    made = shared.table(
        "job", "team", "state", "GPUs", "ran", "where", title="Running", right=("GPUs", "ran")
    )
    colours = team_colours(found)
    for job in part:
        made.add_row(
            job["job"],
            Text(job["team"], colours.get(job["team"], "")),
            shared.state_text(job["state"]),
            shared.gpus(job["milli_gpu"]),
            shared.span(job["started_ns"], found["at_ns"]),
            job.get("places", ""),
        )
    return made


def _waiting(found: dict[str, Any], part: list[dict[str, Any]]) -> Table:
    made = shared.table(
        "job", "team", "GPUs", "waits", "rule", "why", title="Waiting", right=("GPUs", "waits")
    )
    colours = team_colours(found)
    for job in part:
        reason = job.get("reason")
        made.add_row(
            job["job"],
            Text(job["team"], colours.get(job["team"], "")),
            shared.gpus(job["milli_gpu"]),
            shared.span(job["created_ns"], found["at_ns"]),
            reason["code"] if reason else "-",
            Text(job["message"], overflow="ellipsis", no_wrap=True),
        )
    return made
