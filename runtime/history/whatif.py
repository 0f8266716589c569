"""What other quotas would have done to the waits of a pool's own history: the same jobs through the same planner twice.

The simulator runs the discipline of a live pool under the quotas in force and under those proposed. Nothing is applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moorage.configs.quotafile import changes
from moorage.configs.teams import Teams
from moorage.errors import InvalidRequest
from moorage.runtime.control.book import team_specs
from moorage.runtime.control.packing import FEWEST_TASKS
from moorage.runtime.history.figures import HOUR_NS, plain
from moorage.runtime.history.own import OwnHistory
from moorage.runtime.history.runs import Progress
from moorage.runtime.history.trace import check_any, left_out_counts, left_out_json
from moorage.scheduling.ledger import Ledger, NodeUp, TeamSet, step
from moorage.scheduling.model import WHOLE, DeviceRule, IntArray, JobRequest, NodeSpec, Reason, Shape
from moorage.scheduling.packing.scorings import BEST_FIT, POTENTIAL
from moorage.scheduling.planner import feasible
from moorage.scheduling.simulator import engine
from moorage.scheduling.simulator.disciplines import LIVE
from moorage.scheduling.simulator.model import BoolArray, LeftOut, NotSimulated, Workload

WORST_SHOWN = 10
MANY_JOBS = 20_000
PERIOD_NS = 10 * 10**9
"""Of so many jobs decisions are made that far apart: a replay must not take an afternoon."""
_SHAPE = ("team", "workers", "min_workers", "milli_gpu", "gpu_mib", "milli_cpu", "mib", "models")


@dataclass(frozen=True, slots=True)
class _Side:
    """One run. Arrays are [n] over the jobs of the history; a job that was refused has wait -1."""

    wait_ns: IntArray
    held_ns: IntArray
    """Time under a lease within the window."""
    refused: BoolArray
    end_ns: int


def what_if(
    history: OwnHistory,
    before: Teams,
    after: Teams,
    *,
    rule: DeviceRule = DeviceRule.RAYLET,
    packing: str = POTENTIAL,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The report as JSON values: waits in seconds, GPU time in GPU-hours, `before` the quotas in force.

    `packing` is that of the pool's settings; like the pool, few tasks are packed by best fit whatever it says. The
    window is that of the real history: from its first submission to the last end. Raises InvalidRequest
    (`history-team-unknown`, `teams-over-committed`, `no-nodes`, `not-simulated`) and DataError when no job is left.
    """
    _check(history, after)
    load, left_out = history.trace.workload, list(history.trace.left_out)
    never = _never(history.nodes, before, load, rule)
    kept = [row for row in range(len(load)) if row not in never]
    left_out += [
        LeftOut(
            row=int(history.trace.rows[row]),
            name=load.name(row),
            code="could-not-run",
            text=f"the nodes and quotas of today could not hold it: {never[row].text()}",
        )
        for row in sorted(never)
    ]
    check_any("the pool's history", len(kept), left_out)
    rows = np.array(kept, np.int64)
    load, waited = load.take(rows), history.waited_ns[rows]
    first = int(load.submit_ns[0])
    load = replace(load, submit_ns=load.submit_ns - first)
    refused = _never(history.nodes, after, load, rule)
    window = int((load.submit_ns + waited + load.duration_ns).max())
    sides = []
    for number, (name, teams, gone) in enumerate((("current", before, {}), ("proposed", after, refused))):
        told = None if progress is None else _part(progress, f"{name} quotas", number)
        sides.append(_run(history.nodes, load, teams, gone, rule, packing, window, told))
    gpus = sum(node.devices for node in history.nodes)
    return {
        "begun_ns": history.begun_ns + first,
        "window_hours": plain(window / HOUR_NS),
        "nodes": len(history.nodes),
        "gpus": gpus,
        "jobs": len(load),
        "changes": changes(before, after),
        "as_it_was": _waits(waited, np.ones(len(load), np.bool_)),
        **{
            side: _figures(load, found, np.ones(len(load), np.bool_), gpus, window)
            for side, found in zip(("before", "after"), sides, strict=True)
        },
        "teams": _teams(load, sides, gpus, window),
        "jobs_by_change": _by_change(*sides),
        "worst_hit": _worst(load, *sides),
        "refused": _refused(load, refused),
        "left_out": left_out_json(left_out),
        "left_out_by_code": left_out_counts(left_out),
        "notes": _notes(before, after, history, len(load)),
    }


