"""A million jobs on 100,000 GPUs through the simulator: the same plan() and step() as production, decided in a cycle.

No trace of that size can be had, so the jobs are made up, with the tails of Philly's (Jeon et al., USENIX ATC'19): most
take one GPU, run times are log-normal with a median of a quarter of an hour and a mean of several hours. They come at
random over a time in which they ask for 1.7 times the pool; as the long ones go on after it, the pool is full for the
second half of it, and queues build up.
"""

from __future__ import annotations

import resource
import sys
import time

import numpy as np
from _frame import Figure, main

from moorage.scheduling.model import NodeSpec
from moorage.scheduling.simulator.engine import PERIOD_NS, simulate
from moorage.scheduling.simulator.model import JobsResult, Kind, Workload

POLICIES = ("learned", "backfill")
TEAMS = 14
LOAD = 1.7
SECOND = 10**9
MEDIAN_S, SIGMA = 900.0, 2.3
LONGEST_S = 60 * 86_400
SIZES = np.array([1, 2, 4, 8, 16, 32])
COMES = np.array([0.75, 0.06, 0.09, 0.08, 0.015, 0.005])


def made_up(count: int, gpus: int, seed: int = 1) -> Workload:
    """Jobs of up to 8 GPUs are one task, larger ones gangs of whole nodes."""
    draw = np.random.default_rng(seed)
    size = draw.choice(SIZES, count, p=COMES)
    duration = np.minimum(draw.lognormal(np.log(MEDIAN_S), SIGMA, count), LONGEST_S) * SECOND
    span = float(size @ duration) / gpus / LOAD
    workers = np.maximum(size // 8, 1)
    none = np.zeros(count, np.int64)
    return Workload(
        submit_ns=np.sort(draw.uniform(0, span, count)).astype(np.int64),
        duration_ns=np.maximum(duration, SECOND).astype(np.int64),
        team=draw.integers(0, TEAMS, count),
        workers=workers,
        min_workers=workers,
        milli_gpu=1000 * size // workers,
        gpu_mib=none,
        milli_cpu=none,
        mib=none,
        models=none,
        deadline_ns=none,
        priority=none,
        names=None,
        teams=tuple(f"team-{t}" for t in range(TEAMS)),
        model_sets=((),),
        kind=Kind.JOBS,
    )


def timed(policy: str, nodes: int, workload: Workload) -> tuple[JobsResult, float, float]:
    """The run, and its wall and processor seconds."""
    machines = [NodeSpec(name=f"n{i:05d}", gpu_model="GPU", devices=8) for i in range(nodes)]
    wall, cpu = time.perf_counter(), time.process_time()

    def told(ended: int, count: int) -> None:
        passed = time.perf_counter() - wall
        print(
            f"\r{policy}: {100 * ended // count}% after {passed:.0f} s ", end="", file=sys.stderr, flush=True
        )

    found = simulate(
        machines,
        workload,
        policy=policy,
        period_ns=PERIOD_NS,
        progress=told if sys.stderr.isatty() else None,
    )
    return found, time.perf_counter() - wall, time.process_time() - cpu


def measure(quick: bool) -> list[Figure]:
    nodes, count = (100, 8000) if quick else (12_500, 1_000_000)
    workload, figures = made_up(count, 8 * nodes), []
    first = workload.take(np.arange(200))
    for policy in POLICIES:
        timed(policy, nodes, first)  # numba compiles at the first call
        found, wall, cpu = timed(policy, nodes, workload)
        days = float(found.finish_ns.max()) / (86_400 * SECOND)
        jct = float((found.finish_ns - workload.submit_ns).mean()) / (3600 * SECOND)
        what = f"{policy}, {count:,} jobs on {8 * nodes:,} GPUs"
        figures += [
            Figure(
                metric=f"{what}: minutes",
                ours=wall / 60,
                better="lower",
                peer_name=f"{cpu / 60:.1f} of processor time; {days:.1f} simulated days, {found.decisions:,} decisions",
            ),
            Figure(
                metric=f"{what}: jobs per processor second",
                ours=count / cpu,
                better="higher",
                peer_name=f"mean completion {jct:.2f} h, {int(found.preemptions.sum()):,} preempted or moved",
            ),
        ]
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    figures.append(Figure(metric="memory at the most, GiB", ours=most, better="lower"))
    return figures


if __name__ == "__main__":
    raise SystemExit(main(measure, "a million jobs on 100,000 GPUs through the simulator"))
