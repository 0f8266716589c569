"""`moorage quota show | set | plan | apply`: the tree of teams in force, and another in its place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from moorage.configs.quotafile import edited, text
from moorage.errors import InvalidRequest
from moorage.runtime.commands import shared
from moorage.runtime.commands.plan import budget, changed, plan

_FORCE = click.option(
    "--force", is_flag=True, help="Also when they guarantee more than the nodes that are up have."
)


@click.group(
    epilog="\b\nExamples:\n  moorage quota show\n  moorage quota show --yaml > quotas.yaml\n"
    "  moorage quota plan quotas.yaml\n  moorage quota apply quotas.yaml\n  moorage quota set research gpus=4 limit=6"
)
def quota() -> None:
    """The quotas of the teams: what is in force, and another tree in its place, without a restart.

    What is applied is durable and recorded (`quota.applied` in `moorage events`). It stays in force over restarts,
    until the pool's teams file changes.
    """


quota.add_command(plan)


@quota.command(epilog="\b\nExamples:\n  moorage quota show\n  moorage quota show --yaml > quotas.yaml")
@click.option("--yaml", "as_yaml", is_flag=True, help="As a teams file, to be changed and applied.")
@shared.pool_options
def show(as_yaml: bool, home: Path | None, principal: str, as_json: bool) -> None:
    """Show the tree of teams in force, in GPUs."""
    with shared.connect(home, principal) as client:
        found = client.quotas()
    if as_json:
        shared.print_json(found)
    elif as_yaml:
        click.echo(text(found["file"]), nl=False)
    else:
        figures = ("quota", "limit", "lend", "borrow", "weight")
        title = f"Quotas (GPUs), version {found['version']} since {shared.clock(found['since_ns'])}"
        made = shared.table("team", *figures, "budget", title=title, right=figures)
        for depth, name, team in tree(found["file"]["teams"]):
            amounts = (_amounts(team.get(figure)) for figure in figures[:-1])
            made.add_row(
                "  " * depth + name, *amounts, str(team.get("weight", 1)), _budget(team.get("budget"))
            )
        shared.console().print(made)


@quota.command(
    "apply",
    epilog="\b\nExamples:\n  moorage quota apply quotas.yaml\n  moorage quota apply quotas.yaml --dry-run",
)
@click.argument("file", metavar="QUOTAS", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@_FORCE
@shared.pool_options
def apply_file(
    file: Path, dry_run: bool, force: bool, home: Path | None, principal: str, as_json: bool
) -> None:
    """Put QUOTAS, a teams file, in force for the whole tree. Only the admin may.

    Jobs that run keep what they hold, also above a limit that is lower now. `moorage quota plan` says before what it
    would have done to last week's waits.
    """
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"cannot read {file}", why=str(error), code="config-unreadable") from None
    with shared.connect(home, principal) as client:
        _say(client.put_quotas(content, force=force, dry_run=dry_run), as_json)


@quota.command(
    "set",
    epilog="\b\nExamples:\n  moorage quota set research gpus=4\n  moorage quota set research gpus=4 limit=6 weight=2\n"
    "  moorage quota set research limit=none lend.gpus=1",
)
@click.argument("team", metavar="TEAM")
@click.argument("figures", metavar="FIGURE=AMOUNT...", nargs=-1, required=True)
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@_FORCE
@shared.pool_options
def set_figures(
    team: str,
    figures: tuple[str, ...],
    dry_run: bool,
    force: bool,
    home: Path | None,
    principal: str,
    as_json: bool,
) -> None:
    """Change figures of one TEAM: `gpus=4` is its quota of all models together, `L4=2` of one; `limit=6`, `lend=1` and
    `borrow=2` (or `limit.L4=2`) as they say; `weight=2`. `none` takes a figure out.

    Refused when somebody else changed the quotas at the same moment.
    """
    with shared.connect(home, principal) as client:
        found = client.quotas()
        content = text(edited(found["file"], team, figures))
        _say(client.put_quotas(content, base=found["version"], force=force, dry_run=dry_run), as_json)


def _say(done: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        shared.print_json(done)
        return
    for line in changed(done["changes"]):
        click.echo(line)
    if done["applied"]:
        click.echo(f"in force as version {done['version']}")
    elif done["changes"]:
        click.echo(f"nothing is applied; version {done['version']} is in force")


def tree(
    teams: dict[str, dict[str, Any]], parent: str = "", depth: int = 0
) -> list[tuple[int, str, dict[str, Any]]]:
    """(depth, name, figures), each team before its children, in the order of the file."""
    found = []
    for name, team in teams.items():
        if team.get("parent", "") == parent:
            found += [(depth, name, team), *tree(teams, name, depth + 1)]
    return found


def _amounts(amounts: dict[str, Any] | None) -> str:
    if not amounts:
        return "-"
    return " ".join(f"{x:g}" if model == "gpus" else f"{model}:{x:g}" for model, x in amounts.items())


def _budget(said: dict[str, Any] | None) -> str:
    milli = {unit: round(1000 * x) for unit, x in (said or {}).items() if unit != "per"}
    return budget({"gpu_hours": None, "dollars": None, **milli, "per": said["per"]}) if said else ""
