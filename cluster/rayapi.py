"""The one module that touches what Ray does not call public API. It knows Ray 2.60 and refuses any other.

Everything here was read in Ray's source at that version; a new Ray means reading it again, then adding it to
`KNOWN`. Importing this module imports Ray.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import ray
import ray._private.state
import ray._private.utils
import ray._private.worker

from moorage.errors import MoorageError

KNOWN = ("2.60.",)


class UnknownRay(MoorageError):
    """This Ray was never checked against what this module relies on."""

    code = "ray-version-unknown"


def check_version(version: str | None = None) -> str:
    """Ray's version, when it is one this module knows; raises `UnknownRay`."""
    found: str = ray.__version__ if version is None else version
    if not found.startswith(KNOWN):
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
