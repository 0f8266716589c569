"""Ray's autoscaler as the pool uses it: what the cluster should have, and the end of one idle node. Ray 2.60.

Beside `rayapi`, with the same check of Ray's version: the end of a node is not public API.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.core.generated import autoscaler_pb2

from moorage.cluster.rayapi import check_version

RPC_TIMEOUT_S = 4.0
LEAVES_WITHIN_S = 60


def want(nodes: Sequence[Mapping[str, int]]) -> None:
    """Make this what the cluster should have in all: one bundle per node (milli-GPU and milli-CPU). It replaces
    what was asked before; nothing happens in a cluster without an autoscaler."""
    bundles = [
        {
            name: amount / 1000
            for name, amount in (("GPU", one["milli_gpu"]), ("CPU", one["milli_cpu"]))
            if amount
        }
        for one in nodes
    ]
    request_resources(bundles=[bundle for bundle in bundles if bundle])


def release(node_id: str) -> bool:
    """Let a node go if nothing runs on it: its raylet then ends by itself, and the autoscaler its machine. Whether it
    goes."""
    check_version()
    gcs: Any = ray._private.worker.global_worker.gcs_client
    deadline_ms = int((time.time() + LEAVES_WITHIN_S) * 1000)
    accepted, _ = gcs.drain_node(
        node_id,
        autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_IDLE_TERMINATION"),
        "given back by Moorage: idle",
        deadline_ms,
    )
    return bool(accepted)
