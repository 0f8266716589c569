"""Microsoft's Philly trace as AdaptDL's simulator carries it: `timestamp, duration, num_gpus, cluster` (`gpu_time` is
not read). One row is one job; its virtual cluster is the team. A column `job_id` is read where it is there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moorage.errors import InvalidRequest
from moorage.runtime.history import table
from moorage.runtime.history.trace import Trace, check_any
from moorage.scheduling.model import MAX_DEVICES, WHOLE, IntArray, NodeSpec
from moorage.scheduling.simulator.model import Kind, Workload

MODEL = "GPU"
"""The trace names no GPU models."""

_JOBS = {
    "timestamp": table.moment,
    "duration": table.number,
    "num_gpus": table.whole,
    "cluster": table.name,
}
LONGEST_S = 10 * 366 * 86_400
"""No job of a decade: sums of such durations in nanoseconds stay far inside an int64."""


def nodes(gpus: int, count: int) -> tuple[NodeSpec, ...]:
    """`count` equal nodes with `gpus` devices in all. The trace asks for no CPU or memory: the nodes have none."""
    if gpus < 1 or count < 1:
        raise InvalidRequest(f"{gpus} GPUs on {count} nodes is no pool", code="bad-pool")
    if gpus % count:
        raise InvalidRequest(
            f"{gpus} GPUs do not divide evenly over {count} nodes",
            todo=f"--nodes may be {_divisors(gpus)}",
            code="bad-pool",
        )
    if gpus // count > MAX_DEVICES:
        raise InvalidRequest(
            f"{gpus // count} GPUs on one node",
            why=f"a node has at most {MAX_DEVICES} devices",
            todo="ask for more --nodes",
            code="bad-pool",
        )
    return tuple(
        NodeSpec(name=f"node-{at:05d}", gpu_model=MODEL, devices=gpus // count) for at in range(count)
    )


def _divisors(gpus: int) -> str:
    fit = [n for n in range(1, gpus + 1) if gpus % n == 0 and gpus // n <= MAX_DEVICES]
    return ", ".join(map(str, fit[:12]))


def read_jobs(path: Path, per_node: int) -> Trace:
    """Jobs by time of submission, on nodes of `per_node` GPUs.

    A job of up to `per_node` GPUs is one task, so all its GPUs are on one node; a larger one is a gang of the fewest
    equal tasks that each fit a node (12 GPUs on nodes of 8: two tasks of 6). Left out: what `table` notes, no GPUs,
    a job of more than ten years, duplicate ids.
    """
    found = table.read_table(path, _JOBS, {"job_id": table.name})
    column = found.columns
    gpus = column["num_gpus"]
    if "job_id" in column:
        found.refuse_duplicates("job_id")
    found.refuse(gpus == 0, "no-gpu", lambda row: "asks for no GPU, and this pool has nothing else")
    found.refuse(
        column["duration"] > LONGEST_S,
        "too-large",
        lambda row: f"runs {column['duration'][row]:.0f} s, more than ten years",
    )
    kept = found.kept()
    left_out = found.left_out("job_id" if "job_id" in column else None)
    check_any(path.name, len(kept), left_out)
    submit = column["timestamp"][kept]
    backwards = int((np.diff(submit) < 0).sum())
    order = np.argsort(submit, kind="stable")
    kept, submit = kept[order], submit[order]
    team, teams = table.codes(column["cluster"][kept].tolist())
    workers = tasks_of(gpus[kept], per_node)
    nothing = np.zeros(len(kept), np.int64)
    workload = Workload(
        submit_ns=submit - submit[0],
        # a job of 0 s ran: it takes its turn, and ends at once
        duration_ns=np.maximum(np.rint(column["duration"][kept] * 1e9).astype(np.int64), 1),
        team=team,
        workers=workers,
        min_workers=workers,
        milli_gpu=gpus[kept] // workers * WHOLE,
        gpu_mib=nothing,
        milli_cpu=nothing,
        mib=nothing,
        models=nothing,
        deadline_ns=nothing,
        priority=nothing,
        names=tuple(column["job_id"][kept].tolist()) if "job_id" in column else None,
        teams=teams,
        model_sets=((),),
        kind=Kind.JOBS,
    )
    notes = (
        (f"{backwards} rows came before an earlier one in time: sorted by timestamp",) if backwards else ()
    )
    return Trace(source=path.name, workload=workload, rows=kept + 1, left_out=left_out, notes=notes)


def tasks_of(gpus: IntArray, per_node: int) -> IntArray:
    """[n] the fewest equal tasks of at most `per_node` GPUs each: by the largest such divisor."""
    most = np.ones(len(gpus), np.int64)
    for size in range(2, per_node + 1):
        most[gpus % size == 0] = size
    return np.asarray(gpus // most, np.int64)
