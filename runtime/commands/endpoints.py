"""`moorage endpoints`: what is served, by how many replicas where, how busy they are, and what more waits for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from moorage.errors import NotFound
from moorage.runtime.commands import shared


@click.command(
    epilog="\b\nExamples:\n  moorage endpoints\n  moorage endpoints trips --as serving\n  moorage endpoints --json"
)
@click.argument("name", metavar="[NAME]", required=False)
@shared.pool_options
def endpoints(name: str | None, home: Path | None, principal: str, as_json: bool) -> None:
    """Show the endpoints of your teams, or the one named.

    For one whose replicas follow its load: how many are wanted within which bounds, each replica with its lease and
    devices, how many rows are in flight, and why the pool has not given more.
    """
    with shared.connect(home, principal) as client:
        found = [one for one in client.endpoints() if name in (None, one["name"])]
    if name and not found:
        raise NotFound(
            f"there is no endpoint {name!r}",
            todo="list yours with: moorage endpoints",
            code="endpoint-not-found",
        )
    if as_json:
        shared.print_json(found)
        return
    if not found:
        click.echo("No endpoint is published.")
    for one in found:
        for line in told(one):
            click.echo(line)


def told(one: Mapping[str, Any]) -> list[str]:
    """One endpoint as lines for people."""
    state = "live" if one["live"] else "its job has ended"
    lines = [f"{one['name']} ({one['team']}), {state}, job {one['job_id']}, {one['path']}"]
    scaling = one["scaling"]
    if not scaling:
        return lines
    serving = sum(replica["state"] == "SERVING" for replica in scaling["replicas"])
    lines.append(
        f"  {serving} replicas serve; {scaling['wanted']} wanted "
        f"({scaling['min_replicas']} to {scaling['max_replicas']}){_busy(scaling['load'])}"
    )
    for replica in scaling["replicas"]:
        devices = ",".join(str(index) for index in replica["devices"])
        where = f"{replica['node']}/{devices}" if devices else replica["node"]
        lines.append(f"  {replica['state']:9} {replica['app']} on {where}, lease {replica['lease_id']}")
    for ask in scaling["waits"]:
        reason = (ask["reason"] or {}).get("text") or "waits for the next scheduling round"
        lines.append(f"  one more waits since {shared.clock(ask['since_ns'])}: {reason}")
    if scaling["note"]:
        lines.append(f"  no more are asked for: {scaling['note']}")
    return lines


def _busy(load: dict[str, float]) -> str:
    if "ongoing" not in load:
        return ""
    text = (
        f"; {load['ongoing']:g} rows in flight, {load.get('target_ongoing', 0):g} per replica is the target"
    )
    if "latency_ms" in load:
        text += f"; p95 {load['latency_ms']:g} ms"
        text += f" (target {load['target_latency_ms']:g} ms)" if "target_latency_ms" in load else ""
    return text
