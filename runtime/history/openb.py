"""Alibaba's 2023 GPU cluster trace, in the files FGD's authors published (hkust-adsl/kubernetes-scheduler-simulator).

Nodes: `sn, cpu_milli, memory_mib, gpu, model`. Jobs: `name, cpu_milli, memory_mib, num_gpu, gpu_milli` and, in some
lists, `gpu_spec`: allowed models with | between them. `gpu_milli` is per GPU; a job with `num_gpu` 0 is CPU only.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moorage.errors import DataError
from moorage.runtime.history import table
from moorage.runtime.history.trace import Trace, check_any
from moorage.scheduling.model import MAX_DEVICES, WHOLE, NodeSpec
from moorage.scheduling.simulator.model import Kind, Workload

TEAM = "openb"
"""The lists name no owners."""
ONE_MODEL = "GPU"
"""The GPU model of a node list without the column `model`."""

_NODES = {"sn": table.name, "cpu_milli": table.whole, "memory_mib": table.whole, "gpu": table.whole}
_JOBS = {
    "name": table.name,
    "cpu_milli": table.whole,
    "memory_mib": table.whole,
    "num_gpu": table.whole,
    "gpu_milli": table.whole,
}


def read_nodes(path: Path) -> tuple[NodeSpec, ...]:
    """The nodes in the file's order. The lists do not say how much memory a device has: 0.

    Raises DataError for any row that is wrong: a cluster with a node missing is another cluster.
    """
    found = table.read_table(path, _NODES, {"model": table.text})
    column = found.columns
    model = column.get("model", np.full(len(found), ONE_MODEL, object))
    found.refuse_duplicates("sn")
    found.refuse(
        column["gpu"] > MAX_DEVICES,
        "too-many-devices",
        lambda row: f"{column['gpu'][row]} GPUs on one node; at most {MAX_DEVICES}",
    )
    found.refuse(
        (column["gpu"] > 0) & (model == ""),
        "no-model",
        lambda row: "it has GPUs and the column model is empty",
    )
    if found.refused:
        row, (code, text) = min(found.refused.items())
        raise DataError(f"{path.name}, row {row + 1}: {text}", code=f"trace-{code}")
    if not len(found):
        raise DataError(
            f"{path.name} has no nodes", why="there is no row below the header", code="trace-empty"
        )
    return tuple(
        NodeSpec(name=name, gpu_model=str(kind) if gpus else "", devices=gpus, milli_cpu=cpu, mib=mib)
        for name, kind, gpus, cpu, mib in zip(
            column["sn"].tolist(),
            model.tolist(),
            column["gpu"].tolist(),
            column["cpu_milli"].tolist(),
            column["memory_mib"].tolist(),
            strict=True,
        )
    )


def read_jobs(path: Path) -> Trace:
    """Arrivals in the file's order. Left out: what `table` notes, duplicate names, and shares no device can give."""
    found = table.read_table(path, _JOBS, {"gpu_spec": table.text})
    column = found.columns
    count, share = column["num_gpu"], column["gpu_milli"]
    found.refuse_duplicates("name")
    found.refuse(count > MAX_DEVICES, "too-many-devices", lambda row: f"{count[row]} GPUs in one task")
    found.refuse(
        (count > 0) & ((share < 1) | (share > WHOLE)),
        "bad-share",
        lambda row: f"gpu_milli {share[row]} of each GPU; 1 to 1000 can be had",
    )
    found.refuse(
        (count > 1) & (share != WHOLE),
        "bad-share",
        lambda row: f"{share[row]} milli of each of {count[row]} GPUs: shares are of one GPU",
    )
    kept = found.kept()
    left_out = found.left_out("name")
    check_any(path.name, len(kept), left_out)
    spec, sets = table.codes(column["gpu_spec"][kept].tolist()) if "gpu_spec" in column else (None, ())
    models, model_sets = _model_sets(spec, sets, len(kept))
    nothing = np.zeros(len(kept), np.int64)
    workload = Workload(
        submit_ns=nothing,
        duration_ns=nothing,
        team=nothing,
        workers=nothing + 1,
        min_workers=nothing + 1,
        milli_gpu=np.where(count > 0, count * share, 0)[kept],
        gpu_mib=nothing,
        milli_cpu=column["cpu_milli"][kept],
        mib=column["memory_mib"][kept],
        models=np.where(count[kept] > 0, models, 0),
        deadline_ns=nothing,
        priority=nothing,
        names=tuple(column["name"][kept].tolist()),
        teams=(TEAM,),
        model_sets=model_sets,
        kind=Kind.ARRIVALS,
    )
    return Trace(source=path.name, workload=workload, rows=kept + 1, left_out=left_out)


def _model_sets(
    spec: np.ndarray[tuple[int], np.dtype[np.int64]] | None, texts: tuple[str, ...], count: int
) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], tuple[tuple[str, ...], ...]]:
    """([count] row of each job, the sets): row 0 allows any model; "A|B" and "B|A" are one set."""
    sets: dict[tuple[str, ...], int] = {(): 0}
    if spec is None:
        return np.zeros(count, np.int64), tuple(sets)
    rows = [
        sets.setdefault(tuple(sorted({part.strip() for part in text.split("|")} - {""})), len(sets))
        for text in texts
    ]
    return np.array(rows, np.int64)[spec], tuple(sets)
