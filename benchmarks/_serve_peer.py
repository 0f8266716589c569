"""The peer of serve_endpoint.py: the same model on bare Ray Serve, written as Ray's documentation shows it.

FastAPI with a pydantic type, `@serve.batch` with the same batch limit. Submitted beside the endpoint; runs
until it is stopped.
"""

from __future__ import annotations

import sys
import threading

import ray
from fastapi import FastAPI
from flights_endpoint import Artifact, FlightRequest, FlightsPredictor
from ray import serve

app = FastAPI()


@serve.deployment(ray_actor_options={"num_cpus": 1}, max_ongoing_requests=256)
@serve.ingress(app)
class Peer:
    def __init__(self, artifact: Artifact) -> None:
        self.predictor = FlightsPredictor(artifact)

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.01)
    async def compute(self, rows: list[FlightRequest]) -> list[dict]:
        return [dict(answer) for answer in self.predictor.predict(rows)]

    @app.post("/predict")
    async def predict(self, row: FlightRequest) -> dict:
        return await self.compute(row)


if __name__ == "__main__":
    ray.init(log_to_driver=False)
    name, version, path, sha256, features = sys.argv[1:]
    serve.run(
        Peer.bind(Artifact(name, version, path, sha256, features)),
        name="peer",
        route_prefix="/peer",
        logging_config={"enable_access_log": False},
    )
    print('@moorage {"event": "ready"}', flush=True)
    threading.Event().wait()
