"""A script from a laptop, as Ray's own examples are: it says how large its cluster is, twice, and ends Serve.

python laptop.py SERVE_PORT
"""

import sys
import time
import urllib.request

import ray
from ray import serve
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

ray.init(num_cpus=2, num_gpus=2)


@ray.remote(num_gpus=1)
class Holder:
    def devices(self):
        return len(ray.get_gpu_ids())


@ray.remote(num_gpus=0.5)
def half():
    print("printed in a task")
    return len(ray.get_gpu_ids())


@ray.remote(num_gpus=0.5)
def group_of_a_task():
    return ray.util.get_current_placement_group()


def free():
    return ray.available_resources().get("GPU", 0)


print("cluster", ray.cluster_resources()["GPU"], "free", free())
holder = Holder.remote()
print("actor", ray.get(holder.devices.remote()), "tasks", ray.get([half.remote() for _ in range(4)]))
deadline = time.monotonic() + 60
while free() != 1 and time.monotonic() < deadline:  # Ray's figure follows what happens
    time.sleep(0.1)
print("beside the actor", free(), "in", ray.get(group_of_a_task.remote()))
ray.shutdown()

ray.init(num_gpus=1, namespace="again")
print("again", ray.get([half.remote() for _ in range(3)]))
print("typed", ray.get(half.options(accelerator_type="L4", memory=50 * 1024**2).remote()))
ray.shutdown()

ray.init()
group = placement_group([{"GPU": 1}, {"GPU": 1}])
ray.get(group.ready(), timeout=60)
inside = PlacementGroupSchedulingStrategy(placement_group=group)
print("group", ray.get(Holder.options(num_cpus=0, scheduling_strategy=inside).remote().devices.remote()))
remove_placement_group(group)


@serve.deployment
def hello(request):
    return "hello"


serve.run(hello.bind(), name="laptop", route_prefix="/laptop")
with urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/laptop", timeout=30) as answer:
    print("served", answer.read().decode())
serve.shutdown()
ray.shutdown()
