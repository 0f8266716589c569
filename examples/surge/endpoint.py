"""An endpoint of one replica that grows to four when it is busy: run it as a job of one GPU.

The model is a pause on purpose: what is shown is how replicas come and go.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from pydantic import Field

from moorage.serve.apps import Deployed
from moorage.serve.autoscale import autoscaled
from moorage.serve.batching import BatchLimits
from moorage.serve.contract import Answer, Request
from moorage.serve.host import HostSpec
from moorage.serve.scaling import ScalePolicy

COMPUTE_S, BATCH = 0.4, 2
"""A replica answers BATCH / COMPUTE_S = 5 rows a second."""
POLICY = ScalePolicy(max_replicas=4, target_ongoing=3, upscale_delay_s=4, downscale_delay_s=10)


class Trip(Request):
    distance: float = Field(gt=0)


class Estimate(Answer):
    minutes: float


class Model:
    name, version, data_version = "trips", "1", "v001"

    def predict(self, rows: Sequence[Trip]) -> list[Mapping[str, Any]]:
        time.sleep(COMPUTE_S)
        return [{"minutes": row.distance / 8} for row in rows]


def main() -> None:
    ray.init(log_to_driver=False)
    spec = HostSpec(
        endpoint="trips", load=Model, request=Trip, answer=Estimate, limits=BatchLimits(max_rows=BATCH)
    )
    deployed = Deployed()
    with deployed.stopping() as stop:
        scaler = autoscaled(deployed, os.environ.get("MOORAGE_TEAM", "serving"), spec, POLICY)
        print(json.dumps({"event": "ready", "replicas": scaler.serving}), flush=True)
        if not stop.is_set():
            deployed.until_stopped()
        scaler.stop()
        deployed.remove()


if __name__ == "__main__":
    main()
