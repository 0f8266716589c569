"""Six small models on eight GPUs: plain Ray, with not a word about where they go.

Each takes 0.6 of a GPU, so none shares a device with another, and Ray 2.60 alone may leave two of them waiting for
ever: it counts a node's free GPU as one sum. As a job of a pool they are kept within its lease, where all six fit.
"""

import json
import time

import ray

MODELS, GPU, WITHIN_S = 6, 0.6, 60


@ray.remote(num_gpus=GPU, num_cpus=0.1)
class Model:
    def where(self) -> tuple[str, list[int]]:
        """Ray's id of the node, and the indexes of the devices that Ray gave this actor."""
        return ray.get_runtime_context().get_node_id(), [int(device) for device in ray.get_gpu_ids()]


ray.init(log_to_driver=False)
began = time.monotonic()
models = [Model.remote() for _ in range(MODELS)]
ready, hanging = ray.wait([model.where.remote() for model in models], num_returns=MODELS, timeout=WITHIN_S)
said = {"running": ray.get(ready), "hanging": len(hanging), "seconds": round(time.monotonic() - began, 2)}
print("@moorage " + json.dumps({"event": "placed", **said}), flush=True)
