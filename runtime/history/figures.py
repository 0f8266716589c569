"""A run's columns to the figures people compare: plain numbers, ready for JSON, tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from moorage.scheduling.model import WHOLE
from moorage.scheduling.simulator.model import JOB_CLASSES, ArrivalsResult, BoolArray, JobsResult, Workload
from moorage.scheduling.simulator.openb import acceptance, curve

DEMANDS = (50, 80, 100, 130)
"""Percent of demand at which `curve` is read."""
HOUR_NS = 3600 * 10**9
DAY_NS = 24 * HOUR_NS


def arrivals_figures(
    workload: Workload, runs: Sequence[ArrivalsResult], demand: float, capacity: int
) -> dict[str, Any]:
    """The openb figures of one policy over its seeds. `capacity` is milli-GPU.

    `curve` is None beyond the demand. `idle_though_asked_by_demand` is what fragmentation costs: the GPUs that stand
    idle though as many have been asked for.
    """
    last = round(100 * demand)
    by_seed = np.array([run.allocation for run in runs])
    counts = [acceptance(workload, run.order, run.accepted) for run in runs]
    arrived = np.sum([count.arrived for count in counts], axis=0)
    accepted = np.sum([count.accepted for count in counts], axis=0)
    milli = workload.gpus()
    asked = [curve(milli[run.order], np.ones(len(run.order), np.bool_), capacity, demand) for run in runs]
    seconds = sum(run.elapsed_s for run in runs)
    placed = int(sum(int(run.accepted.sum()) for run in runs))
    held = by_seed.mean(axis=0)
    return {
        "allocation_percent": plain(held[last]),
        "per_seed": {str(run.seed): plain(run.allocation[last]) for run in runs},
        "curve": {str(d): plain(held[d]) if d <= last else None for d in sorted({*DEMANDS, last})},
        "acceptance_by_class": {
            name: round(100 * int(accepted[row]) / int(arrived[row]), 3)
            for row, name in enumerate(JOB_CLASSES)
            if arrived[row]
        },
        "arrived_by_class": {name: int(arrived[row]) for row, name in enumerate(JOB_CLASSES) if arrived[row]},
        "placements": placed,
        "placements_per_second": round(placed / seconds, 1) if seconds else None,
        "moves": int(sum(run.moves for run in runs)),
        "allocation_by_demand": [plain(value) for value in held],
        "idle_though_asked_by_demand": [
            plain(value) for value in np.minimum(np.mean(asked, axis=0), 100) - held
        ],
    }


def jobs_figures(workload: Workload, run: JobsResult) -> dict[str, Any]:
    """The queueing figures of one policy. A job's completion time (JCT) counts from its submission."""
    ended = run.finish_ns >= 0
    jct = (run.finish_ns - workload.submit_ns) / HOUR_NS
    figures = _times(jct, ended, run)
    figures["makespan_days"] = plain(run.finish_ns[ended].max() / DAY_NS) if ended.any() else None
    figures["unfinished"] = int((~ended).sum())
    figures["preemptions"] = int(run.preemptions.sum())
    figures["resizes"] = int(run.resizes.sum())
    gpu_ns = workload.gpus() / 1000 * workload.duration_ns
    figures["lost_gpu_percent"] = plain(
        100 * float((workload.gpus() / 1000 * run.lost_ns).sum()) / max(float(gpu_ns.sum()), 1.0)
    )
    figures["by_team"] = {}
    for row, team in enumerate(workload.teams):
        of = workload.team == row
        share = float(gpu_ns[of].sum()) / max(float(gpu_ns.sum()), 1.0)
        figures["by_team"][team] = {
            "jobs": int(of.sum()),
            "gpu_share": plain(share, 6),
            "gpu_hours": plain(float(gpu_ns[of].sum()) / HOUR_NS),
            **_times(jct, ended & of, run),
        }
    figures["decisions"] = run.decisions
    figures["decision_seconds"] = plain(run.elapsed_s)
    return figures


def against_partition(figures: dict[str, Any], static: dict[str, Any], own_milli: Mapping[str, int]) -> None:
    """Say of each team how its mean completion time compares with that in its own static partition of `own_milli`
    milli-GPU, and which team fares worst by that."""
    ratios: dict[str, float] = {}
    for team, one in figures["by_team"].items():
        alone = static["by_team"][team]["avg_jct_hours"]
        one["share_gpus"] = plain(own_milli[team] / WHOLE)
        one["partition_avg_jct_hours"] = alone
        one["over_partition"] = None
        if alone and one["avg_jct_hours"] is not None:
            ratios[team] = one["avg_jct_hours"] / alone
            one["over_partition"] = plain(ratios[team])
    worst = max(ratios, key=ratios.__getitem__, default=None)
    figures["worst_over_partition"] = None if worst is None else plain(ratios[worst])
    figures["worst_team"] = worst


def _times(jct: npt.NDArray[np.float64], rows: BoolArray, run: JobsResult) -> dict[str, Any]:
    if not rows.any():
        return {"avg_jct_hours": None, "p95_jct_hours": None, "max_queued_stint_hours": None}
    return {
        "avg_jct_hours": plain(jct[rows].mean()),
        "p95_jct_hours": plain(np.percentile(jct[rows], 95)),
        "max_queued_stint_hours": plain(run.longest_stint_ns[rows].max() / HOUR_NS),
    }


def jct_hours(workload: Workload, run: JobsResult) -> npt.NDArray[np.float64]:
    """Completion times of the jobs that ended, ascending: the CDF's steps."""
    ended = run.finish_ns >= 0
    return np.sort((run.finish_ns - workload.submit_ns)[ended] / HOUR_NS)


def plain(value: Any, digits: int = 4) -> float | None:
    """A number for JSON: None for NaN."""
    number = float(value)
    return None if np.isnan(number) else round(number, digits)
