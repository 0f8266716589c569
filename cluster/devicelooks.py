"""Asks the nodes what runs on their devices, by Ray tasks that take nothing, and never waits for an answer.

Imports Ray when used; called from one thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from moorage.cluster import devices
from moorage.cluster.holdings import RawProcess

LOG = logging.getLogger("moorage.cluster.devicelooks")
EVERY_S = 5.0
BLIND_S = 300.0
"""Until a node without NVML, or whose driver did not answer, is asked again."""
FORGET_S = 30.0
"""How long an answer stands when no newer one comes, and a question stays open."""
AT_ONCE = 16
END_WITHIN_S = 4.0


@dataclass(slots=True)
class DeviceLooks:
    """Per node: the open question, the last answer, and when to ask again (monotonic seconds)."""

    asked: dict[str, tuple[Any, float]] = field(default_factory=dict)
    known: dict[str, tuple[float, tuple[RawProcess, ...]]] = field(default_factory=dict)
    again: dict[str, float] = field(default_factory=dict)

    def look(self, nodes: Iterable[Mapping[str, Any]]) -> dict[str, Sequence[RawProcess]]:
        """What the nodes with GPUs last said; and asks those whose turn it is."""
        there = [node["NodeID"] for node in nodes if (node.get("Resources") or {}).get("GPU", 0) > 0]
        now = time.monotonic()
        self._collect(now)
        due = [node for node in there if node not in self.asked and self.again.get(node, 0.0) <= now]
        due.sort(key=lambda node: self.again.get(node, 0.0))
        for node in due[: max(0, AT_ONCE - len(self.asked))]:
            self.asked[node] = (_on(node, devices.processes), now)
        return {
            node: self.known[node][1]
            for node in there
            if node in self.known and now - self.known[node][0] <= FORGET_S
        }

    def _collect(self, now: float) -> None:
        import ray

        if not self.asked:
            return
        ready, _ = ray.wait([ref for ref, _ in self.asked.values()], num_returns=len(self.asked), timeout=0)
        for node, (ref, since) in list(self.asked.items()):
            if ref in ready:
                del self.asked[node]
                self.again[node] = now + (EVERY_S if self._answer(node, ref, since) else BLIND_S)
            elif now - since > FORGET_S:
                ray.cancel(ref)
                del self.asked[node]
                self.again[node] = now + EVERY_S

    def _answer(self, node: str, ref: Any, since: float) -> bool:
        """Keep what a node said; False when it has no eyes of its own."""
        import ray

        try:
            found = ray.get(ref)
        except ray.exceptions.RayError as error:
            LOG.warning("node %s did not say what runs on its devices: %r", node[:12], error)
            return True
        if found is None:
            self.known.pop(node, None)
            LOG.info("node %s has no NVML: what runs on its devices is not seen", node[:12])
            return False
        asked_ms = round((time.time() - (time.monotonic() - since)) * 1000)
        self.known[node] = (since, tuple(RawProcess(asked_ms=asked_ms, **one) for one in found))
        return True


def end_process(key: str, nodes: Mapping[str, str]) -> None:
    """SIGKILL `node/pid/started`; one that is gone, or whose node is, is fine. `nodes`: our name -> Ray's id.
    Raises what Ray raises."""
    import ray

    name, pid, started = key.rsplit("/", 2)
    if name in nodes:
        ray.get(_on(nodes[name], devices.end, int(pid), int(started)), timeout=END_WITHIN_S)


@cache
def _remote(function: Any) -> Any:
    """A cluster that was joined need not have Moorage on its nodes: the module goes along."""
    import ray

    ray.cloudpickle.register_pickle_by_value(devices)
    return ray.remote(num_cpus=0, max_retries=0)(function)


def _on(node: str, function: Any, *arguments: Any) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    where = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    return _remote(function).options(scheduling_strategy=where).remote(*arguments)
