"""Start an actor for each worker of this job's lease, and write to argv[1], as JSON, where Ray itself says that they
are, all at the same time, and where this driver is; then stay until stopped."""

import json
import os
import sys
import time

import ray

import moorage
from moorage.cluster import rayapi
from moorage.cluster.binding import node_selector


@ray.remote
class Worker:
    """It keeps its device, so that no two of them can have had the same one after each other."""

    def where(self) -> tuple[str, list[int]]:
        return ray.get_runtime_context().get_node_id(), sorted(rayapi.resource_ids().get("GPU", {}))


ray.init(log_to_driver=False)
lease = moorage.context()
assert lease is not None, "not under a lease"
workers = [
    Worker.options(
        num_gpus=worker.gpus, num_cpus=worker.cpus, label_selector=node_selector(worker.ray_node_id)
    ).remote()
    for worker in lease.workers
]
said = {
    "driver": ray.get_runtime_context().get_node_id(),
    "workers": ray.get([worker.where.remote() for worker in workers]),
    "labels": {node["NodeID"]: node["Labels"] for node in ray.nodes()},
}
with open(sys.argv[1] + ".part", "w", encoding="utf-8") as out:
    json.dump(said, out)
os.rename(sys.argv[1] + ".part", sys.argv[1])
while True:
    time.sleep(60)
