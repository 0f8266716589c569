"""`moorage models`: what is registered, why the gate decided as it did, and who is champion."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from moorage.runtime.registry import Registry, Version

DATA_OPTION = click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="The data folder [default: $MOORAGE_DATA, else data in the pool's home].",
)
JSON_OPTION = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."
)


def registry(data: Path | None) -> Registry:
    from moorage.runtime.registry import Registry

    return Registry.open(data)


def _decision(version: Version) -> str:
    if version.gate is None:
        return "undecided"
    return "passed" if version.gate["passed"] else "refused"


@click.group()
def models() -> None:
    """Registered models: versions, gate decisions, aliases."""


@models.command(name="list")
@click.argument("name", required=False)
@DATA_OPTION
@JSON_OPTION
def list_(name: str | None, data: Path | None, as_json: bool) -> None:
    """List the versions of all models, or of NAME, newest first."""
    shelf = registry(data)
    # no database yet is an empty registry: a question must not create one
    names = [name] if name else shelf.models() if shelf.database.exists() else []
    versions = [version for each in names for version in shelf.versions(each)]
    if as_json:
        click.echo(json.dumps([version.as_dict() for version in versions]))
        return
    if not versions:
        click.echo(f"No models{f' named {name!r}' if name else ''} in {shelf.data}.")
        return
    click.echo(
        f"{'MODEL':<16} {'VERSION':>7}  {'ALIASES':<20} {'GATE':<10} {'LOG-LOSS':>9} {'AUC':>7}  {'DATA':<8} SHA-256"
    )
    for version in versions:
        figures = version.metrics
        click.echo(
            f"{version.name:<16} {version.version:>7}  {','.join(version.aliases) or '-':<20} {_decision(version):<10} "
            f"{figures.get('log_loss', float('nan')):>9.5f} {figures.get('auc', float('nan')):>7.4f}  "
            f"{version.data_version or '-':<8} {version.sha256[:12]}"
        )


@models.command()
@click.argument("model")
@DATA_OPTION
@JSON_OPTION
def show(model: str, data: Path | None, as_json: bool) -> None:
    """Show MODEL, written name@alias or name/version, and verify its bytes."""
    shelf = registry(data)
    found = shelf.resolve(f"models:/{model}")
    version = shelf.version(found.name, found.version)
    if as_json:
        click.echo(json.dumps({**version.as_dict(), "verified": True}))
        return
    created = datetime.fromtimestamp(version.created_ms / 1000, UTC).isoformat(timespec="seconds")
    click.echo(
        f"{version.name} version {version.version}  {_decision(version)}  {', '.join(version.aliases) or 'no alias'}"
    )
    click.echo(f"  artifact     {version.path}  verified")
    click.echo(
        f"  created      {created} by job {version.lineage.get('job', '-')}, team {version.lineage.get('team', '-')}"
    )
    click.echo(f"  data         {version.data_version or '-'}")
    click.echo(f"  code         {version.code_version or '-'}")
    click.echo(f"  environment  {version.environment[:12]}")
    click.echo("  metrics      " + ", ".join(f"{k} {v:.6g}" for k, v in sorted(version.metrics.items())))
    for check in (version.gate or {}).get("checks", []):
        click.echo(
            f"  gate         {'ok  ' if check['passed'] else 'FAIL'} {check['rule']}: {check['reason']}"
        )


@models.command()
@click.argument("model")
@click.option("--alias", default="champion", show_default=True, help="The alias to move.")
@DATA_OPTION
def promote(model: str, alias: str, data: Path | None) -> None:
    """Move an alias to MODEL, written name/version. Refused unless the gate passed it."""
    from moorage.errors import InvalidRequest

    name, _, number = model.partition("/")
    if not number.isdigit():
        raise InvalidRequest(f"{model!r} names no version", todo="write NAME/VERSION, for example flights/3")
    version = registry(data).promote(name, int(number), alias)
    click.echo(f"{name} version {version.version} is {alias}")


@models.command()
@click.argument("name")
@click.option("--reason", default="", help="Why; kept on the version that loses the alias.")
@DATA_OPTION
def rollback(name: str, reason: str, data: Path | None) -> None:
    """Give `champion` of NAME back to the version that held it before."""
    version = registry(data).rollback(name, reason)
    click.echo(f"{name} version {version.version} is champion again")
