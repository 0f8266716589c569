"""Where replicas run: the lease's workers as Serve's `ray_actor_options`. Pure: no Ray import.

One worker of the lease is one replica. The selector pins the node; on the node the raylet picks the device,
so whether two replicas really share one is read back from its book (`/info` of each) and compared with the
lease by `device_of`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moorage.cluster.binding import LeaseView, WorkerView, current, node_selector
from moorage.errors import Infeasible, MoorageError


class WrongDevice(MoorageError):
    """A replica holds another device than its lease says."""

    code = "wrong-device"
    http_status = 500


def placement(
    index: int = 0, *, gpus: float = 0.0, cpus: float = 1.0, lease: LeaseView | None = None
) -> dict[str, Any]:
    """`ray_actor_options` of the replica that uses worker `index` (from 0) of this job's lease.

    Inside Moorage the lease decides everything and `gpus`, `cpus` are ignored; on bare Ray (no lease) they
    are what is asked for, unpinned. Raises `Infeasible` (code `lease-too-small`) when the lease has no such
    worker.
    """
    lease = lease or current()
    if lease is None:
        options: dict[str, Any] = {"num_cpus": cpus}
        return {**options, "num_gpus": gpus} if gpus else options
    if not 0 <= index < len(lease.workers):
        raise Infeasible(
            f"replica {index} has no place: the lease holds {len(lease.workers)} worker(s)",
            todo="ask for more with the metadata key `workers`, or deploy fewer replicas",
            code="lease-too-small",
        )
    worker = lease.workers[index]
    options = {"num_cpus": worker.cpus, "label_selector": node_selector(worker.ray_node_id)}
    return {**options, "num_gpus": worker.gpus} if worker.gpus else options


def device_of(info: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    """(Ray node id, device indexes) of a replica by its `/info`, which reads the raylet's own book."""
    return str(info["ray_node_id"]), tuple(sorted(int(index) for index in info["devices"]))


def check_devices(infos: Sequence[Mapping[str, Any]], lease: LeaseView) -> None:
    """Each replica holds the device its worker was leased, or `WrongDevice` says who holds what.

    Replicas with equal shares on one node are interchangeable, so devices are compared as multisets.
    """
    held = sorted(device_of(info) for info in infos)
    leased = sorted(_device(worker) for worker in lease.workers[: len(infos)])
    if held != leased:
        raise WrongDevice(
            "replicas are not on the devices of their lease",
            why=f"the raylets' book has {held}, lease {lease.lease_id} has {leased}",
            todo="an actor without a lease may hold a device: `moorage status` shows who holds what",
        )


def share_one_device(infos: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all these replicas hold parts of one and the same device."""
    devices = {device_of(info) for info in infos}
    return len(devices) == 1 and len(next(iter(devices))[1]) == 1


def _device(worker: WorkerView) -> tuple[str, tuple[int, ...]]:
    return worker.ray_node_id, tuple(sorted(worker.devices))
