"""The one module that touches what Ray does not call public API. It knows Ray 2.60 and refuses any other.

Everything here was read in Ray's source at that version; a new Ray means reading it again, then adding it to
`KNOWN`. Importing this module imports Ray.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import cache
from typing import Any

import ray
import ray._private.state
import ray._private.utils
import ray._private.worker
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import (
    gcs_pb2,
    gcs_service_pb2,
    gcs_service_pb2_grpc,
    node_manager_pb2,
    node_manager_pb2_grpc,
)

from moorage.cluster.holdings import RawActor, RawDriver, RawGroup, RawWorker
from moorage.cluster.known import KNOWN, is_known
from moorage.errors import MoorageError


class UnknownRay(MoorageError):
    """This Ray was never checked against what this module relies on."""

    code = "ray-version-unknown"


def check_version(version: str | None = None) -> str:
    """Ray's version, when it is one this module knows; raises `UnknownRay`."""
    found: str = ray.__version__ if version is None else version
    if not is_known(found):
        raise UnknownRay(
            f"Ray {found} is installed",
            why=f"Moorage relies on internals it has checked only in Ray {', '.join(v + 'x' for v in KNOWN)}",
            todo="install ray==2.60.0",
        )
    return found


def resource_ids() -> dict[str, dict[int, float]]:
    """What the raylet's own book says the calling worker holds, as {resource: {index: amount}}.

    For example {"CPU": {0: 1.0}, "GPU": {2: 0.5}}: half of the node's device 2.

    Keys of placement groups (`GPU_group_<id>`) are folded into their resource. Unlike `ray.get_gpu_ids()`
    this does not echo CUDA_VISIBLE_DEVICES, which a runtime_env may overwrite.
    """
    check_version()
    worker: Any = ray._private.worker.global_worker
    held: dict[str, dict[int, float]] = {}
    for key, slots in worker.core_worker.resource_ids().items():
        name, _, group = key.partition("_group_")
        if "_" in group:
            continue  # one bundle's share; the key of the whole group, always there too, holds the same slots
        if name == "bundle":
            continue  # the marker that says "inside this group", not a resource anyone asked for
        held.setdefault(name, {}).update({int(index): float(amount) for index, amount in slots})
    return held


def available_per_node() -> dict[str, dict[str, float]]:
    """Free resources by Ray node id, as the GCS has them (a heartbeat old at most)."""
    check_version()
    state: Any = ray._private.state
    return {node: dict(free) for node, free in state.available_resources_per_node().items()}


def dashboard_url(context: Any) -> str:
    """The dashboard of the cluster that `ray.init` just joined, without a trailing slash; "" when it has
    none."""
    url: str = context.address_info.get("webui_url") or ""
    return f"http://{url}" if url and "://" not in url else url


@contextlib.contextmanager
def address_file_kept_in(temp_dir: str) -> Iterator[None]:
    """Make `cluster_utils.Cluster` note its address in its own temp folder, not in Ray's machine-wide file.

    In the machine-wide one any bare `ray.init()` would try to join this pool, past the front door. Noted nowhere,
    the pool's job supervisors look for *any* GCS process and start drivers in another cluster of this machine.
    """
    original = ray._private.utils.write_ray_address
    ray._private.utils.write_ray_address = lambda address, _=None: original(address, temp_dir)
    try:
        yield
    finally:
        ray._private.utils.write_ray_address = original


def serve_url() -> str:
    """Where Serve's proxy really listens: a Serve that already ran keeps the port it was first given."""
    from ray.serve.context import _get_global_client

    options = _get_global_client().http_config
    return f"http://{options.host}:{options.port}"


def node_processes(node: Any) -> dict[str, list[int]]:
    """The processes of one `ray._private.node.Node` by kind (`raylet`, `gcs_server`, ...): their pids."""
    return {kind: [info.process.pid for info in infos] for kind, infos in node.all_processes.items()}


def dead_kinds(node: Any) -> list[str]:
    """Kinds of this node's processes that have ended."""
    return sorted({kind for kind, _ in node.dead_processes()})