def capacity(nodes: Sequence[NodeSpec]) -> dict[str, int]:
    """Milli-GPU by model, and of all under "gpus": what guarantees are held against."""
    found = {"gpus": 0}
    for node in nodes:
        for name in ("gpus", node.gpu_model):
            found[name] = found.get(name, 0) + node.devices * WHOLE
    return found


def _check(history: OwnHistory, after: Teams) -> None:
    if not sum(node.devices for node in history.nodes):
        raise InvalidRequest(
            "the pool's history knows no node with a GPU",
            why="the replay runs on the nodes that the pool has",
            todo="start the pool once, so that its nodes are recorded",
            code="no-nodes",
        )
    load = history.trace.workload
    unknown = [name for name in load.teams if name not in after.teams]
    if unknown:
        counts = np.bincount(load.team, minlength=len(load.teams))
        told = ", ".join(f"{name} ({counts[load.teams.index(name)]} jobs)" for name in unknown[:8])
        raise InvalidRequest(
            f"the proposed file does not have every team of the history: {told}",
            why="their jobs could not run at all",
            todo="add the teams, with a limit of 0 if they are to have nothing",
            code="history-team-unknown",
            teams=unknown,
        )
    if over := after.over_committed(capacity(history.nodes)):
        raise InvalidRequest(
            "the proposed quotas guarantee more than there is",
            why="; ".join(over),
            todo="lower the quotas of the top-level teams; a limit may be above what there is",
            code="teams-over-committed",
        )


def _never(nodes: Sequence[NodeSpec], teams: Teams, load: Workload, rule: DeviceRule) -> dict[int, Reason]:
    """The rows that could not even start in an idle pool under these quotas, each with its reason."""
    ledger = Ledger()
    for spec in team_specs(teams):
        step(ledger, TeamSet(spec))
    for node in nodes:
        step(ledger, NodeUp(node))
    table = np.stack([getattr(load, name) for name in _SHAPE], axis=1)
    distinct, which = np.unique(table, axis=0, return_inverse=True)
    found: dict[int, Reason] = {}
    for kind, (team, workers, least, milli, gpu_mib, cpu, mib, models) in enumerate(distinct.tolist()):
        request = JobRequest(
            job="job",
            team=load.teams[team],
            submitted_ns=0,
            worker=Shape(milli_gpu=milli, gpu_mib=gpu_mib, milli_cpu=cpu, mib=mib),
            workers=workers,
            min_workers=least,
            gpu_models=load.model_sets[models],
            constraints=load.place(models),
        )
        reason = feasible(ledger, request, rule)
        if reason is not None:
            found |= dict.fromkeys(np.flatnonzero(which.reshape(-1) == kind).tolist(), reason)
    return found


def _run(
    nodes: Sequence[NodeSpec],
    load: Workload,
    teams: Teams,
    refused: dict[int, Reason],
    rule: DeviceRule,
    packing: str,
    window_ns: int,
    progress: engine.Progress | None,
) -> _Side:
    gone = np.zeros(len(load), np.bool_)
    gone[list(refused)] = True
    rows = np.flatnonzero(~gone)
    wait, held, end = np.full(len(load), -1, np.int64), np.zeros(len(load), np.int64), 0
    if progress is not None:
        progress(0, len(load))
    if len(rows):
        some = load.take(rows)
        try:
            result = engine.simulate(
                nodes,
                some,
                policy=LIVE,
                quotas=team_specs(teams),
                rule=rule,
                packing=packing if int(load.workers.sum()) >= FEWEST_TASKS else BEST_FIT,
                period_ns=PERIOD_NS if len(load) >= MANY_JOBS else 0,
                progress=progress,
            )
        except NotSimulated as error:
            raise InvalidRequest(str(error), code="not-simulated") from error
        wait[rows] = result.start_ns - some.submit_ns
        stop = np.minimum(result.finish_ns, window_ns)
        held[rows] = np.minimum(np.maximum(stop - result.start_ns, 0), some.duration_ns + result.lost_ns)
        end = int(result.finish_ns.max())
    return _Side(wait, held, gone, end)


