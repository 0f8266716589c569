"""Writes, as JSON to argv[1], what the raylet's book says that a fractional task, a whole-GPU task whose
environment lies about its device, and a member of a placement group hold."""

import json
import sys

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from moorage.cluster import rayapi


@ray.remote
def held() -> dict[str, dict[int, float]]:
    return rayapi.resource_ids()


ray.init(log_to_driver=False)
group = placement_group([{"CPU": 1, "GPU": 1}])
ray.get(group.ready())
inside = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=0)
anywhere = PlacementGroupSchedulingStrategy(placement_group=group)
answers = {
    "fraction": ray.get(held.options(num_gpus=0.25, num_cpus=2).remote()),
    "lying": ray.get(
        held.options(num_gpus=1, runtime_env={"env_vars": {"CUDA_VISIBLE_DEVICES": "77"}}).remote()
    ),
    "group": ray.get(held.options(num_gpus=1, num_cpus=1, scheduling_strategy=inside).remote()),
    "anywhere in the group": ray.get(
        held.options(num_gpus=1, num_cpus=1, scheduling_strategy=anywhere).remote()
    ),
}
with open(sys.argv[1], "w", encoding="utf-8") as out:
    json.dump(answers, out)
