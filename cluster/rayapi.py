"""The one module that touches what Ray does not call public API. It knows Ray 2.60 and refuses any other.

Everything here was read in Ray's source at that version; a new Ray means reading it again, then adding it to
`KNOWN`. Importing this module imports Ray.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
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
from ray.experimental import internal_kv

from moorage.cluster.binding import NODE_ID_LABEL
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


def serve_has_proxy() -> bool:
    """Whether Serve was started with a proxy for HTTP."""
    from ray.serve.config import ProxyLocation

    controller = _serve_controller()
    if controller is None:
        return False
    where = ray.get(controller.get_proxy_location.remote(), timeout=RPC_TIMEOUT_S)
    return bool(where != ProxyLocation.Disabled)


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


def own_group() -> str:
    """The id in hex of the placement group that this process's task or actor runs in; "" where it runs in none."""
    found = ray._private.worker.global_worker.placement_group_id
    return "" if found.is_nil() else str(found.hex())


def current_task() -> Any:
    """The id of the task that this thread runs in: what is started here is a child of it."""
    return ray._private.worker.global_worker.current_task_id


def pending_children(parent: Any) -> set[Any]:
    """The ids of tasks that this process started in the task `parent` and that have not ended yet, whatever they wait
    for; of actors' too."""
    return set(ray._private.worker.global_worker.core_worker.get_pending_children_task_ids(parent))


def actor_is_dead(actor_id: str) -> bool:
    """Whether the GCS says so of an actor, by its id in hex; not of one that it has not heard of yet."""
    found: dict[str, Any] = ray._private.state.actors(actor_id=actor_id)
    return found.get("State") == "DEAD"


def own_id() -> str:
    """This process by its worker's id in hex: an actor that was started again is another one."""
    return str(ray.get_runtime_context().get_worker_id())


def has_ended(worker_id: str) -> bool:
    """Whether a process by its worker's id has, and with it what it had started, but for detached actors: the GCS says
    so, or its node is gone. Not of one that the GCS has not heard of."""
    ask = gcs_service_pb2.GetWorkerInfoRequest(worker_id=bytes.fromhex(worker_id))
    answer = gcs_service_pb2_grpc.WorkerInfoGcsServiceStub(_gcs()).GetWorkerInfo(ask, **_waiting(True))
    if not answer.HasField("worker_table_data"):
        return False
    worker = answer.worker_table_data
    node = worker.worker_address.node_id.hex()
    return not worker.is_alive or node not in {one["NodeID"] for one in ray.nodes() if one["Alive"]}


def has_detached(group_id: str) -> bool:
    """Whether a detached actor of this job lives in a placement group, or starts there; by the group's id in hex."""
    ask = gcs_service_pb2.GetAllActorInfoRequest(
        filters=gcs_service_pb2.GetAllActorInfoRequest.Filters(job_id=bytes.fromhex(own_job_id()))
    )
    rows = gcs_service_pb2_grpc.ActorInfoGcsServiceStub(_gcs()).GetAllActorInfo(ask, **_waiting(True))
    return any(
        row.is_detached
        and row.placement_group_id.hex() == group_id
        and row.state != gcs_pb2.ActorTableData.DEAD
        for row in rows.actor_table_data
    )


def group_is_gone(group_id: str) -> bool:
    """Whether the GCS says that a placement group was removed, or has forgotten it; by its id in hex."""
    state: Any = ray._private.state.state
    found = state.placement_group_table(ray.PlacementGroupID(bytes.fromhex(group_id)))
    return not found or found.get("state") == "REMOVED"


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


# -- small values that outlive their writer, in the GCS

_KV = "moorage"


def kv_put(key: str, value: bytes) -> None:
    """Keep a value under a key of ours; overwrites."""
    check_version()
    internal_kv._internal_kv_put(key, value, overwrite=True, namespace=_KV)


def kv_claim(key: str, value: bytes) -> bool:
    """Keep a value under a key of ours if there is none; whether it was kept. One of several who try succeeds."""
    check_version()
    return not internal_kv._internal_kv_put(key, value, overwrite=False, namespace=_KV)


def kv_get(key: str) -> bytes | None:
    check_version()
    found: bytes | None = internal_kv._internal_kv_get(key, namespace=_KV)
    return found


def kv_keys(prefix: str) -> list[str]:
    check_version()
    return [key.decode() for key in internal_kv._internal_kv_list(prefix, namespace=_KV)]


def kv_delete(key: str) -> None:
    check_version()
    internal_kv._internal_kv_del(key, namespace=_KV)


# -- who holds GPUs, and how that is ended: used by the guard

RPC_TIMEOUT_S = 4.0
GCS_BACK_S = 60.0
"""Ray's own `gcs_rpc_server_reconnect_timeout_s`."""
_WAITING = ("PENDING", "PREPARED")
_HOLDING = ("CREATED", "RESCHEDULING")
"""States in which a placement group may hold bundles; those it holds have a node."""


def _named(ray_id: bytes) -> str:
    """An id in hex; "" for Ray's nil, which is nothing but ones. One of 256 ids begins with eight of them."""
    return ray_id.hex() if ray_id.strip(b"\xff") else ""


@cache
def _channel(address: str) -> Any:
    """One channel per address, with Ray's own authentication; a restarted GCS of the same address is found again."""
    return init_grpc_channel(address)


def _gcs() -> Any:
    check_version()
    return _channel(ray._private.worker.global_worker.gcs_client.address)


