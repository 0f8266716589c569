"""A lease as a job sees it, and as Ray terms: pure functions and types, no Ray import.

The control plane writes `MOORAGE_LEASE` (JSON) into a job's environment; jobs, trainers and replicas read it
here. Workers are pinned to the nodes the lease names by Ray's own node id label: the raylet then picks the
device.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
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


def check_fits(lease: LeaseView, gpus: float, cpus: float) -> WorkerView:
    """A worker of the lease that has that much. Raises `InvalidRequest` (code `lease-too-small`) when none has: the
    task would wait for ever."""
    for worker in lease.workers:
        if worker.gpus >= gpus - 1e-9 and worker.cpus >= cpus - 1e-9:
            return worker
    why = "the lease has no workers, only what the entrypoint itself asked for"
    if lease.workers:
        largest = max((worker.gpus, worker.cpus) for worker in lease.workers)
        count = f"{len(lease.workers)} workers, the largest" if len(lease.workers) > 1 else "1 worker,"
        why = f"the lease has {count} of {largest[0]:g} GPUs and {largest[1]:g} CPUs"
    ask = {
        "workers": "1",
        "gpus_per_worker": f"{gpus:g}",
        **({"cpus_per_worker": f"{cpus:g}"} if cpus > 1 else {}),
    }
    raise InvalidRequest(
        f"a task or actor of {gpus:g} GPUs and {cpus:g} CPUs fits into no worker of this job's lease",
        why=why,
        todo=f"submit it with --metadata-json '{json.dumps(ask)}', workers being how many of them at a time",
        code="lease-too-small",
    )


def bundle_selectors(
    lease: LeaseView,
    bundles: Sequence[Mapping[str, float]],
    *,
    one_node: bool = False,
    taken: Sequence[tuple[str, float]] = (),
) -> list[dict[str, str]] | None:
    """A label selector per bundle of a placement group, so that those with GPUs are where the lease has them.

    The largest bundles choose first, each the node of the lease that has the least room it fits into; a bundle may have
    several workers' devices of one node. None when no bundle asks for a GPU. Raises `InvalidRequest` (code
    `lease-too-small`) when the lease cannot hold them; `one_node`: when it cannot on one node.

    `taken`: (node, GPUs) of bundles that are there already. What fits beside them goes there; what fits only once they
    are gone is placed as if they were.
    """
    asked = [float(bundle.get("GPU", 0)) for bundle in bundles]
    if not any(asked):
        return None
    for there in (taken, ()) if taken else ((),):
        chosen = _laid_out(lease, asked, one_node, there)
        if chosen is not None:
            return [node_selector(node) if node else {} for node in chosen]
    where = "one node of the lease" if one_node else "the lease"
    raise InvalidRequest(
        f"a placement group of {sum(asked):g} GPUs in {len(bundles)} bundles does not fit into {where}",
        why=f"the lease has {lease.gpus:g} GPUs on {len({worker.ray_node_id for worker in lease.workers})} nodes",
        todo="ask for them at submission: workers and gpus_per_worker, with max_per_domain or required_topology",
        code="lease-too-small",
    )


def fits_beside(
    lease: LeaseView,
    bundles: Sequence[Mapping[str, float]],
    taken: Sequence[tuple[str, float]],
    one_node: bool,
) -> bool:
    """Whether those bundles fit into the lease beside what is `taken` of it, (node, GPUs) of each bundle."""
    return _laid_out(lease, [float(bundle.get("GPU", 0)) for bundle in bundles], one_node, taken) is not None


def left_over(lease: LeaseView, taken: Sequence[tuple[str, float]]) -> list[tuple[str, dict[str, float]]]:
    """(node, bundle) of what the lease has beside what is `taken` of it, (node, GPUs) of each: one bundle per worker of
    which something is left. Of a worker that is used in part these are its whole devices, or else the largest part of
    one; its CPUs in proportion."""
    workers = [worker for worker in lease.workers if worker.gpus]
    free = [[worker.milli_gpu / 1000] * len(worker.devices) for worker in workers]
    for node, gpus in sorted(taken, key=lambda one: -one[1]):
        spots = [
            (i, j)
            for i, worker in enumerate(workers)
            if worker.ray_node_id == node
            for j in range(len(free[i]))
        ]  # fmt: skip
        piece = min(gpus, 1.0)
        # The device that has least of what is enough, of the worker that has least besides; else the largest parts.
        spots.sort(
            key=lambda at: (
                (0, free[at[0]][at[1]], sum(free[at[0]]))
                if free[at[0]][at[1]] >= piece - 1e-6
                else (1, -free[at[0]][at[1]], 0)
            )
        )
        for i, j in spots:
            part = min(free[i][j], gpus)
            free[i][j], gpus = round(free[i][j] - part, 6), round(gpus - part, 6)
    found = []
    for worker, devices in zip(workers, free, strict=True):
        if sum(devices) >= worker.gpus - 1e-6:
            found.append((worker.ray_node_id, worker.resources()))
            continue
        whole = float(sum(1 for device in devices if device >= 1))
        gpus = whole or max(devices)
        if gpus > 1e-6:
            part = gpus / worker.gpus
            bundle = {name: round(amount * part, 6) for name, amount in worker.resources().items()}
            found.append((worker.ray_node_id, {**bundle, "GPU": gpus}))
    return found


def _laid_out(
    lease: LeaseView, asked: Sequence[float], one_node: bool, taken: Sequence[tuple[str, float]]
) -> list[str] | None:
    """The node of each bundle beside what is taken; None when they do not fit."""
    left: dict[str, list[float]] = {}
    for worker in lease.workers:
        for _ in worker.devices:
            left.setdefault(worker.ray_node_id, []).append(worker.milli_gpu / 1000)
    for node, gpus in taken:
        _chosen([gpus], {node: left.get(node, [])})
    for nodes in [[node] for node in left] if one_node else [list(left)]:
        chosen = _chosen(asked, {node: list(left[node]) for node in nodes})
        if chosen is not None:
            return chosen
    return None


def _chosen(asked: Sequence[float], room: dict[str, list[float]]) -> list[str] | None:
    """The node of each bundle ("" without a GPU); None when one has no place. `room` is used up."""
    found = [""] * len(asked)
    for i in sorted(range(len(asked)), key=lambda i: -asked[i]):
        if not asked[i]:
            continue
        ways = []
        for node, devices in room.items():
            taken = _devices_for(asked[i], devices)
            if taken is not None:
                ways.append((sum(devices), node, taken))
        if not ways:
            return None
        _, found[i], taken = min(ways)
        if asked[i] >= 1:
            for at in sorted(taken, reverse=True):
                del room[found[i]][at]
        else:
            room[found[i]][taken[0]] = round(room[found[i]][taken[0]] - asked[i], 6)
    return found


def _devices_for(gpus: float, devices: Sequence[float]) -> list[int] | None:
    """Indexes of the devices a bundle would take: whole ones, or the smallest remainder that is enough, as on Ray."""
    if gpus >= 1:
        whole = [at for at, free in enumerate(devices) if free >= 1]
        return whole[: round(gpus)] if len(whole) >= gpus else None
    enough = [(free, at) for at, free in enumerate(devices) if free >= gpus - 1e-9]
    return [min(enough)[1]] if enough else None


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
