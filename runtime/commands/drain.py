"""`moorage drain` and `moorage undrain`: a node that takes nothing new, for maintenance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from moorage.runtime.commands import shared


@click.command(epilog="\b\nExamples:\n  moorage drain gpu-07\n  moorage drain gpu-07 --why 'new fan' --json")
@click.argument("node", metavar="NODE")
@click.option("--why", default="", metavar="TEXT", help="For the record, and for who looks at the node.")
@shared.pool_options
def drain(node: str, why: str, home: Path | None, principal: str, as_json: bool) -> None:
    """Let NODE take nothing new; what runs there goes on. Only the admin may.

    It stays so over restarts of the pool and of the node, until `moorage undrain NODE`.
    """
    with shared.connect(home, principal) as client:
        _say(client.drain(node, why), as_json)


@click.command(epilog="\b\nExample:\n  moorage undrain gpu-07")
@click.argument("node", metavar="NODE")
@shared.pool_options
def undrain(node: str, home: Path | None, principal: str, as_json: bool) -> None:
    """Let NODE, which was drained, take work again. Only the admin may."""
    with shared.connect(home, principal) as client:
        _say(client.undrain(node), as_json)


def _say(done: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        shared.print_json(done)
        return
    state = "drained: it takes nothing new" if done["drained"] else "in use again"
    click.echo(f"{done['node']} {'is' if done['changed'] else 'was'} {state}")
    if done["drained"]:
        jobs = done["jobs"]
        click.echo(f"still there: {', '.join(jobs)}" if jobs else "nothing runs there")
