"""Packing: GPU allocation on FGD's own lists and placements per second, through the public `plan()`.

Each list of jobs is shuffled, grown to 130 % of the cluster's GPUs and offered job by job, as the source of FGD's
simulator does it (Weng et al., USENIX ATC'23): the same arrivals, number for number. FGD itself runs here too, on the
same harness; figures marked "published" are the means that its authors' runs print.

A tuner chose the constants of the rule on default, cpu050, gpushare40, multigpu20 and made-up variants of them. The
other four were not in its objective but were looked at while rules and weight sets were compared: they are no clean
hold-out.

The traces are data that the repository does not carry: MOORAGE_TRACES names their folder, else ../shared/traces.
"""

from __future__ import annotations

import csv
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _frame import Figure, main

from moorage.runtime.history.openb import read_jobs, read_nodes
from moorage.scheduling.model import DeviceRule, NodeSpec
from moorage.scheduling.packing.values import fewest_devices
from moorage.scheduling.simulator.model import JOB_CLASSES, Workload
from moorage.scheduling.simulator.openb import acceptance
from moorage.scheduling.simulator.replay import replay

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(os.environ.get("MOORAGE_TRACES") or ROOT.parent / "shared" / "traces") / "openb"
GOALS = {"default": 96.5, "cpu250": 95.0, "gpuspec33": 96.4, "gpushare100": 88.7}
LISTS = (
    "default",
    "cpu050",
    "cpu250",
    "gpuspec33",
    "gpushare40",
    "gpushare100",
    "multigpu20",
    "multigpu50",
)
OURS, PEER = "potential", "fgd"
DEMANDS = (50, 80, 100, 130)
WHOLE_NODE = "8 GPU"
RATE_AT_OPENB, RATE_AT_LARGE = 300_000, 60_000
LARGE = 12_500


@dataclass(frozen=True, slots=True)
class Run:
    """One rule on one list: means over the seeds."""

    curve: tuple[float, ...]
    """GPU allocation in percent at each of DEMANDS"""
    by_class: dict[str, float]
    """percent of the jobs of a class that got a place"""
    needed: float
    """devices that the accepted jobs need however they are placed (a bound by linear programming), percent of all: the
    nearer to 100, the less any other placement of the same jobs could leave free"""
    rate: float
    """accepted jobs, each of one task, per second inside `plan()`"""


def run(nodes: Sequence[NodeSpec], workload: Workload, policy: str, rule: DeviceRule, seeds: range) -> Run:
    runs = [
        replay(nodes, workload, demand=1.3, seed=seed, policy=policy, rule=rule, stopwatch=time.perf_counter)
        for seed in seeds
    ]
    devices, milli = sum(node.devices for node in nodes), workload.gpus()
    came, got = np.sum([acceptance(workload, one.order, one.accepted) for one in runs], axis=0)
    return Run(
        curve=tuple(float(np.mean([one.allocation[d] for one in runs])) for d in DEMANDS),
        by_class={
            name: 100 * float(g) / float(c) for name, c, g in zip(JOB_CLASSES, came, got, strict=True) if c
        },
        needed=100 * float(np.mean([fewest_devices(milli[o.order[o.accepted]]) for o in runs])) / devices,
        rate=sum(int(one.accepted.sum()) for one in runs) / sum(one.elapsed_s for one in runs),
    )


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def published() -> dict[str, float]:
    with (FOLDER / "published_allocation.csv").open() as lines:
        return {
            row["pod_list"]: float(row["mean_gpu_allocation_percent_at_130_percent_demand"])
            for row in csv.DictReader(lines)
            if row["policy"] == "FGD"
        }


