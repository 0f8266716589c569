"""What the guard is for: a driver that goes straight to the Ray cluster, past the front door, and takes a GPU.

    python rogue.py FILE      (RAY_ADDRESS and Ray's token in the environment)

Writes a line to FILE when its actor has the GPU, and another with the error once the actor is gone.
"""

import sys
import time

import ray


@ray.remote(num_gpus=1, num_cpus=0)
class Squatter:
    def device(self) -> list[int]:
        return ray.get_gpu_ids()

    def stay(self) -> None:
        while True:
            time.sleep(0.1)


def say(text: str) -> None:
    with open(sys.argv[1], "a", encoding="utf-8") as out:
        out.write(f"{text}\n")


ray.init(log_to_driver=False)
squatter = Squatter.remote()
say(f"holds {len(ray.get(squatter.device.remote()))} GPU")
try:
    ray.get(squatter.stay.remote())
except ray.exceptions.RayActorError as error:
    say(type(error).__name__)
