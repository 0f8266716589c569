"""What a task or actor with GPUs asks for beside GPUs and CPUs: the lease has none of it. Part of `autobind`.

A task of the lease runs in the lease's placement group, whose bundles are GPUs and CPUs, and Ray refuses what asks a
bundle for anything else. So `accelerator_type` is compared with what the leased nodes are, `memory` is left out (a
lease holds none of a node's memory), and work with custom `resources` goes to the leased nodes that have them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moorage.cluster.binding import GPU_MODEL_LABEL, LeaseView
from moorage.errors import InvalidRequest

ACCELERATOR_LABEL = "ray.io/accelerator-type"
_ACCELERATOR_RESOURCE = "accelerator_type:"


@dataclass(frozen=True, slots=True)
class Demands:
    """`options` replaces what the script gave Ray. `nodes`: Ray's ids of the leased nodes that have the custom
    resources, None where the lease's group will do."""

    options: Mapping[str, Any]
    nodes: tuple[str, ...] | None


def of(lease: LeaseView, options: Mapping[str, Any], nodes: list[dict[str, Any]]) -> Demands:
    """`nodes` as `ray.nodes()` has them. Raises `InvalidRequest` (code `not-in-the-lease`) where no leased node has the
    resources, or not all are of the accelerator type: Ray would let the work wait for ever, or put it elsewhere."""
    leased = {worker.ray_node_id for worker in lease.workers}
    known = [node for node in nodes if node["NodeID"] in leased]
    changed: dict[str, Any] = {"memory": None} if options.get("memory") else {}
    wanted = options.get("accelerator_type")
    if wanted is not None:
        if not known or any(wanted not in models(node) for node in known):
            raise InvalidRequest(
                f"a task or actor asks for accelerator_type={wanted!r}",
                why=f"this job's lease is on {_models_of(known)}",
                todo=f"ask for it at submission, gpu_model: {wanted}, or leave accelerator_type out",
                code="not-in-the-lease",
            )
        changed["accelerator_type"] = None
    custom = {name: amount for name, amount in (options.get("resources") or {}).items() if amount}
    if not custom:
        return Demands(changed, None)
    able = tuple(sorted(node["NodeID"] for node in known if _has(node, custom)))
    if not able:
        raise InvalidRequest(
            f"a task or actor with GPUs asks for resources={custom}",
            why="no node of this job's lease has them",
            todo="submit with a node_selector for nodes that do, or leave resources out",
            code="not-in-the-lease",
        )
    return Demands(changed, able)


def models(node: Mapping[str, Any]) -> set[str]:
    """The names a node's accelerators go by: Ray's resource, and the labels that Ray and Moorage read."""
    labels = node.get("Labels") or {}
    found = {labels.get(GPU_MODEL_LABEL, ""), labels.get(ACCELERATOR_LABEL, "")}
    found |= {
        name.removeprefix(_ACCELERATOR_RESOURCE)
        for name in node.get("Resources") or {}
        if name.startswith(_ACCELERATOR_RESOURCE)
    }
    return found - {""}


def _models_of(nodes: list[dict[str, Any]]) -> str:
    found = sorted(set().union(*map(models, nodes)) if nodes else ())
    return ", ".join(found) or "devices of no known model"


def _has(node: Mapping[str, Any], custom: Mapping[str, float]) -> bool:
    there = node.get("Resources") or {}
    return all(there.get(name, 0) >= amount for name, amount in custom.items())
