"""`moorage features`: what feature views there are, and what a version holds and came from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from moorage.runtime.features.versions import Catalogue, DatasetVersion

ROOT_OPTION = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    help="The catalogue's folder [default: features in $MOORAGE_DATA, else in the pool's data].",
)
JSON_OPTION = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."
)


def catalogue(root: Path | None) -> Catalogue:
    """The catalogue asked for, else the one of `MOORAGE_DATA`, else the one of the pool's home."""
    if root is None:
        home = os.environ.get("MOORAGE_HOME") or Path.home() / ".moorage"
        root = Path(os.environ.get("MOORAGE_DATA") or Path(home) / "data") / "features"
    return Catalogue(root)


@click.group()
def features() -> None:
    """Feature views: versions, what they hold, what they came from."""


@features.command(name="list")
@click.argument("view", required=False)
@ROOT_OPTION
@JSON_OPTION
def list_(view: str | None, root: Path | None, as_json: bool) -> None:
    """List the versions of all feature views, or of VIEW."""
    shelf = catalogue(root)
    versions = [v for name in ([view] if view else shelf.views()) for v in shelf.versions(name)]
    if as_json:
        click.echo(json.dumps([summary(v) for v in versions]))
        return
    if not versions:
        click.echo(f"No feature versions in {shelf.root}.")
        return
    click.echo(
        f"{'VIEW':<16} {'VERSION':<8} {'ROWS':>10} {'FEATURES':>8} {'QUARANTINED':>11}  {'CREATED':<25} JOB"
    )
    for line in map(summary, versions):
        click.echo(
            f"{line['view']:<16} {line['version']:<8} {line['rows']:>10} {line['features']:>8} "
            f"{line['quarantined']:>11}  {line['created'] or '-':<25} {line['job_id'] or '-'}"
        )


@features.command()
@click.argument("view")
@click.argument("version", default="latest")
@click.option("--verify", is_flag=True, help="Also recompute every file's SHA-256 and compare.")
@ROOT_OPTION
@JSON_OPTION
def show(view: str, version: str, verify: bool, root: Path | None, as_json: bool) -> None:
    """Show VERSION of VIEW [default: latest]: rows, features, quarantine and lineage."""
    found = catalogue(root).get(view, version)
    if verify:
        found.verify()
    if as_json:
        click.echo(json.dumps({**found.manifest, "path": str(found.path)}))
        return
    line, lineage = summary(found), found.manifest.get("lineage", {})
    click.echo(f"{found.view} {found.version}  {found.digest[:12]}{'  verified' if verify else ''}")
    click.echo(f"  path         {found.path}")
    click.echo(
        f"  created      {line['created'] or '-'} by job {line['job_id'] or '-'}, team {lineage.get('team') or '-'}"
    )
    click.echo("  rows         " + ", ".join(f"{k} {n}" for k, n in found.manifest.get("rows", {}).items()))
    click.echo(
        f"  features     {line['features']} numeric, {len(found.manifest.get('categoricals', {}))} categorical"
    )
    for name, book in found.manifest.get("accounts", {}).items():
        click.echo(
            f"  source       {name}: {book['in']} rows in, {book['good']} good, {book['quarantined']} quarantined"
        )
        for reason, count in book["reasons"].items():
            click.echo(f"                 {count} x {reason}")
        for why, count in book.get("excluded", {}).items():
            click.echo(f"                 {count} without a label: {why}")
    for source in lineage.get("sources", []):
        click.echo(f"  from         {source['name']} {source['sha256'][:12]}  {source['uri']}")
    code = lineage.get("code", {})
    git, count = code.get("git") or "-", len(code.get("files", {}))
    click.echo(f"  code         moorage {code.get('moorage')}, git {git}; {count} files")


def summary(version: DatasetVersion) -> dict[str, Any]:
    """A version in one line, for the list and its JSON."""
    manifest = version.manifest
    lineage = manifest.get("lineage", {})
    return {
        "view": version.view,
        "version": version.version,
        "rows": sum(manifest.get("rows", {}).values()),
        "features": len(manifest.get("features", ())),
        "quarantined": sum(book["quarantined"] for book in manifest.get("accounts", {}).values()),
        "created": lineage.get("created"),
        "job_id": lineage.get("job_id"),
        "team": lineage.get("team"),
        "digest": version.digest,
        "path": str(version.path),
    }