def _waiting(patient: bool) -> dict[str, Any]:
    return {"timeout": GCS_BACK_S, "wait_for_ready": True} if patient else {"timeout": RPC_TIMEOUT_S}


def live_actors(limit: int, patient: bool = False) -> tuple[list[RawActor], bool]:
    """Actors that are alive, at most `limit`, and whether these are all. One call to the GCS, filtered there by state;
    1.7 ms for five, and it grows with all living actors, not with those that hold GPUs."""
    return _actors(limit, gcs_pb2.ActorTableData.ALIVE, patient)


def starting_actors(limit: int) -> list[RawActor]:
    """Actors that have a worker already, and whose constructor has not returned; their node is not said yet."""
    return [one for one in _actors(limit, gcs_pb2.ActorTableData.PENDING_CREATION)[0] if one.worker]


def _actors(limit: int, state: Any, patient: bool = False) -> tuple[list[RawActor], bool]:
    ask = gcs_service_pb2.GetAllActorInfoRequest(
        limit=limit + 1, filters=gcs_service_pb2.GetAllActorInfoRequest.Filters(state=state)
    )
    stub = gcs_service_pb2_grpc.ActorInfoGcsServiceStub(_gcs())
    rows = list(stub.GetAllActorInfo(ask, **_waiting(patient)).actor_table_data)
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
            group=_named(row.placement_group_id),
            worker=_named(row.address.worker_id),
            owner_worker=row.owner_address.worker_id.hex(),
            gpus=_slots(row.resource_mapping, "GPU"),
            in_group=_slots(row.resource_mapping, f"GPU_group_{row.placement_group_id.hex()}"),
        )
        for row in rows[:limit]
    ]
    return found, len(rows) <= limit


def _slots(mapping: Any, name: str) -> dict[int, float]:
    """{device: amount} of what a worker was given under that name: `GPU` outside placement groups."""
    return {
        int(slot.index): float(slot.quantity)
        for entry in mapping
        if entry.name == name
        for slot in entry.resource_ids
    }


def placement_groups(limit: int, patient: bool = False, waiting: bool = False) -> tuple[list[RawGroup], bool]:
    """Placement groups that hold bundles, at most `limit`, and whether these are all. `patient`: a GCS that is away is
    waited for, as Ray's own calls do. `waiting`: those too that wait to be placed; a bundle of theirs is on the node
    that its label selector names, if it does."""
    ask = gcs_service_pb2.GetAllPlacementGroupRequest(limit=limit + 1)
    stub = gcs_service_pb2_grpc.PlacementGroupInfoGcsServiceStub(_gcs())
    rows = list(stub.GetAllPlacementGroup(ask, **_waiting(patient)).placement_group_table_data)
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
                (node, float(bundle.unit_resources.get("GPU", 0)))
                for bundle in row.bundles
                for node in [_named(bundle.node_id) or (waiting and bundle.label_selector.get(NODE_ID_LABEL))]
                if node
            ),
        )
        for row in rows[:limit]
        if states.Name(row.state) in (_HOLDING + _WAITING if waiting else _HOLDING)
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
            actor = _named(worker.actor_id)
            found.append(RawWorker(job=worker.job_id.hex(), actor=actor, pid=worker.pid, gpus=gpus))
    return found


def serve_is_there() -> bool:
    """Whether somebody has started Serve on the cluster."""
    return _serve_controller() is not None


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


def remove_group(group_id: str, patient: bool = False) -> None:
    """Remove a placement group by its id, with all that runs in it; one that is gone is fine. `patient`: a GCS that is
    away is waited for."""
    stub = gcs_service_pb2_grpc.PlacementGroupInfoGcsServiceStub(_gcs())
    ask = gcs_service_pb2.RemovePlacementGroupRequest(placement_group_id=bytes.fromhex(group_id))
    stub.RemovePlacementGroup(ask, **_waiting(patient))


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


def store_package(uri: str, archive: Path) -> None:
    """Keep a package where runtime environments look for it, as the dashboard does, which takes 100 MiB at most.

    Raises ValueError for more than Ray holds in one piece, RuntimeError when Ray does not take it.
    """
    from ray._private.runtime_env.packaging import upload_package_to_gcs

    upload_package_to_gcs(uri, archive.read_bytes())


# -- processes of a cluster of our own that have ended


def node_labels(node: Any) -> dict[str, str]:
    """The labels that a `ray._private.node.Node` was started with."""
    return dict(node._ray_params.labels or {})


def restart_gcs(head: Any) -> None:
    """Start the GCS again where the old one listened; it must have a store that outlived it. As Ray's own tests do."""
    check_version()
    head.kill_gcs_server(check_alive=False)
    head.start_gcs_server()
    head.get_gcs_client()


def restart_dashboard(head: Any) -> None:
    """Start the dashboard (it serves the Jobs API) again, on its port."""
    check_version()
    head.kill_dashboard(check_alive=False)
    head.start_api_server(include_dashboard=True, raise_on_failure=False)


def clear_redis(address: str, namespace: str) -> None:
    """Drop the keys of one cluster from a Redis."""
    from ray._private.gcs_utils import cleanup_redis_storage

    check_version()
    host, _, port = address.rpartition(":")
    password = os.environ.get("RAY_REDIS_PASSWORD", "")
    cleanup_redis_storage(host, int(port), password, False, namespace)
