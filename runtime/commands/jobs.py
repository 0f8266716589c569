"""`moorage submit | jobs | logs | stop | cost`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from moorage.runtime.commands import shared
from moorage.runtime.control.api import STATES


@click.command(
    epilog="\b\nExample job.yaml:\n  entrypoint: python train.py\n  working_dir: .\n  team: ops\n"
    "  workers: 2\n  gpus_per_worker: 0.5\n\n\b\nExamples:\n  moorage submit job.yaml\n"
    "  moorage submit job.yaml --as research --json"
)
@click.argument("file", type=click.Path(path_type=Path))
@shared.pool_options
def submit(file: Path, home: Path | None, principal: str, as_json: bool) -> None:
    """Submit the job that FILE describes; prints its id. It is safe once this returns."""
    from moorage.runtime.commands import jobfile

    described = jobfile.read(file)
    with shared.connect(home, principal) as client:
        job_id = jobfile.submit(client, described)
        job = client.job(job_id)
    if as_json:
        shared.print_json(job)
        return
    click.echo(job_id)
    click.echo(f"{job['state'].lower()}: {job['message']}", err=True)


@click.command(epilog="\b\nExamples:\n  moorage jobs\n  moorage jobs --state running --json")
@click.option(
    "--state",
    type=click.Choice(STATES, case_sensitive=False),
    help="Only jobs in this state, for example PENDING.",
)
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 10_000))
@shared.pool_options
def jobs(state: str | None, limit: int, home: Path | None, principal: str, as_json: bool) -> None:
    """List jobs, newest first."""
    with shared.connect(home, principal) as client:
        found = client.jobs(state, limit)
    if as_json:
        shared.print_json(found)
        return
    made = shared.table("job", "team", "state", "created", "ran", "message", right=("ran",))
    for job in found:
        made.add_row(
            job["job_id"],
            job["team"],
            shared.state_text(job["state"]),
            shared.clock(job["created_ns"]),
            shared.span(job["started_ns"], job["ended_ns"]),
            job["message"],
        )
    shared.console().print(made)


@click.command(epilog="\b\nExample:\n  moorage logs JOB      (to follow: ray job logs --follow JOB)")
@click.argument("job_id", metavar="JOB")
@shared.pool_options
def logs(job_id: str, home: Path | None, principal: str, as_json: bool) -> None:
    """Print the log of JOB, all attempts; of a very long one its head and tail."""
    with shared.connect(home, principal) as client:
        text = client.logs(job_id)
        waiting = None if text or as_json else client.job(job_id)
    if waiting:
        click.echo(f"{job_id} has no log yet: {waiting['state']}, {waiting['message']}", err=True)
    if as_json:
        shared.print_json({"job_id": job_id, "logs": text})
    else:
        click.echo(text, nl=False)


@click.command(epilog="\b\nExample:\n  moorage stop JOB")
@click.argument("job_id", metavar="JOB")
@shared.pool_options
def stop(job_id: str, home: Path | None, principal: str, as_json: bool) -> None:
    """Stop JOB, waiting or running."""
    with shared.connect(home, principal) as client:
        stopped = client.stop(job_id)
    if as_json:
        shared.print_json({"job_id": job_id, "stopped": stopped})
    else:
        click.echo(f"{job_id} is being stopped." if stopped else f"{job_id} had already ended.")


BY = {"team": "teams", "job": "jobs", "model": "models"}


@click.command(
    epilog="\b\nExamples:\n  moorage cost\n  moorage cost --by model\n  moorage cost --by job --as ops --json"
)
@click.option("--by", type=click.Choice(list(BY)), help="One table by this alone, the most expensive first.")
@shared.pool_options
def cost(by: str | None, home: Path | None, principal: str, as_json: bool) -> None:
    """GPU time and money per team and job, folded from the same events as the ledger: what is billed is what was
    leased. With --by per team, per job, or per GPU model."""
    with shared.connect(home, principal) as client:
        found = client.cost()
    if by is not None:
        rows = found.get(BY[by], [])
        found = {BY[by]: sorted(rows, key=lambda row: (-row["micro_dollars"], -row["milli_gpu_ns"]))} | {
            name: found[name] for name in ("currency", "total")
        }
    if as_json:
        shared.print_json(found)
        return
    numbers = ("GPU seconds", "cost")
    if by is not None:
        made = shared.table(by, *(("team",) if by == "job" else ()), *numbers, "", right=numbers)
        for row in found[BY[by]]:
            names = (
                (row["job"], row["team"])
                if by == "job"
                else (row["team"] if by == "team" else row["gpu_model"],)
            )
            made.add_row(*(name or "-" for name in names), *_amounts(row), "")
        made.add_row("total", *(("",) if by == "job" else ()), *_amounts(found["total"]), "")
        shared.console().print(made)
        return
    made = shared.table("team", "job", *numbers, "", right=numbers)
    for team in found.get("teams", []):
        made.add_row(team["team"], "(all)", *_amounts(team), "")
        for job in found.get("jobs", []):
            if job["team"] == team["team"]:
                made.add_row("", job["job"], *_amounts(job), "")
    if total := found.get("total"):
        made.add_row("total", "", *_amounts(total), "")
    shared.console().print(made)


def _amounts(row: dict[str, Any]) -> tuple[str, str]:
    return f"{row['gpu_seconds']:,.1f}", shared.dollars(row["micro_dollars"])
