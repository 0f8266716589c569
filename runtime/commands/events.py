"""`moorage events`: the audit record, once or as it grows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from moorage.errors import InvalidRequest, Unavailable
from moorage.runtime.answers import Event
from moorage.runtime.client import Client
from moorage.runtime.commands import shared

PAGE = 1000
FIRST = 10
"""What `--follow` begins with."""


@click.command(
    epilog="\b\nExamples:\n  moorage events --tail 20\n  moorage events --job JOB --json\n  moorage events --follow\n"
    "  moorage events --follow --tail 0 --json | jq .kind"
)
@click.option("--job", "job_id", metavar="JOB", help="Only events of this job.")
@click.option(
    "--after", default=0, show_default=True, type=click.IntRange(0), help="Only greater sequence numbers."
)
@click.option("--limit", type=click.IntRange(1, PAGE), help="At most so many, the oldest.  [default: 100]")
@click.option("--tail", type=click.IntRange(0, PAGE), help="At most so many, the newest.")
@click.option("-f", "--follow", is_flag=True, help=f"Go on as events come [begins with the last {FIRST}].")
@click.option(
    "--every",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.1, 3600),
    metavar="SECONDS",
    help="How often --follow asks.",
)
@shared.pool_options
def events(
    job_id: str | None,
    after: int,
    limit: int | None,
    tail: int | None,
    follow: bool,
    every: float,
    home: Path | None,
    principal: str,
    as_json: bool,
) -> None:
    """The audit record, oldest first: who did what, when.

    With --follow one line an event (with --json one JSON document a line) until interrupted; while the front door
    restarts it waits and misses nothing.
    """
    if limit is not None and (tail is not None or follow):
        raise InvalidRequest(
            "--limit does not go with --tail or --follow", todo="say --tail N", code="bad-option"
        )
    with shared.connect(home, principal) as client:
        if follow:
            first = tail if tail is not None or after else FIRST
            for event in following(client, job_id, after, first, every):
                click.echo(json.dumps(event, ensure_ascii=False) if as_json else line(event))
            return
        found = [] if tail == 0 else client.events(job_id, after, limit or 100, last=tail or 0)
    if as_json:
        shared.print_json(found)
        return
    made = shared.table("seq", "at", "event", "team", "job", "what", right=("seq",))
    for event in found:
        made.add_row(*cells(event))
    shared.console().print(made)


def following(
    client: Client,
    job_id: str | None,
    after: int,
    first: int | None,
    every: float,
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[Event]:
    """Events after `after`, of those that are there only the `first` newest (None = all), and each that comes."""
    if first is not None:
        begun = client.events(job_id, after, last=max(first, 1))
        yield from begun[len(begun) - first :] if first else ()
        after = begun[-1]["seq"] if begun else after
    away = False
    while True:
        try:
            page = client.events(job_id, after, PAGE)
        except Unavailable as error:
            if not away:
                click.echo(f"moorage: {' '.join(str(error).split())}; waiting for it", err=True)
            away, page = True, []
        else:
            away = False
        yield from page
        after = page[-1]["seq"] if page else after
        if len(page) < PAGE:
            pause(every)


def line(event: Mapping[str, Any]) -> str:
    """One event for people who read along."""
    seq, at, kind, team, job, what = cells(event, most=200)
    return f"{seq:>7}  {at}  {kind:<20} {team:<12} {job:<28} {what}".rstrip()


def cells(event: Mapping[str, Any], most: int = 60) -> tuple[str, ...]:
    """seq, at, kind, team, job, what."""
    return (
        str(event.get("seq", "")),
        shared.clock(event.get("wall_ns") or event.get("at_ns")),
        str(event.get("kind", "")),
        event.get("team") or "-",
        event.get("job_id") or "-",
        _short(event.get("payload"), most),
    )


def _short(payload: Any, most: int) -> str:
    """The plain values of an event's payload on one line."""
    if not isinstance(payload, dict):
        return ""
    text = " ".join(f"{k}={v}" for k, v in payload.items() if isinstance(v, str | int) and v != "")
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"
