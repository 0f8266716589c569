"""Serve the champion and its challenger on one GPU: two replicas of half a device each, two endpoints.

    ray job submit --metadata-json '{"workers": "2", "gpus_per_worker": "0.5", ...}' -- python serve_models.py

Runs until it is stopped, then takes its endpoints away. On bare Ray (no lease) it starts Serve on loopback itself.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import ray
from flights_endpoint import LIMITS, Artifact, FlightAnswer, FlightRequest, loader
from ray import serve

from moorage.cluster.binding import current
from moorage.errors import MoorageError
from moorage.runtime.client import Client
from moorage.runtime.registry import Registry
from moorage.serve.apps import Deployed
from moorage.serve.batching import BatchLimits
from moorage.serve.host import HostSpec
from moorage.serve.placement import check_devices, placement, share_one_device


def say(event: str, **facts: object) -> None:
    print("@moorage " + json.dumps({"event": event, **facts}), flush=True)


def challenger_of(registry: Registry, model: str) -> str:
    """Who answers beside the champion: the challenger, else the previous champion, else the newest other version.

    With only one version in the registry it is the champion once more.
    """
    aliases = registry.aliases(model)
    for alias in ("challenger", "previous"):
        if alias in aliases:
            return f"models:/{model}@{alias}"
    others = [one.version for one in registry.versions(model) if one.version != aliases.get("champion")]
    return f"models:/{model}/{others[0]}" if others else f"models:/{model}@champion"


def resolve(registry: Registry, uri: str, data: Path) -> Artifact:
    """The registry compares every byte with its SHA-256 here; the replica does so again before it loads."""
    found = registry.resolve(uri)
    features = data / "features" / "flights" / found.data_version
    return Artifact(found.name, str(found.version), str(found.path), found.sha256, str(features))


def started_serve() -> None:
    """Serve is up in a Moorage pool; on bare Ray it is started here, on loopback."""
    if current() is None:
        serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ.get("SERVE_PORT", "8000"))})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="flights", help="name in the registry")
    parser.add_argument("--champion", help="models:/... (default: the alias champion)")
    parser.add_argument("--challenger", help="models:/... (default: challenger, previous or newest other)")
    parser.add_argument("--data", default=os.environ.get("MOORAGE_DATA"), help="the pool's data folder")
    parser.add_argument("--gpus", type=float, default=0.5, help="per replica, where no lease says so")
    parser.add_argument("--max-batch", type=int, default=LIMITS.max_rows, help="rows")
    parser.add_argument("--batch-wait-ms", type=float, default=LIMITS.wait_ms)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if not options.data:
        raise SystemExit("say where the pool's data is: --data, or MOORAGE_DATA")
    began = time.monotonic()
    data, registry = Path(options.data), Registry.open(options.data)
    chosen = {
        "flights": options.champion or f"models:/{options.model}@champion",
        "flights-challenger": options.challenger or challenger_of(registry, options.model),
    }
    artifacts = {name: resolve(registry, uri, data) for name, uri in chosen.items()}
    say("models", **{name: f"{one.name} v{one.version}" for name, one in artifacts.items()})

    ray.init(log_to_driver=False)
    started_serve()
    deployed = Deployed()
    with deployed.stopping() as stop:
        team = os.environ.get("MOORAGE_TEAM", "ops")
        limits = BatchLimits(max_rows=options.max_batch, wait_ms=options.batch_wait_ms)
        apps = deployed.deploy(
            team,
            [
                (
                    HostSpec(
                        endpoint=name,
                        load=loader(one),
                        request=FlightRequest,
                        answer=FlightAnswer,
                        limits=limits,
                    ),
                    placement(index, gpus=options.gpus),
                )
                for index, (name, one) in enumerate(artifacts.items())
            ],
        )
        infos = [serve.get_app_handle(app).info.remote().result() for app in apps]
        lease = current()
        if lease is not None:
            check_devices(infos, lease)
            with Client.from_env() as client:
                for name, app in zip(artifacts, apps, strict=True):
                    client.publish_endpoint(name, app, f"/{app}")
        say(
            "ready",
            endpoints=list(artifacts),
            applications=apps,
            infos=infos,
            one_device=share_one_device(infos),
            seconds=round(time.monotonic() - began, 1),
        )
        if not stop.is_set():
            deployed.until_stopped()
        say("stopping", removed=deployed.remove())


if __name__ == "__main__":
    try:
        main()
    except MoorageError as error:
        say("failed", code=error.code)
        sys.exit(str(error))
