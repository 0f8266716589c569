"""The guard's eyes and hands inside the agent: one look at who holds GPUs, and the end of one thing by its id.

Imports Ray when used. Calls are made from one thread of their own, so that a slow look holds up no observation.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from moorage.cluster import holdings
from moorage.cluster.binding import NODE_LABEL
from moorage.cluster.devicelooks import DeviceLooks, end_process
from moorage.scheduling.guard import Seen, Target

LOG = logging.getLogger("moorage.cluster.watching")


class Watcher:
    """Keeps only whose turn it is to be asked for its workers, and which nodes are being asked for their devices."""

    def __init__(self) -> None:
        self._turn = 0
        self._devices = DeviceLooks()

    def look(self, devices: bool = False) -> dict[str, Any]:
        """`Seen` as JSON values; with `devices`, also what runs on the nodes' devices. Raises what Ray raises."""
        import ray

        from moorage.cluster import rayapi

        at_ns = time.time_ns()
        nodes = [node for node in ray.nodes() if node["Alive"]]
        free = rayapi.available_per_node()
        used = {node["NodeID"]: _used(node, free.get(node["NodeID"], {})) for node in nodes}
        on_devices = self._devices.look(nodes) if devices else {}
        if not any(used.values()) and not any(on_devices.values()):
            return asdict(Seen(at_ns=at_ns, holdings=()))
        actors, all_actors = rayapi.live_actors(holdings.MAX_ROWS)
        groups, all_groups = rayapi.placement_groups(holdings.MAX_ROWS)
        rest = holdings.unexplained(used, actors, groups)
        turns = self._turns(sorted(rest))
        workers = {
            node["NodeID"]: rayapi.gpu_workers(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}")
            for node in nodes
            if node["NodeID"] in turns
        }
        known = {actor.id for actor in actors} | {""}
        young = any(worker.actor not in known for asked in workers.values() for worker in asked)
        records = holdings.Records(
            nodes={node["NodeID"]: _name(node) for node in nodes},
            actors=actors,
            starting=rayapi.starting_actors(holdings.MAX_ROWS) if young else (),
            groups=groups,
            workers=workers,
            processes=on_devices,
            deployers=self._deployers() if holdings.replicas_with_gpus(actors, groups) else {},
            drivers=rayapi.drivers(),  # after what they made: nobody is taken for gone who had not come yet
            own_job=rayapi.own_job_id(),
        )
        complete = all_actors and all_groups and len(turns) == len(rest)
        return asdict(holdings.assemble(records, at_ns, complete, rest))

    def _turns(self, wanted: list[str]) -> set[str]:
        """The nodes whose workers are asked this time."""
        first = self._turn % len(wanted) if wanted else 0
        self._turn += holdings.MAX_SCANS
        return set((wanted[first:] + wanted[:first])[: holdings.MAX_SCANS])

    @staticmethod
    def _deployers() -> Mapping[str, str] | None:
        """None when Serve does not say: its replicas are then not judged by who deployed them."""
        from moorage.cluster import rayapi

        try:
            return rayapi.serve_deployers()
        except Exception as error:  # what an application's settings unpickle to is its users' code
            LOG.warning("Serve did not say who deployed what: %r", error)
            return None

    @staticmethod
    def end(target: Target, key: str, owner: str) -> None:
        """End exactly one thing; one that is gone is fine. Raises what Ray raises."""
        import ray

        from moorage.cluster import rayapi

        LOG.warning("the guard ends %s %s of Ray job %s", target, key, owner)
        if target is Target.PROCESS:
            alive = {_name(node): node["NodeID"] for node in ray.nodes() if node["Alive"]}
            end_process(key, alive)
        elif target is Target.APP:
            rayapi.delete_app(key, owner)
        else:
            ends: dict[Target, Callable[[str], None]] = {
                Target.ACTOR: rayapi.kill_actor,
                Target.GROUP: rayapi.remove_group,
                Target.DRIVER: rayapi.finish_job,
            }
            ends[target](key)


def _used(node: Mapping[str, Any], free: Mapping[str, float]) -> int:
    """Milli-GPU that Ray has booked on a node."""
    total = float((node.get("Resources") or {}).get("GPU", 0))
    return round((total - free.get("GPU", 0)) * 1000)


def _name(node: Mapping[str, Any]) -> str:
    """As observation names it."""
    labels = node.get("Labels") or {}
    return str(labels.get(NODE_LABEL) or f"ray-{node['NodeID'][:12]}")
