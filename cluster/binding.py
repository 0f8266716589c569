"""A lease as a job sees it, and as Ray terms: pure functions and types, no Ray import.

The control plane writes `MOORAGE_LEASE` (JSON) into a job's environment; jobs, trainers and replicas read it
here. Workers are pinned to the nodes the lease names by Ray's own node id label: the raylet then picks the
device.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from moorage.errors import InvalidRequest

LEASE_VARIABLE = "MOORAGE_LEASE"
NODE_ID_LABEL = "ray.io/node-id"
NODE_LABEL = "moorage.io/node"
GPU_MODEL_LABEL = "moorage.io/gpu-model"
DEVICE_MIB_LABEL = "moorage.io/device-mib"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A node by its stable name and by Ray's id of this incarnation."""

    node: str
    ray_node_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """What one worker holds: `milli_gpu` and `gpu_mib` are per device in `devices` (device indexes on the
    node)."""

    node: str
    ray_node_id: str
    devices: tuple[int, ...]
    milli_gpu: int
    gpu_mib: int
    milli_cpu: int

    @property
    def gpus(self) -> float:
        """Ray's `num_gpus`: whole devices counted, or the fraction of the one device."""
        return len(self.devices) * self.milli_gpu / 1000

    @property
    def cpus(self) -> float:
        return self.milli_cpu / 1000

    def resources(self) -> dict[str, float]:
        """Ray's resource dictionary of this worker, zero entries left out."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus}
        return {name: amount for name, amount in wanted.items() if amount > 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseView:
    """The devices a job may use now. `epoch` is the fencing token: it rises whenever the lease changes."""

    lease_id: str
    epoch: int
    head: Place | None
    workers: tuple[WorkerView, ...]

    @property
    def gpus(self) -> float:
        return sum(worker.gpus for worker in self.workers)


def encode(lease: LeaseView) -> str:
    """The JSON of `MOORAGE_LEASE`: stable key order, so equal leases give equal text."""
    return json.dumps(asdict(lease), sort_keys=True, separators=(",", ":"))


def decode(text: str) -> LeaseView:
    """The inverse of `encode`. Raises `InvalidRequest` (code `lease-malformed`) when it is not a lease."""
    try:
        raw = json.loads(text)
        head = raw["head"]
        return LeaseView(
            lease_id=str(raw["lease_id"]),
            epoch=_whole(raw["epoch"]),
            head=None if head is None else _place(head),
            workers=tuple(_worker(worker) for worker in raw["workers"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidRequest(
            f"{LEASE_VARIABLE} does not hold a lease",
            why=f"{type(error).__name__}: {error}",
            todo="do not set it yourself: Moorage writes it when it starts a job",
            code="lease-malformed",
        ) from error


def current(environment: Mapping[str, str] | None = None) -> LeaseView | None:
    """The lease of the job this process belongs to, or None outside Moorage."""
    text = (os.environ if environment is None else environment).get(LEASE_VARIABLE)
    return decode(text) if text else None


def node_selector(ray_node_id: str) -> dict[str, str]:
    """The label selector that pins work to one node."""
    return {NODE_ID_LABEL: ray_node_id}


def worker_selectors(lease: LeaseView) -> list[dict[str, str]]:
    """One selector per worker, in the lease's order (Ray Train regroups ranks by node: rank i is not selector
    i)."""
    return [node_selector(worker.ray_node_id) for worker in lease.workers]


def head_selector(lease: LeaseView) -> dict[str, str] | None:
    """Where the entrypoint runs: the head's node, else nothing to say."""
    return None if lease.head is None else node_selector(lease.head.ray_node_id)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"expected a whole number from 0, got {value!r}")
    return value


def _place(raw: Mapping[str, Any]) -> Place:
    return Place(node=str(raw["node"]), ray_node_id=str(raw["ray_node_id"]))


def _worker(raw: Mapping[str, Any]) -> WorkerView:
    return WorkerView(
        node=str(raw["node"]),
        ray_node_id=str(raw["ray_node_id"]),
        devices=tuple(_whole(index) for index in raw["devices"]),
        milli_gpu=_whole(raw["milli_gpu"]),
        gpu_mib=_whole(raw["gpu_mib"]),
        milli_cpu=_whole(raw["milli_cpu"]),
    )
