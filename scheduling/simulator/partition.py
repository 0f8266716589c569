"""Each team's share of the pool as a partition: how large it is, and who could not run in it.

A team's share is its part of the GPU-time that all jobs ask for, rounded up to whole nodes. Rounded up, the shares add
up to more than the pool: the static partition is given those nodes, so that what is compared with it has the harder
part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np

from moorage.scheduling.model import WHOLE, IntArray, NodeSpec
from moorage.scheduling.simulator.model import BoolArray, JobsResult, NotSimulated, Workload, fits


def node_count(workload: Workload, nodes: Sequence[NodeSpec]) -> IntArray:
    """[T] nodes of each team's partition: its share of the GPU-time, rounded up. Raises NotSimulated for a pool whose
    nodes differ: a share of it is then no number of nodes."""
    if len({replace(node, name="") for node in nodes}) > 1:
        raise NotSimulated("shares are counted in nodes, so all nodes must be equal")
    devices, seconds = nodes[0].devices, np.maximum(workload.duration_ns // 10**9, 1)
    work = np.zeros(len(workload.teams), np.int64)
    np.add.at(work, workload.team, workload.gpus() * seconds)
    total = int(work.sum())
    if not devices or not total:
        raise NotSimulated("shares of a pool are shares of its GPU-time, and there is none")
    return np.array([-(-int(w) * len(nodes) // total) for w in work], np.int64)


def shares(workload: Workload, nodes: Sequence[NodeSpec]) -> IntArray:
    """[T] milli-GPU of each team's partition."""
    return node_count(workload, nodes) * nodes[0].devices * WHOLE


def own_nodes(workload: Workload, nodes: Sequence[NodeSpec], team: int) -> list[NodeSpec]:
    """The nodes of one team's partition; those beyond the pool are made up."""
    count = int(node_count(workload, nodes)[team])
    return [replace(nodes[0], name=f"{workload.teams[team]}-{at}") for at in range(count)]


def fit_partition(workload: Workload, nodes: Sequence[NodeSpec]) -> BoolArray:
    """[n] whether each job would fit the idle partition of its team, or the whole pool if that is smaller."""
    possible = fits(workload, nodes)
    for team in range(len(workload.teams)):
        rows = np.flatnonzero(workload.team == team)
        if len(rows):
            possible[rows] &= fits(workload.take(rows), own_nodes(workload, nodes, team))
    return possible


def merged(workload: Workload, parts: Sequence[tuple[IntArray, JobsResult]]) -> JobsResult:
    """One result of (rows, result of these rows) that together are all rows."""
    arrays = [f.name for f in fields(JobsResult) if f.name not in ("elapsed_s", "decisions")]
    columns = {name: np.full(len(workload), -1, np.int64) for name in arrays}
    for rows, part in parts:
        for name in arrays:
            columns[name][rows] = getattr(part, name)
    return JobsResult(
        **columns,
        elapsed_s=sum(part.elapsed_s for _, part in parts),
        decisions=sum(part.decisions for _, part in parts),
    )
