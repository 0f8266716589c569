"""A trace through the simulator under each policy asked for, to one report: what the commands and benchmarks print."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moorage.errors import InvalidRequest
from moorage.runtime.history import figures
from moorage.runtime.history.trace import Trace, left_out_counts, left_out_json
from moorage.scheduling.model import WHOLE, DeviceRule, NodeSpec
from moorage.scheduling.simulator import engine, replay
from moorage.scheduling.simulator.elastic import Elastic, made_elastic
from moorage.scheduling.simulator.model import NotSimulated, Workload
from moorage.scheduling.simulator.partition import shares

Progress = Callable[[str, int, int], None]
"""(what runs, done, all)."""


@dataclass(slots=True)
class Report:
    """`data` is the JSON document: the figures of the first policy at the top, all policies under `policies`."""

    data: dict[str, Any]
    jct_hours: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    """Policy -> ascending completion times, for the CDF."""


def fill(
    nodes: Sequence[NodeSpec],
    trace: Trace,
    *,
    demand: float,
    seeds: Sequence[int],
    policies: Sequence[str],
    rule: DeviceRule,
    migrate: float,
    progress: Progress | None = None,
) -> Report:
    """The openb protocol: every policy meets the same arrivals, seed by seed."""
    trace = trace.that_fit(nodes)
    workload = trace.workload
    gpus = sum(node.devices for node in nodes)
    if not gpus or not workload.gpus().any():
        raise InvalidRequest(
            f"{'the nodes have' if not gpus else trace.source + ' asks for'} no GPU",
            why="the demand is counted in GPUs",
            code="no-gpus",
        )
    found: dict[str, dict[str, Any]] = {}
    with _refusals():
        for number, policy in enumerate(policies):
            runs = []
            _warm_up(nodes, workload, policy, rule, migrate)
            for at, seed in enumerate(seeds):
                if progress is not None:
                    progress(policy, number * len(seeds) + at, len(policies) * len(seeds))
                runs.append(
                    replay.replay(
                        nodes,
                        workload,
                        demand=demand,
                        seed=seed,
                        policy=policy,
                        rule=rule,
                        migrate=migrate,
                        stopwatch=time.perf_counter,
                    )
                )
            found[policy] = figures.arrivals_figures(workload, runs, demand, gpus * WHOLE)
        if progress is not None:
            progress("done", 1, 1)
    head = {
        "trace": "openb",
        "jobs_file": trace.source,
        "nodes": len(nodes),
        "gpus": gpus,
        "jobs": len(workload),
        "demand": demand,
        "seeds": list(seeds),
        "device_rule": str(rule),
        "migrate": migrate,
    }
    return Report(_document(head, found, trace))


def _warm_up(
    nodes: Sequence[NodeSpec], workload: Workload, policy: str, rule: DeviceRule, migrate: float
) -> None:
    """One job on one node: numba compiles at the first call, and that is no part of the figures."""
    node = next(node for node in nodes if node.devices)
    job = workload.take(np.flatnonzero(workload.gpus())[:1])
    replay.replay([node], job, demand=2.0, seed=0, policy=policy, rule=rule, migrate=migrate)


def run(
    nodes: Sequence[NodeSpec],
    trace: Trace,
    *,
    policies: Sequence[str],
    every_s: float | None = None,
    elastic: tuple[int, Elastic] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Jobs that end: every policy meets the same submissions.

    `every_s`: how often is decided at the most, 0 = at every event; None = that, but for very many jobs. `elastic`: the
    percentage of its workers at which a job of several GPUs may run, and how fast it then is. Where a policy
    knows shares, all are also held against the static partition, which then runs too.
    """
    trace = trace.that_fit(nodes)
    sharing = not engine.SHARING.isdisjoint(policies)
    if every_s is None:
        every_s = engine.PERIOD_NS / 1e9 if len(trace.workload) > engine.MANY_JOBS else 0.0
    found: dict[str, dict[str, Any]] = {}
    times: dict[str, npt.NDArray[np.float64]] = {}
    with _refusals():
        if sharing:
            trace = trace.that_fit_shares(nodes)
        if elastic is not None:
            trace = replace(trace, workload=made_elastic(trace.workload, elastic[0]))
        every = list(dict.fromkeys((*policies, engine.STATIC) if sharing else policies))
        for number, policy in enumerate(every):
            result = engine.simulate(
                nodes,
                trace.workload,
                policy=policy,
                period_ns=round(every_s * 1e9),
                elastic=None if elastic is None else elastic[1],
                stopwatch=time.perf_counter,
                progress=None if progress is None else _part(progress, policy, number, len(every)),
            )
            found[policy] = figures.jobs_figures(trace.workload, result)
            times[policy] = figures.jct_hours(trace.workload, result)
        if sharing:
            own = dict(zip(trace.workload.teams, shares(trace.workload, nodes).tolist(), strict=True))
            for one in found.values():
                figures.against_partition(one, found[engine.STATIC], own)
            found = {policy: found[policy] for policy in policies}
            times = {policy: times[policy] for policy in policies}
    head = {
        "trace": "philly",
        "jobs_file": trace.source,
        "nodes": len(nodes),
        "gpus": sum(node.devices for node in nodes),
        "jobs": len(trace.workload),
        "decide_every_s": every_s,
        "elastic": None
        if elastic is None
        else {"least_percent": elastic[0], "efficiency_percent": elastic[1].efficiency_percent},
    }
    return Report(_document(head, found, trace), times)


def _document(head: dict[str, Any], found: dict[str, dict[str, Any]], trace: Trace) -> dict[str, Any]:
    first = next(iter(found))
    return {
        **head,
        "policy": first,
        **found[first],
        "left_out": left_out_json(trace.left_out),
        "left_out_by_code": left_out_counts(trace.left_out),
        "notes": list(trace.notes),
        "policies": found,
    }


def _part(progress: Progress, policy: str, number: int, count: int) -> engine.Progress:
    return lambda done, jobs: progress(policy, number * jobs + done, count * jobs)


@contextmanager
def _refusals() -> Iterator[None]:
    """What the pure core refuses, as people see it."""
    try:
        yield
    except NotSimulated as error:
        raise InvalidRequest(str(error), code="not-simulated") from error