def of_list(
    name: str, nodes: Sequence[NodeSpec], workload: Workload, theirs: float, seeds: range
) -> list[Figure]:
    """Ours under both device rules beside FGD on the same arrivals."""
    found = {
        (policy, rule): run(nodes, workload, policy, rule, seeds)
        for rule in DeviceRule
        for policy in (OURS, PEER)
    }
    for (policy, rule), one in found.items():
        curve = " ".join(f"{d} %: {value:.2f}" for d, value in zip(DEMANDS, one.curve, strict=True))
        classes = " ".join(f"{label}: {value:.1f}" for label, value in one.by_class.items())
        note(
            f"{name:12s} {policy:10s} {rule:7s} {curve} | accepted % {classes} | "
            f"needs {one.needed:.2f} | {one.rate:,.0f}/s"
        )
    ours, free = found[OURS, DeviceRule.RAYLET], found[OURS, DeviceRule.FREE]
    fgd, fgd_free = found[PEER, DeviceRule.RAYLET], found[PEER, DeviceRule.FREE]
    here = "FGD, same run, "
    figures = [
        Figure(
            metric=f"{name}: allocation % at 130 %",
            ours=ours.curve[-1],
            better="higher",
            peer=theirs,
            peer_name=f"FGD as published; here {fgd.curve[-1]:.2f}",
            target=1.0,
        ),
        Figure(
            metric=f"{name}: the same, devices chosen freely",
            ours=free.curve[-1],
            better="higher",
            peer=fgd_free.curve[-1],
            peer_name=here + "free choice",
            target=1.0,
        ),
    ]
    for at in (1, 2):
        figures.append(
            Figure(
                metric=f"{name}: allocation % at {DEMANDS[at]} %",
                ours=ours.curve[at],
                better="higher",
                peer=fgd.curve[at],
                peer_name=here + "raylet's rule",
                target=1.0,
            )
        )
    if WHOLE_NODE in ours.by_class:
        figures.append(
            Figure(
                metric=f"{name}: jobs of {WHOLE_NODE} accepted %",
                ours=ours.by_class[WHOLE_NODE],
                better="higher",
                peer=fgd.by_class[WHOLE_NODE],
                peer_name=here + "raylet's rule",
                target=1.0,
            )
        )
    if name in GOALS:
        figures.append(
            Figure(
                metric=f"{name}: allocation % at 130 %, goal",
                ours=max(ours.curve[-1], free.curve[-1]),
                better="higher",
                peer_name="the better of both device rules",
                target=GOALS[name],
            )
        )
    return figures


def speed(
    nodes: Sequence[NodeSpec], workload: Workload, label: str, target: int, seeds: range
) -> list[Figure]:
    """Placements per second of ours, best of the seeds, beside FGD's on the same arrivals."""
    ours, fgd = (
        max(run(nodes, workload, policy, DeviceRule.FREE, range(s, s + 1)).rate for s in seeds)
        for policy in (OURS, PEER)
    )
    metric = f"placements/s, {label}"
    return [
        Figure(metric=metric, ours=ours, better="higher", peer=fgd, peer_name="FGD, same run", target=1.0),
        Figure(metric=f"{metric}, goal", ours=ours, better="higher", peer_name="a bound", target=target),
    ]


def measure(quick: bool) -> list[Figure]:
    if not FOLDER.is_dir():
        note("no traces here: MOORAGE_TRACES names no folder, and ../shared/traces is not there")
        return []
    nodes, theirs = read_nodes(FOLDER / "openb_node_list_gpu_node.csv"), published()
    lists = {
        name: read_jobs(FOLDER / f"openb_pod_list_{name}.csv").that_fit(nodes).workload
        for name in (LISTS[:1] if quick else LISTS)
    }
    for policy in (OURS, PEER):
        run(nodes, lists["default"], policy, DeviceRule.FREE, range(1))  # compiles
    figures = speed(nodes, lists["default"], "1,213 nodes", RATE_AT_OPENB, range(42, 43 if quick else 47))
    if not quick:
        large = [
            NodeSpec(
                name=f"n{i:05d}", gpu_model="G", devices=8, device_mib=16_384, milli_cpu=96_000, mib=393_216
            )
            for i in range(LARGE)
        ]
        figures += speed(large, lists["default"], f"{LARGE:,} nodes x 8", RATE_AT_LARGE, range(42, 44))
    for name, workload in lists.items():
        figures += of_list(name, nodes, workload, theirs[name], range(42, 43 if quick else 52))
    return figures


if __name__ == "__main__":
    raise SystemExit(main(measure, "GPU allocation on the lists of FGD, and placements per second"))