def _part(progress: Progress, name: str, number: int) -> engine.Progress:
    return lambda done, jobs: progress(name, number * jobs + done, 2 * jobs)


def _waits(wait_ns: IntArray, rows: BoolArray) -> dict[str, Any]:
    ran = wait_ns[rows & (wait_ns >= 0)] / 1e9
    if not len(ran):
        return {"wait_mean_s": None, "wait_p95_s": None, "wait_longest_s": None}
    return {
        "wait_mean_s": plain(ran.mean(), 3),
        "wait_p95_s": plain(np.percentile(ran, 95), 3),
        "wait_longest_s": plain(ran.max(), 3),
    }


def _figures(load: Workload, side: _Side, rows: BoolArray, gpus: int, window_ns: int) -> dict[str, Any]:
    milli_ns = float((load.gpus()[rows] * side.held_ns[rows].astype(np.float64)).sum())
    return {
        "jobs": int((rows & ~side.refused).sum()),
        "refused": int((rows & side.refused).sum()),
        **_waits(side.wait_ns, rows),
        "gpu_hours": plain(milli_ns / WHOLE / HOUR_NS),
        "utilisation_percent": plain(100 * milli_ns / WHOLE / max(gpus * window_ns, 1), 2),
        **({"last_end_hours": plain(side.end_ns / HOUR_NS)} if rows.all() else {}),
    }


def _teams(load: Workload, sides: Sequence[_Side], gpus: int, window_ns: int) -> list[dict[str, Any]]:
    found = []
    for row, team in sorted(enumerate(load.teams), key=lambda item: item[1]):
        of = np.asarray(load.team == row)
        if of.any():
            before, after = (_figures(load, side, of, gpus, window_ns) for side in sides)
            found.append({"team": team, "before": before, "after": after})
    return found


def _by_change(before: _Side, after: _Side) -> dict[str, int]:
    ran = ~after.refused
    return {
        "longer": int((ran & (after.wait_ns > before.wait_ns)).sum()),
        "shorter": int((ran & (after.wait_ns < before.wait_ns)).sum()),
        "same": int((ran & (after.wait_ns == before.wait_ns)).sum()),
        "refused": int(after.refused.sum()),
    }


def _worst(load: Workload, before: _Side, after: _Side) -> list[dict[str, Any]]:
    """The jobs whose wait grew most, the worst first."""
    more = np.where(after.refused, 0, after.wait_ns - before.wait_ns)
    rows = [row for row in np.argsort(-more, kind="stable").tolist() if more[row] > 0][:WORST_SHOWN]
    return [
        {
            **_job(load, row),
            "wait_before_s": plain(before.wait_ns[row] / 1e9, 3),
            "wait_after_s": plain(after.wait_ns[row] / 1e9, 3),
        }
        for row in rows
    ]


def _refused(load: Workload, never: dict[int, Reason]) -> list[dict[str, Any]]:
    """The jobs that the proposed quotas would refuse when they are submitted, the largest first."""
    cost = load.gpus() * (load.duration_ns / HOUR_NS)
    rows = sorted(never, key=lambda row: (-cost[row], row))[:WORST_SHOWN]
    return [{**_job(load, row), "why": never[row].text()} for row in rows]


def _job(load: Workload, row: int) -> dict[str, Any]:
    return {
        "job": load.name(row),
        "team": load.teams[int(load.team[row])],
        "gpus": int(load.gpus()[row]) / WHOLE,
        "submitted_hours": plain(load.submit_ns[row] / HOUR_NS),
    }


def _notes(before: Teams, after: Teams, history: OwnHistory, jobs: int) -> list[str]:
    found = [
        "on the nodes that the pool has now, each job as long as it ran",
        "not replayed: jobs that ran or waited before the window, leases that running jobs grew by, and reservations "
        "by max_runtime",
    ]
    if jobs >= MANY_JOBS:
        found.append(f"{jobs} jobs: decisions are {PERIOD_NS // 10**9} s apart, so waits are that coarse")
    if any(team.budget for team in (*before.teams.values(), *after.teams.values())):
        found.append("budgets are not replayed: a team that would be out of budget goes on")
    found += [f"the quotas in force: {one}" for one in before.over_committed(capacity(history.nodes))]
    return found