def children_stay_in_group() -> bool:
    """Whether Ray itself keeps what this process starts within the placement group it runs in."""
    return bool(ray._private.worker.global_worker.should_capture_child_tasks_in_placement_group)


def token_is_on() -> bool:
    """Whether this process was told to authenticate to Ray."""
    return os.environ.get("RAY_AUTH_MODE") == "token"


def driver_is_dead(job_id: str, timeout_s: float = 5) -> bool:
    """Whether the GCS says that the driver of Ray job `job_id` (hex) has ended; False when it never heard of
    it."""
    check_version()
    jobs = ray._private.worker.global_worker.gcs_client.get_all_job_info(
        job_or_submission_id=job_id, skip_is_running_tasks_field=True, timeout=timeout_s
    )
    return any(job.job_id.hex() == job_id and job.is_dead for job in jobs.values())


# -- who holds GPUs, and how that is ended: used by the guard

RPC_TIMEOUT_S = 4.0
_NIL = b"\xff"
_HOLDING = ("CREATED", "RESCHEDULING")
"""States in which a placement group may hold bundles; those it holds have a node."""


@cache
def _channel(address: str) -> Any:
    """One channel per address, with Ray's own authentication; a restarted GCS of the same address is found again."""
    return init_grpc_channel(address)


def _gcs() -> Any:
    check_version()
    return _channel(ray._private.worker.global_worker.gcs_client.address)


def live_actors(limit: int) -> tuple[list[RawActor], bool]:
    """Actors that are alive, at most `limit`, and whether these are all. One call to the GCS, filtered there by state;
    1.7 ms for five, and it grows with all living actors, not with those that hold GPUs."""
    wanted = gcs_service_pb2.GetAllActorInfoRequest.Filters(state=gcs_pb2.ActorTableData.ALIVE)
    ask = gcs_service_pb2.GetAllActorInfoRequest(limit=limit + 1, filters=wanted)
    stub = gcs_service_pb2_grpc.ActorInfoGcsServiceStub(_gcs())
    rows = list(stub.GetAllActorInfo(ask, timeout=RPC_TIMEOUT_S).actor_table_data)
    found = [
        RawActor(
            id=row.actor_id.hex(),
            job=row.job_id.hex(),
            name=row.name,
            namespace=row.ray_namespace,
            node=row.node_id.hex(),
            pid=row.pid,
            detached=row.is_detached,
            since_ms=int(row.start_time),
            group="" if row.placement_group_id.startswith(_NIL) else row.placement_group_id.hex(),
            worker=row.address.worker_id.hex(),
            owner_worker=row.owner_address.worker_id.hex(),
            gpus=_slots(row.resource_mapping),
        )
        for row in rows[:limit]
    ]
    return found, len(rows) <= limit


def _slots(mapping: Any) -> dict[int, float]:
    """{device: amount} of what a worker was given outside placement groups."""
    return {
        int(slot.index): float(slot.quantity)
        for entry in mapping
        if entry.name == "GPU"
        for slot in entry.resource_ids
    }


def placement_groups(limit: int) -> tuple[list[RawGroup], bool]:
    """Placement groups that hold bundles, at most `limit`, and whether these are all."""
    ask = gcs_service_pb2.GetAllPlacementGroupRequest(limit=limit + 1)
    stub = gcs_service_pb2_grpc.PlacementGroupInfoGcsServiceStub(_gcs())
    rows = list(stub.GetAllPlacementGroup(ask, timeout=RPC_TIMEOUT_S).placement_group_table_data)
    states = gcs_pb2.PlacementGroupTableData.PlacementGroupState
    found = [
        RawGroup(
            id=row.placement_group_id.hex(),
            job=row.creator_job_id.hex(),
            name=row.name,
            namespace=row.ray_namespace,
            detached=row.is_detached,
            since_ms=int(row.placement_group_creation_timestamp_ms),
            bundles=tuple(
                (bundle.node_id.hex(), float(bundle.unit_resources.get("GPU", 0)))
                for bundle in row.bundles
                if bundle.node_id and not bundle.node_id.startswith(_NIL)
            ),
        )
        for row in rows[:limit]
        if states.Name(row.state) in _HOLDING
    ]
    return found, len(rows) <= limit


