"""`moorage metrics DIR`: what Prometheus and Grafana need to watch a pool, as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import yaml

from moorage.errors import InvalidRequest
from moorage.runtime.commands import shared
from moorage.runtime.telemetry import boards

RAYS_OWN = Path("/tmp/ray/session_latest")  # where a Ray that was started by hand keeps its session
DISCOVERY = "prom_metrics_service_discovery.json"


@click.command(
    epilog="\b\nExamples:\n  moorage metrics ./watch\n  prometheus --config.file=./watch/prometheus.yml\n"
    "  moorage metrics ./watch --into-ray     # the boards beside Ray's own"
)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The token that Prometheus shows [default: that of --as in the pool's folder].",
)
@click.option(
    "--ray-session", type=click.Path(path_type=Path), help="Ray's session folder [default: the pool's]."
)
@click.option(
    "--into-ray", is_flag=True, help="Also put the boards where Ray's own Grafana setup reads them."
)
@click.option(
    "--prometheus", default="http://127.0.0.1:9090", show_default=True, help="Where Grafana finds it."
)
@shared.pool_options
def metrics(
    folder: Path,
    token_file: Path | None,
    ray_session: Path | None,
    into_ray: bool,
    prometheus: str,
    home: Path | None,
    principal: str,
    as_json: bool,
) -> None:
    """Write a Prometheus configuration that reads the pool and its Ray nodes, Grafana boards, and Grafana's
    provisioning of both into FOLDER. What was written there before is replaced."""
    from moorage.runtime.pool.home import find_home

    where = find_home(home)
    with shared.connect(home, principal) as client:
        target = urlsplit(client.url).netloc
    token = (token_file or where.token(principal)).absolute()
    if not token.is_file():
        raise InvalidRequest(f"There is no token in {token}", todo="give --token-file", code="no-token-file")
    pools = where.ray_temp / "session_latest"
    session = ray_session or (pools if pools.exists() else RAYS_OWN)
    folder = folder.absolute()
    drawn = {name: json.dumps(boards.board(name), indent=1) + "\n" for name in boards.BOARDS}
    files = {
        folder / "prometheus.yml": _yaml(boards.prometheus(target, str(token), str(session / DISCOVERY))),
        folder / "grafana/provisioning/datasources/moorage.yml": _yaml(boards.grafana_source(prometheus)),
        folder / "grafana/provisioning/dashboards/moorage.yml": _yaml(
            boards.grafana_boards(str(folder / "grafana/dashboards"))
        ),
        **{folder / f"grafana/dashboards/{name}.json": text for name, text in drawn.items()},
    }
    if into_ray:
        into = session / "metrics" / "grafana" / "dashboards"
        if not session.exists():
            raise InvalidRequest(
                f"There is no Ray session in {session}", todo="give --ray-session", code="no-session"
            )
        files |= {into / f"{name}.json": text for name, text in drawn.items()}
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    if as_json:
        shared.print_json({"files": [str(path) for path in files], "target": target})
        return
    for path in files:
        click.echo(path)
    click.echo(f"Start Prometheus with: prometheus --config.file={folder / 'prometheus.yml'}")


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False)
