"""A script that knows nothing of Moorage and deploys applications of its own: first too large, then of one replica."""

import json

import ray
from ray import serve


@serve.deployment(ray_actor_options={"num_gpus": 1, "num_cpus": 0.1})
class Model:
    def where(self) -> str:
        return str(ray.get_runtime_context().get_node_id())


ray.init()
told = {}
for name, options in {
    "replicas": {"num_replicas": 2},
    "autoscaling": {"autoscaling_config": {"min_replicas": 1, "max_replicas": 2}},
    "fits": {"num_replicas": 1},
}.items():
    try:
        handle = serve.run(Model.options(**options).bind(), name=f"serving-{name}", route_prefix=f"/{name}")
        told[name] = handle.where.remote().result()
        serve.delete(f"serving-{name}")
    except Exception as error:
        told[name] = getattr(error, "code", repr(error))
print("told " + json.dumps(told))
