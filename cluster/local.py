"""Real raylets on this machine: several nodes with logical GPUs, loopback only, token authentication on.

Run as `python -m moorage.cluster.local --home H ...`. It writes H/ray.json once everything answers, then
waits. SIGTERM (also sent by the kernel when the supervisor dies) stops what it started, by handle. Should it
be SIGKILLed, Ray's own reaper ends its process group: so it must lead one.

Logical GPUs are Ray resources with an index; no hardware stands behind them. `--device-mib` is what the
ledger may book.

What dies is replaced where Ray can bear it: a worker node by a new one of its name (with a new Ray id), the dashboard,
and, with `--gcs-storage`, the GCS. Without it the cluster is over when the GCS is (and always with the head's raylet):
this process ends, and its supervisor starts an empty cluster.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from moorage.cluster.binding import DEVICE_MIB_LABEL, GPU_MODEL_LABEL, NODE_LABEL
from moorage.cluster.paths import ClusterPaths, write_json

LOG = logging.getLogger("moorage.cluster.local")
MIB = 1024 * 1024
CHECK_PERIOD_S = 0.5
START_AGAIN_S = 10.0
MEMORY, ROCKSDB = "memory", "rocksdb"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m moorage.cluster.local", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--logical-gpus", type=int, default=4, help="per node")
    parser.add_argument("--gpu-model", default="L4")
    parser.add_argument("--device-mib", type=int, default=24576)
    parser.add_argument("--cpus-per-node", type=int, default=8)
    parser.add_argument("--object-store-mib", type=int, default=512, help="per node")
    parser.add_argument("--dashboard-port", type=int, required=True)
    parser.add_argument(
        "--gcs-storage",
        default=MEMORY,
        help="memory, rocksdb, or HOST:PORT of a Redis: the last two survive the GCS",
    )
    return parser.parse_args(arguments)


def node_arguments(index: int, options: argparse.Namespace) -> dict[str, Any]:
    """What `Cluster.add_node` gets for node `index`; the head is node 0. All nodes have the same shape."""
    labels = {NODE_LABEL: f"node-{index}"}
    if options.logical_gpus:
        labels |= {GPU_MODEL_LABEL: options.gpu_model, DEVICE_MIB_LABEL: str(options.device_mib)}
    common = {
        "num_cpus": options.cpus_per_node,
        "num_gpus": options.logical_gpus,
        "object_store_memory": options.object_store_mib * MIB,
        "labels": labels,
        "node_ip_address": "127.0.0.1",
        "dashboard_agent_listen_port": 0,
        "metrics_export_port": 0,
        # Nodes of one machine share the session folder. In one folder of packages, a second node would remove and
        # unpack again the working_dir that a job on the first node runs in.
        "runtime_env_dir_name": f"runtime_resources_{index}",
    }
    if index == 0:
        common |= {
            "temp_dir": str(ClusterPaths(options.home).ray_temp),
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
            "dashboard_port": options.dashboard_port,
            "gcs_server_port": 0,
            # One for all nodes of this machine: they share the session folder. By it a job's log has what its tasks and
            # actors print.
            "include_log_monitor": True,
            "no_monitor": True,
        }
    return common


def namespace(options: argparse.Namespace) -> str:
    """Whose keys in a shared Redis are this pool's: the same at each start of it."""
    return "moorage-" + hashlib.sha256(os.fsencode(options.home.resolve())).hexdigest()[:16]


def storage_environment(options: argparse.Namespace) -> dict[str, str]:
    """What tells Ray where its GCS keeps its tables; {} for memory. Must be there before Ray is imported."""
    if options.gcs_storage == MEMORY:
        return {}
    if options.gcs_storage == ROCKSDB:
        return {"RAY_gcs_storage": ROCKSDB, "RAY_gcs_storage_path": str(ClusterPaths(options.home).gcs)}
    return {"RAY_REDIS_ADDRESS": options.gcs_storage, "RAY_external_storage_namespace": namespace(options)}


def clear_storage(options: argparse.Namespace) -> None:
    """Drop what an earlier cluster of this home left. Moorage has its own record of the jobs: a new cluster starts
    empty, and never with half of what another one knew."""
    from moorage.cluster import rayapi

    if options.gcs_storage == ROCKSDB:
        shutil.rmtree(ClusterPaths(options.home).gcs, ignore_errors=True)
    elif options.gcs_storage != MEMORY:
        rayapi.clear_redis(options.gcs_storage, namespace(options))


def start(options: argparse.Namespace) -> Any:
    """The running `Cluster`. Raises what Ray raises; whatever had started is stopped first."""
    from ray.cluster_utils import Cluster

    from moorage.cluster import rayapi

    rayapi.check_version()
    if not rayapi.token_is_on():
        raise SystemExit("RAY_AUTH_MODE is not 'token': this cluster would obey anyone on this machine")
    clear_storage(options)
    cluster = Cluster()
    try:
        with rayapi.address_file_kept_in(str(ClusterPaths(options.home).ray_temp)):
            for index in range(options.nodes):
                cluster.add_node(wait=False, **node_arguments(index, options))
            cluster.wait_for_nodes(timeout=60)
    except BaseException:
        stop(cluster)
        raise
    return cluster


