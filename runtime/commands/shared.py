"""What the commands share: where the pool is, JSON or tables, words for amounts and times."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moorage.runtime.client import Client

F = TypeVar("F", bound=Callable[..., Any])

STATE_STYLE = {
    "PENDING": "yellow",
    "ADMITTED": "cyan",
    "STARTING": "cyan",
    "RUNNING": "green",
    "PREEMPTING": "magenta",
    "SUCCEEDED": "bright_black",
    "FAILED": "red",
    "QUARANTINED": "red",
    "STOPPED": "bright_black",
}


def pool_options(command: F) -> F:
    """--home, --as and --json: which pool, as whom, for whom to read."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."),
        click.option(
            "--as",
            "principal",
            default="admin",
            show_default=True,
            metavar="TEAM",
            help="Whose token of the pool's folder to use. MOORAGE_TOKEN, if set, is used without it.",
        ),
        click.option(
            "--home",
            type=click.Path(path_type=Path),
            help="The pool's folder [default: $MOORAGE_HOME or ~/.moorage].",
        ),
    ):
        command = option(command)
    return command


def connect(home: Path | None, principal: str) -> Client:
    return Client.from_env(home, principal)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def console() -> Console:
    """Width from the terminal; 120 columns into a pipe, so that what is cut does not depend on who reads it.

    Markup is off: job ids and messages are other people's text.
    """
    screen = Console(highlight=False, markup=False, emoji=False)
    return screen if screen.is_terminal else Console(highlight=False, markup=False, emoji=False, width=120)


def table(*columns: str, right: tuple[str, ...] = (), title: str | None = None) -> Table:
    """A plain table; the last column takes the room that is left."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for position, column in enumerate(columns):
        last = position == len(columns) - 1
        made.add_column(
            column, justify="right" if column in right else "left", overflow="fold", no_wrap=not last
        )
    return made


def state_text(state: str) -> Text:
    return Text(state, STATE_STYLE.get(state, ""))


def gpus(milli: int | None) -> str:
    """Milli-GPU as Ray writes GPUs: 500 -> 0.5, None -> no limit."""
    return "-" if milli is None else f"{milli / 1000:g}"


def dollars(micro: int) -> str:
    return f"${micro / 1e6:,.4f}"


def clock(at_ns: int | None) -> str:
    """Local time of day, with the date when it is not today."""
    if not at_ns:
        return "-"
    at = datetime.fromtimestamp(at_ns / 1e9, UTC).astimezone()
    today = datetime.now(UTC).astimezone().date()
    return at.strftime("%H:%M:%S" if at.date() == today else "%Y-%m-%d %H:%M:%S")


def span(since_ns: int | None, until_ns: int | None) -> str:
    """How long, in words as short as they can be."""
    if not since_ns or not until_ns or until_ns < since_ns:
        return "-"
    seconds = (until_ns - since_ns) / 1e9
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
