"""GPU tasks that a task starts, then a placement group of the whole lease, then GPU tasks once more; first a task that
ends as tasks do, then one that is killed. argv: how many GPUs. Prints for each whether its tasks' results came, whether
the group was placed, and how many ran after it; then what a GPU task is told that makes such a group itself."""

import json
import os
import signal
import sys

import ray
from ray.util.placement_group import placement_group, remove_placement_group

GPUS = int(sys.argv[1])


@ray.remote(num_gpus=1, num_cpus=0.1)
def compute(i):
    return i


@ray.remote(num_cpus=0.1, max_retries=0)
def starts(killed):
    results = ray.get([compute.remote(i) for i in range(2 * GPUS)])
    if killed:
        os.kill(os.getpid(), signal.SIGKILL)
    return results


@ray.remote(num_gpus=1)
def makes():
    try:
        placement_group([{"GPU": 1}] * GPUS)
    except Exception as refused:
        return refused.code
    return "waits for itself"


ray.init(log_to_driver=False)
said = []
for killed in (False, True):
    try:
        results = ray.get(starts.remote(killed))
    except ray.exceptions.WorkerCrashedError:
        results = "killed"
    group = placement_group([{"GPU": 1}] * GPUS)
    placed = group.wait(60)
    remove_placement_group(group)
    said.append([results, placed, len(ray.get([compute.remote(i) for i in range(GPUS)]))])
print(json.dumps([*said, ray.get(makes.remote())]))
