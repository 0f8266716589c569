"""`moorage guard`: who holds GPUs without a lease or beyond it, and what is done about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from moorage.runtime.commands import shared

_STYLE = {"WARNED": "yellow", "STOPPING": "magenta", "STOPPED": "red", "CLEARED": "bright_black"}


@click.command(epilog="\b\nExamples:\n  moorage guard\n  moorage guard --as research --json")
@shared.pool_options
def guard(home: Path | None, principal: str, as_json: bool) -> None:
    """List what holds GPUs without a lease or beyond it: what was warned about and when it is stopped, then what was
    stopped or ended by itself. A team sees its own jobs, an admin everything."""
    with shared.connect(home, principal) as client:
        found = client.guard()
    if as_json:
        shared.print_json(found)
        return
    screen = shared.console()
    screen.print(headline(found))
    for node, amount in found["unexplained_milli_gpu"].items():
        screen.print(
            Text(f"{node}: Ray has booked {shared.gpus(amount)} GPU for nobody that was seen", "yellow")
        )
    if not found["findings"]:
        screen.print("Nothing holds GPUs without a lease.")
        return
    made = shared.table("kind", "state", "GPUs", "since", "stops in", "what", right=("GPUs", "stops in"))
    for one in found["findings"]:
        made.add_row(
            one["kind"],
            Text(one["state"], _STYLE.get(one["state"], "")),
            shared.gpus(one["milli_gpu"]),
            shared.clock(one["first_ns"]),
            stops(one),
            one["message"],
        )
    screen.print(made)


def headline(found: Mapping[str, Any]) -> Text:
    """The mode in a sentence, and whether the guard sees everything."""
    if found["mode"] == "off":
        return Text("The guard is off (guard in pool.yaml).", "yellow")
    if found["message"]:
        return Text(f"The guard sees nothing now: {found['message']}", "red")
    said = "stops what it finds after a grace" if found["mode"] == "stop" else "only warns"
    said += f"; last look {shared.clock(found['looked_ns'])}"
    return Text(f"The guard {said}{'' if found['complete'] else '; it did not see everything'}.")


def stops(finding: Mapping[str, Any]) -> str:
    left = finding["stops_in_ns"]
    return "-" if left is None else f"{left / 1e9:.0f} s"
