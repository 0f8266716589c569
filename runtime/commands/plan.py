"""`moorage plan`: what other quotas would have done to the waits of the pool's own history, before they are applied."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moorage.errors import DataError, InvalidRequest, NotFound
from moorage.runtime.commands import shared
from moorage.runtime.commands.simulate import number, progress_bar, show_rest

if TYPE_CHECKING:
    from moorage.configs.pool import PoolSettings


@click.command(
    epilog="""\b
Examples:
  moorage plan quotas.yaml
  moorage plan quotas.yaml --since 30d --json
  moorage plan quotas.yaml --history backup/control.db
"""
)
@click.argument("file", metavar="QUOTAS", type=click.Path(path_type=Path))
@click.option(
    "--since", default="7d", show_default=True, metavar="AGE", help="How far back: 12h, 7d, 30d, 90d12h."
)
@click.option(
    "--history",
    metavar="FILE",
    help="Another pool's control.db, or its database's URL [default: that of the pool's home].",
)
@click.option(
    "--home",
    type=click.Path(path_type=Path),
    help="The pool's folder [default: $MOORAGE_HOME or ~/.moorage].",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
def plan(file: Path, since: str, history: str | None, home: Path | None, as_json: bool) -> None:
    """Replay the pool's last week with the quotas in force and with those of QUOTAS (a teams file), and print what
    changes: waits by team, GPU time, who is worst hit. Nothing is applied.

    Reads the control plane's database, so run it where that is; a live pool is not disturbed.
    """
    from moorage.configs.teams import load_teams, stored_teams
    from moorage.runtime.history import whatif
    from moorage.runtime.history.own import read_own

    proposed = load_teams(file)
    since_ns = _since(since)
    try:
        url, settings = _source(history, home)
        found = read_own(url, since_ns=since_ns, settings=settings)
    except (DataError, NotFound) as error:
        if error.code not in ("trace-empty", "history-not-found"):
            raise
        todo = {
            "trace-empty": f"nothing was submitted in the last {since}: say an earlier --since",
            "history-not-found": "name the pool's folder with --home, or a copy of its control.db with --history",
        }
        raise type(error)(error.what, why=error.why, todo=todo[error.code], code=error.code) from None
    if not found.teams:
        raise DataError("the history holds no teams file", code="history-without-teams")
    with progress_bar() as progress:
        report = whatif.what_if(
            found, stored_teams(found.teams), proposed, packing=settings.packing, progress=progress
        )
    report = {"since": since, "file": str(file), **report}
    if as_json:
        shared.print_json(report)
        return
    show(report)


def _since(age: str) -> int:
    """Wall time, ns."""
    from moorage.configs import units

    try:
        return time.time_ns() - units.duration_ns("--since", age)
    except InvalidRequest as error:
        raise InvalidRequest(
            error.what, why=error.why, todo="write 12h, 7d or 30d", code="bad-since"
        ) from None


def _source(history: str | None, home: Path | None) -> tuple[str, PoolSettings]:
    """The URL of the database that is asked for, and what the pool's file says."""
    from moorage.configs.pool import PoolSettings, load_pool
    from moorage.runtime.pool.home import find_home

    where = find_home(home)
    settings = load_pool(where.pool_yaml) if where.pool_yaml.is_file() else PoolSettings()
    if history is not None:
        url = history if "://" in history else f"sqlite:///{Path(history).absolute()}"
        return url, settings if home else PoolSettings()
    return settings.database or f"sqlite:///{where.control_db}", settings


def show(found: dict[str, Any]) -> None:
    """Tables for people: `before -> after` in one cell."""
    screen = shared.console()
    screen.print(
        f"The last {found['since']}: {found['jobs']} jobs of {len(found['teams'])} teams on {found['nodes']} nodes "
        f"with {found['gpus']} GPUs, replayed with the quotas in force and with {found['file']}. Nothing is applied."
    )
    for line in changed(found["changes"]):
        screen.print(f"  {line}")
    screen.print()
    heads = ("jobs", "mean wait", "95%", "longest", "GPU-hours", "of the pool")
    made = shared.table("team", *heads, "", title="In force -> proposed", right=heads)
    for one in found["teams"]:
        made.add_row(one["team"], *cells(one["before"], one["after"]))
    made.add_row("all", *cells(found["before"], found["after"]))
    screen.print(made)
    was = found["as_it_was"]
    screen.print(
        f"As it really was: mean wait {length(was['wait_mean_s'])}, 95% {length(was['wait_p95_s'])}, "
        f"longest {length(was['wait_longest_s'])}."
    )
    by = found["jobs_by_change"]
    screen.print(
        f"{by['longer']} jobs wait longer, {by['shorter']} shorter, {by['same']} as long; {by['refused']} are refused."
    )
    show_jobs(found)
    show_rest(found)


def show_jobs(found: dict[str, Any]) -> None:
    screen = shared.console()
    if found["worst_hit"]:
        heads = ("GPUs", "in force", "proposed")
        made = shared.table("job", "team", *heads, title="Worst hit (wait)", right=heads)
        for one in found["worst_hit"]:
            waits = (length(one["wait_before_s"]), length(one["wait_after_s"]))
            made.add_row(one["job"], one["team"], f"{one['gpus']:g}", *waits)
        screen.print()
        screen.print(made)
    if found["refused"]:
        made = shared.table(
            "job", "team", "GPUs", "why", title="Refused under the proposed quotas", right=("GPUs",)
        )
        for one in found["refused"]:
            made.add_row(one["job"], one["team"], f"{one['gpus']:g}", one["why"])
        screen.print()
        screen.print(made)


def cells(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    def pair(old: str, new: str) -> str:
        return old if old == new else f"{old} -> {new}"

    return [
        pair(str(before["jobs"]), str(after["jobs"])),
        *(
            pair(length(before[f"wait_{w}_s"]), length(after[f"wait_{w}_s"]))
            for w in ("mean", "p95", "longest")
        ),
        pair(number(before["gpu_hours"], 1), number(after["gpu_hours"], 1)),
        pair(f"{before['utilisation_percent']:.1f}%", f"{after['utilisation_percent']:.1f}%"),
    ]


def length(seconds: float | None) -> str:
    """A wait in words; '-' where nobody waited because nobody ran."""
    if seconds is None:
        return "-"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def budget(value: dict[str, Any]) -> str:
    """'10 gpu_hours and 5 dollars a month'."""
    amounts = [
        f"{value[unit] / 1000:g} {unit}" for unit in ("gpu_hours", "dollars") if value[unit] is not None
    ]
    return f"{' and '.join(amounts)} a {value['per']}"


def changed(changes: list[dict[str, Any]]) -> list[str]:
    """The difference of the two files, a line each."""

    def said(one: dict[str, Any], value: Any) -> str:
        if one["figure"] == "team":
            return "there" if value else "not there"
        if one["figure"] in ("parent", "weight"):
            return str(value) or "none"
        if one["figure"] == "default_lease":
            return "none" if not value else " ".join(f"{k}={v}" for k, v in value.items())
        if one["figure"] == "budget":
            return "none" if value is None else budget(value)
        return ("0" if one["figure"] == "quota" else "no bound") if value is None else shared.gpus(value)

    lines = []
    for one in changes:
        model = "" if one["gpu_model"] in ("", "gpus") else f" of {one['gpu_model']}"
        lines.append(
            f"{one['team']}: {one['figure']}{model} {said(one, one['before'])} -> {said(one, one['after'])}"
        )
    return lines or ["the quotas are the same"]
