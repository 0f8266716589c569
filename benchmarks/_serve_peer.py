"""The peers of serve_endpoint.py: the same model on bare Ray Serve, written as Ray's documentation shows it.

FastAPI with a pydantic type, `@serve.batch` with the same batch limit, in two settings of its wait: `/peer` waits
10 ms for a batch to fill (Ray's default), `/peer-no-wait` not at all (Ray's advice where a lone caller's latency
counts). Submitted beside the endpoint; runs until it is stopped.
"""

from __future__ import annotations

import sys
import threading

import ray
from fastapi import FastAPI
from flights_endpoint import Artifact, FlightRequest, FlightsPredictor
from ray import serve

WAIT_S = {"peer": 0.01, "peer-no-wait": 0.0}


def application(name: str, artifact: Artifact) -> serve.Application:
    """One of the peers; `@serve.batch` reads its wait where the class is made, so each has a class of its own."""
    app = FastAPI()

    @serve.deployment(name=name, ray_actor_options={"num_cpus": 1}, max_ongoing_requests=256)
    @serve.ingress(app)
    class Peer:
        def __init__(self, artifact: Artifact) -> None:
            self.predictor = FlightsPredictor(artifact)

        @serve.batch(max_batch_size=64, batch_wait_timeout_s=WAIT_S[name])
        async def compute(self, rows: list[FlightRequest]) -> list[dict]:
            return [dict(answer) for answer in self.predictor.predict(rows)]

        @app.post("/predict")
        async def predict(self, row: FlightRequest) -> dict:
            return await self.compute(row)

    return Peer.bind(artifact)


if __name__ == "__main__":
    ray.init(log_to_driver=False)
    artifact = Artifact(*sys.argv[1:])
    for name in WAIT_S:
        serve.run(
            application(name, artifact),
            name=name,
            route_prefix=f"/{name}",
            logging_config={"enable_access_log": False},
        )
    print('@moorage {"event": "ready"}', flush=True)
    threading.Event().wait()
