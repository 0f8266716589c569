"""Deploys one application, says so, then a second one: used by test_pool_lifecycle.py."""

from __future__ import annotations

import ray
from ray import serve


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Plain:
    def __call__(self, _request: object) -> str:
        return "ok"


if __name__ == "__main__":
    ray.init(log_to_driver=False)
    for name in ("first", "second"):
        serve.run(Plain.bind(), name=name, route_prefix=f"/{name}")  # type: ignore[attr-defined]
        print(f"@{name}", flush=True)