def describe(cluster: Any, options: argparse.Namespace, dead: list[str]) -> dict[str, Any]:
    """The content of ray.json. `dead` names raylets and other Ray processes that have ended since."""
    import ray

    from moorage.cluster import rayapi

    nodes = cluster.list_all_nodes()
    ordered = sorted(nodes, key=lambda node: 0 if node is cluster.head_node else 1)
    return {
        "ray_address": cluster.address,
        "ray_version": ray.__version__,
        "dashboard": f"http://{cluster.webui_url}",
        "auth": True,
        "temp_dir": str(ClusterPaths(options.home).ray_temp),
        "nodes": [
            {
                "name": rayapi.node_labels(node)[NODE_LABEL],
                "ray_node_id": node.node_id,
                "processes": rayapi.node_processes(node),
            }
            for node in ordered
        ],
        "dead": dead,
    }


def stop(cluster: Any) -> None:
    """End every process of the cluster, workers first; the head goes last."""
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node, allow_graceful=True)
    if cluster.head_node is not None:
        cluster.remove_node(cluster.head_node, allow_graceful=True)


class Nodes:
    """The cluster's nodes by index, and what is done about processes of theirs that end."""

    def __init__(self, cluster: Any, options: argparse.Namespace) -> None:
        self._cluster, self._options = cluster, options
        self._workers = dict(enumerate(self._in_order(), start=1))
        self._missing: dict[int, float] = {}
        """Nodes that could not be started again -> when that is tried next (monotonic clock)."""

    @property
    def missing(self) -> list[str]:
        """As dead processes are named."""
        return [f"node-{index}/raylet" for index in sorted(self._missing)]

    def _in_order(self) -> list[Any]:
        """Worker nodes as they were added; Ray keeps them in a set."""
        return sorted(self._cluster.worker_nodes, key=lambda node: self._index_of(node))

    @staticmethod
    def _index_of(node: Any) -> int:
        from moorage.cluster import rayapi

        return int(rayapi.node_labels(node)[NODE_LABEL].rpartition("-")[2])

    def repair(self) -> bool:
        """Replace what has ended. False when that cannot be done: the cluster is over."""
        from moorage.cluster import rayapi

        head = self._cluster.head_node
        dead = rayapi.dead_kinds(head)
        if "raylet" in dead or ("gcs_server" in dead and self._options.gcs_storage == MEMORY):
            return False
        if "gcs_server" in dead:
            LOG.error("the GCS has ended: starting it again on what it stored")
            rayapi.restart_gcs(head)
        if "dashboard" in dead:
            LOG.error("the dashboard has ended: starting it again")
            rayapi.restart_dashboard(head)
        for index, node in list(self._workers.items()):
            if "raylet" in rayapi.dead_kinds(node):
                LOG.error("the raylet of node-%d (%s) has ended: starting it again", index, node.node_id)
                self._cluster.remove_node(node, allow_graceful=False)
                del self._workers[index]
                self._missing[index] = 0.0
        for index, due in list(self._missing.items()):
            if time.monotonic() >= due:
                self._start_again(index)
        return True

    def _start_again(self, index: int) -> None:
        """One node. A machine that is too busy gets another try later, and the cluster goes on without the node."""
        before = {child.pid for child in psutil.Process().children(recursive=True)}
        try:
            self._workers[index] = self._cluster.add_node(wait=False, **node_arguments(index, self._options))
            del self._missing[index]
        except Exception:
            LOG.exception("node-%d could not be started again now", index)
            self._missing[index] = time.monotonic() + START_AGAIN_S
            for child in psutil.Process().children():
                if child.pid not in before:
                    with contextlib.suppress(psutil.Error):
                        child.kill()


def watch(cluster: Any, options: argparse.Namespace, ended: threading.Event) -> int:
    """Wait for SIGTERM; keep the cluster whole, and ray.json true. 1 when the cluster is over."""
    paths, nodes = ClusterPaths(options.home), Nodes(cluster, options)
    written: list[str] = []
    while not ended.wait(CHECK_PERIOD_S):
        dead = _dead(cluster) + nodes.missing
        if dead != written:  # some are not replaced, and stay dead as long as the cluster runs
            if new := set(dead) - {*written, *nodes.missing}:
                LOG.error("Ray processes that have ended: %s", sorted(new))
            write_json(paths.ray_json, describe(cluster, options, dead))
            written = dead
        if not dead:
            continue
        try:
            if not nodes.repair():
                return 1
        except Exception:
            LOG.exception("what had ended could not be replaced")
            return 1
        left = _dead(cluster) + nodes.missing
        if left != written:
            write_json(paths.ray_json, describe(cluster, options, left))
            written = left
    return 0


def _dead(cluster: Any) -> list[str]:
    from moorage.cluster import rayapi

    return [f"{node.node_id}/{kind}" for node in cluster.list_all_nodes() for kind in rayapi.dead_kinds(node)]


def main(arguments: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    options = parse(arguments)
    os.environ |= storage_environment(options)
    if os.getpgid(0) != os.getpid():
        raise SystemExit("must lead its own process group: Ray's reaper ends the whole group")
    ended = threading.Event()
    paths = ClusterPaths(options.home)
    paths.make()
    began = time.monotonic()
    cluster = start(options)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: ended.set())
    try:
        write_json(paths.ray_json, describe(cluster, options, []))
        LOG.info("%d nodes at %s in %.1f s", options.nodes, cluster.address, time.monotonic() - began)
        return watch(cluster, options, ended)
    finally:
        stop(cluster)
        paths.ray_json.unlink(missing_ok=True)
        LOG.info("stopped")


if __name__ == "__main__":
    sys.exit(main())
