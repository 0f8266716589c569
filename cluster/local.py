"""Real raylets on this machine: several nodes with logical GPUs, loopback only, token authentication on.

Run as `python -m moorage.cluster.local --home H ...`. It writes H/ray.json once everything answers, then
waits. SIGTERM (also sent by the kernel when the supervisor dies) stops what it started, by handle. Should it
be SIGKILLed, Ray's own reaper ends its process group: so it must lead one.

Logical GPUs are Ray resources with an index; no hardware stands behind them. `--device-mib` is what the
ledger may book.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from moorage.cluster.binding import DEVICE_MIB_LABEL, GPU_MODEL_LABEL, NODE_LABEL
from moorage.cluster.paths import ClusterPaths, write_json

LOG = logging.getLogger("moorage.cluster.local")
MIB = 1024 * 1024
CHECK_PERIOD_S = 1.0


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
            "include_log_monitor": False,
            "no_monitor": True,
        }
    return common


def start(options: argparse.Namespace) -> Any:
    """The running `Cluster`. Raises what Ray raises; whatever had started is stopped first."""
    from ray.cluster_utils import Cluster

    from moorage.cluster import rayapi

    rayapi.check_version()
    if not rayapi.token_is_on():
        raise SystemExit("RAY_AUTH_MODE is not 'token': this cluster would obey anyone on this machine")
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
        "nodes": [{"ray_node_id": n.node_id, "processes": rayapi.node_processes(n)} for n in ordered],
        "dead": dead,
    }


def stop(cluster: Any) -> None:
    """End every process of the cluster, workers first; the head goes last."""
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node, allow_graceful=True)
    if cluster.head_node is not None:
        cluster.remove_node(cluster.head_node, allow_graceful=True)


def watch(cluster: Any, options: argparse.Namespace, ended: threading.Event) -> int:
    """Wait for SIGTERM; keep ray.json true about Ray processes that die. 1 when the GCS is gone: nothing is
    left then."""
    from moorage.cluster import rayapi

    paths, known_dead = ClusterPaths(options.home), list[str]()
    while not ended.wait(CHECK_PERIOD_S):
        dead = [
            f"{node.node_id}/{kind}" for node in cluster.list_all_nodes() for kind in rayapi.dead_kinds(node)
        ]
        if dead != known_dead:
            LOG.error("Ray processes that have ended: %s", dead)
            write_json(paths.ray_json, describe(cluster, options, dead))
            known_dead = dead
        if any(name.endswith("/gcs_server") for name in dead):
            return 1
    return 0


def main(arguments: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    options = parse(arguments)
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