def drivers() -> dict[str, RawDriver]:
    """Every Ray job that the GCS remembers, ended ones too, by its id."""
    check_version()
    jobs = ray._private.worker.global_worker.gcs_client.get_all_job_info(
        skip_submission_job_info_field=True, skip_is_running_tasks_field=True, timeout=RPC_TIMEOUT_S
    )
    return {
        job.job_id.hex(): RawDriver(
            submission=dict(job.config.metadata).get("job_submission_id", ""), dead=bool(job.is_dead)
        )
        for job in jobs.values()
    }


def own_job_id() -> str:
    """The Ray job id of this process."""
    return str(ray.get_runtime_context().get_job_id())


def gpu_workers(address: str) -> list[RawWorker]:
    """Worker processes of one node (`address` of its raylet) that hold GPUs outside placement groups, as their own
    core workers tell the raylet: running tasks, and actors that are still in their constructor. 15-35 ms for five.
    """
    check_version()
    stub = node_manager_pb2_grpc.NodeManagerServiceStub(_channel(address))
    ask = node_manager_pb2.GetNodeStatsRequest(include_memory_info=False)
    found = []
    for worker in stub.GetNodeStats(ask, timeout=RPC_TIMEOUT_S).core_workers_stats:
        held = worker.used_resources.get("GPU")
        gpus = {int(s.slot): float(s.allocation) for s in held.resource_slots} if held is not None else {}
        if gpus:
            actor = "" if worker.actor_id.startswith(_NIL) else worker.actor_id.hex()
            found.append(RawWorker(job=worker.job_id.hex(), actor=actor, pid=worker.pid, gpus=gpus))
    return found


def serve_deployers() -> dict[str, str]:
    """Serve application -> the Ray job that deployed it; {} without Serve. Ray's own records name the job that
    started Serve instead."""
    controller = _serve_controller()
    if controller is None:
        return {}
    known = ray.get(controller.list_deployments_internal.remote(), timeout=RPC_TIMEOUT_S)
    return {key.app_name: str(info.deployer_job_id) for key, (info, _) in known.items()}


def _serve_controller() -> Any:
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    try:
        return ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return None


def kill_actor(actor_id: str) -> None:
    """End an actor for good by its id; one that is gone is fine."""
    stub = gcs_service_pb2_grpc.ActorInfoGcsServiceStub(_gcs())
    ask = gcs_service_pb2.KillActorViaGcsRequest(
        actor_id=bytes.fromhex(actor_id), force_kill=True, no_restart=True
    )
    stub.KillActorViaGcs(ask, timeout=RPC_TIMEOUT_S)


def remove_group(group_id: str) -> None:
    """Remove a placement group by its id, with all that runs in it; one that is gone is fine."""
    stub = gcs_service_pb2_grpc.PlacementGroupInfoGcsServiceStub(_gcs())
    ask = gcs_service_pb2.RemovePlacementGroupRequest(placement_group_id=bytes.fromhex(group_id))
    stub.RemovePlacementGroup(ask, timeout=RPC_TIMEOUT_S)


def finish_job(job_id: str) -> None:
    """Make the GCS end a Ray job: its tasks, and its actors and groups that are not detached. The driver's process
    stays and can do nothing more."""
    stub = gcs_service_pb2_grpc.JobInfoGcsServiceStub(_gcs())
    stub.MarkJobFinished(
        gcs_service_pb2.MarkJobFinishedRequest(job_id=bytes.fromhex(job_id)), timeout=RPC_TIMEOUT_S
    )


def delete_app(app: str, deployer: str) -> None:
    """Delete a Serve application, unless another Ray job than `deployer` has deployed it since."""
    controller = _serve_controller()
    if controller is not None and serve_deployers().get(app) == deployer:
        ray.get(controller.delete_apps.remote([app]), timeout=RPC_TIMEOUT_S)
