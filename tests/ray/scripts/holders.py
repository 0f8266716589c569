"""Holds GPUs in one of several ways and says so in files: `holders.py WAY FOLDER [ADDRESS]`, used by test_guard.py.

Each actor and task appends the time to its own file, ten times a second: whether it works is read there.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import placement_group


@ray.remote(num_gpus=1, num_cpus=0)
class Worker:
    def __init__(self, folder: str, name: str, slow: bool = False) -> None:
        self.file = Path(folder) / name
        while slow:
            self.beat()

    def beat(self) -> None:
        with self.file.open("a", encoding="utf-8") as out:
            out.write(f"{time.time()}\n")
        time.sleep(0.1)

    def work(self) -> None:
        while True:
            self.beat()


@ray.remote(num_gpus=1, num_cpus=0, max_retries=0)
def task(folder: str, name: str) -> None:
    Worker.__ray_actor_class__(folder, name).work()


def watch(folder: str, name: str, work: Any) -> None:
    """Until it dies: then say how."""
    try:
        ray.get(work)
    except ray.exceptions.RayError as error:
        said = Path(folder) / f"{name}.says"
        said.write_text(type(error).__name__, encoding="utf-8")
        said.rename(Path(folder) / f"{name}.died")


def leased() -> dict[str, Any]:
    """Options of an actor on the node of this job's first leased worker."""
    from moorage.cluster.binding import current, node_selector

    lease = current()
    assert lease is not None
    return {"label_selector": node_selector(lease.workers[0].ray_node_id)}


def serve(folder: str) -> None:
    from ray import serve as rs

    @rs.deployment(ray_actor_options={"num_gpus": 1, "num_cpus": 0, **leased()})
    class App:
        def __call__(self, _request: object) -> str:
            return "ok"

    rs.run(App.bind(), name="guarded", route_prefix="/guarded")
    (Path(folder) / "serving").touch()


def main(way: str, folder: str, address: str = "auto") -> None:
    ray.init(address=address, log_to_driver=False, namespace="rogue")
    if way == "actor":
        watch(folder, "rogue", Worker.options(name="bad").remote(folder, "rogue").work.remote())
    elif way == "slow":
        watch(folder, "slow", Worker.remote(folder, "slow", True).work.remote())
    elif way == "task":
        watch(folder, "task", task.remote(folder, "task"))
    elif way == "group":
        group = placement_group([{"GPU": 1}], lifetime="detached", name="leak")
        # No task in it, no time to go: a guard that looks meanwhile would find a living owner without a lease.
        os._exit(0 if group.wait(60) else 1)
    elif way == "serve":
        serve(folder)
    else:
        first = Worker.options(**leased()).remote(folder, "first").work.remote()
        if way == "two":
            time.sleep(1)
            watch(folder, "second", Worker.options(**leased()).remote(folder, "second").work.remote())
        del first
    while not (Path(folder) / "end").exists():
        time.sleep(0.1)


if __name__ == "__main__":
    main(*sys.argv[1:])
