"""Plain Ray code that knows nothing of Moorage: argv[2] actors of argv[3] GPU, then a task of the same size when one of
them is gone (not if argv[5] is `count`). Writes to argv[1], as JSON, where Ray's own book says they ran."""

import json
import sys

import ray

SAY_WITHIN_S = float(sys.argv[4]) if len(sys.argv) > 4 else 120


def held() -> tuple[str, dict[str, dict[int, float]]]:
    from moorage.cluster import rayapi  # how the test reads the raylet's book; not what is tested

    return ray.get_runtime_context().get_node_id(), rayapi.resource_ids()


@ray.remote
class Model:
    def where(self) -> tuple[str, dict[str, dict[int, float]]]:
        return held()


ray.init(log_to_driver=False)
count, gpus = int(sys.argv[2]), float(sys.argv[3])
models = [Model.options(num_gpus=gpus).remote() for _ in range(count)]
asked = [model.where.remote() for model in models]
ready, hanging = ray.wait(asked, num_returns=count, timeout=SAY_WITHIN_S)
said = {"running": ray.get(ready), "hanging": len(hanging)}
if not hanging and sys.argv[5:] != ["count"]:
    task = ray.remote(num_gpus=gpus)(held)
    waiting = task.remote()
    early, _ = ray.wait([waiting], timeout=2)
    said["beyond the lease"] = len(early)
    ray.kill(models.pop())
    said["task"] = ray.get(waiting, timeout=SAY_WITHIN_S)
    try:
        ray.cancel(task.options(num_gpus=1).remote())
    except Exception as error:
        said["too large"] = f"{type(error).__name__}: {error}"
with open(sys.argv[1], "w", encoding="utf-8") as out:
    json.dump(said, out)
