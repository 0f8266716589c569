"""A driver that serves two small models until it is stopped, as a user's job script would: used by test_serve.py.

The model is arithmetic on purpose: what is tested is the endpoint around it. It runs as a script, so that a
test can SIGTERM and SIGKILL a real driver process; what it did is told in the JSON lines it prints.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from pydantic import Field
from ray import serve

from moorage.serve.apps import Deployed
from moorage.serve.batching import BatchLimits
from moorage.serve.contract import Answer, Request
from moorage.serve.host import HostSpec
from moorage.serve.placement import placement

COMPUTE_S = 0.2


class Trip(Request):
    carrier: str
    distance: float = Field(gt=0)


class Verdict(Answer):
    probability: float
    late: bool


class Arithmetic:
    """Late when far; each batch costs `COMPUTE_S`, as a forward pass would. Carrier XX makes it raise."""

    name, data_version = "trips", "v001"

    def __init__(self, version: str) -> None:
        self.version = version

    def predict(self, rows: Sequence[Trip]) -> list[Mapping[str, Any]]:
        time.sleep(COMPUTE_S)
        if any(row.carrier == "XX" for row in rows):
            raise ValueError("no such carrier")
        return [{"probability": row.distance / 5000, "late": row.distance > 2500} for row in rows]


def main(port: int, team: str) -> None:
    ray.init(log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
    deployed = Deployed()
    with deployed.stopping():
        limits = BatchLimits(max_rows=16)
        apps = deployed.deploy(
            team,
            [
                (
                    HostSpec(
                        endpoint=name,
                        load=lambda v=v: Arithmetic(v),
                        request=Trip,
                        answer=Verdict,
                        limits=limits,
                    ),
                    placement(index, gpus=0.5, cpus=0.5),
                )
                for index, (name, v) in enumerate((("trips", "2"), ("trips-challenger", "1")))
            ],
        )
        infos = [serve.get_app_handle(app).info.remote().result() for app in apps]
        print(json.dumps({"event": "ready", "apps": apps, "infos": infos}), flush=True)
        deployed.until_stopped()
        print(json.dumps({"event": "removed", "apps": deployed.remove()}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
