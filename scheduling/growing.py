"""Which running gangs take more workers, once everything that waits has been tried, and where they may not.

Nobody grows into room that somebody waits for. What a waiting job lacks says where that is:

- room on devices: no gang grows onto a node that one of its tasks could run on;
- quota that others lend: no gang grows beyond its team's own quota;
- room under a limit: no gang of a team below that limit grows.

A gang that is not preemptible gives nothing back, so it grows within its team's own quota only, where there are
quotas. A job that even an idle pool could not start waits for none of these. A plan that takes anything from anybody,
or holds room for a job that has waited longest, grows nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moorage.kernels import admission, growing
from moorage.kernels.gang import Pool
from moorage.kernels.placing_scores import Classes
from moorage.kernels.teams import Teams
from moorage.scheduling.ledger import Ledger
from moorage.scheduling.model import WHOLE, IntArray, Policy
from moorage.scheduling.running import RunningJobs

Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grown:
    """Workers that running gangs take: worker i goes to row `job[i]` of the running jobs."""

    job: IntArray
    node: IntArray
    mask: IntArray
    mem: IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What those who wait lack."""

    nodes: Bool
    """[N] wanted by somebody who waits for room."""
    teams: Bool
    """[T] at or below a limit that binds somebody, or out of budget."""
    lent: bool
    """Somebody waits for quota that others lend."""


def may_grow(running: RunningJobs, policy: Policy) -> IntArray:
    """Rows of the gangs that want more workers and were left alone long enough."""
    if not policy.grow or running.most_tasks is None or not len(running):
        return np.zeros(0, np.int64)
    wants = running.most_tasks > np.diff(running.first)
    each = np.array([c.shape.milli_gpu for c in running.classes], np.int64)
    wants &= each[running.workers()] > 0
    for since in (running.ran_ns, running.grown_ns, running.shrunk_ns):
        if since is not None:
            wants &= since >= policy.settle_ns
    return np.flatnonzero(wants)


def wanted(
    rows: admission.Rows,
    deferred: IntArray,
    code: IntArray,
    figures: IntArray,
    teams: Teams,
    holds: Callable[[int], Bool],
    never: Callable[[int], object],
) -> Wanted:
    """From the reasons of the deferred rows; of rows that ask for the same, one is looked at. `holds(c)`: [N] the nodes
    that could run a task of class `c`, were they idle; -1 = none. `never(row)`: not None when not even an idle pool
    could start it."""
    found = Wanted(nodes=holds(-1), teams=np.zeros(len(teams.parent), np.bool_), lent=False)
    alike = np.stack(
        [code, rows.team[deferred], rows.head[deferred], rows.worker[deferred], rows.min_workers[deferred]]
    )
    _, at = np.unique(alike, axis=1, return_index=True)
    for i in np.sort(at).tolist():
        row = int(deferred[i])
        if code[i] in (admission.TEAM_UNKNOWN, admission.BUDGET):  # room is not what they lack
            continue
        if code[i] == admission.TEAM_QUOTA and not found.lent:
            found = Wanted(nodes=found.nodes, teams=found.teams, lent=never(row) is None)
        elif code[i] == admission.TEAM_LIMIT and never(row) is None:
            found.teams[below(teams.parent, int(figures[i, 0]))] = True
        elif code[i] not in (admission.TEAM_QUOTA, admission.TEAM_LIMIT):
            here = holds(int(rows.head[row])) | holds(int(rows.worker[row]))
            if (here & ~found.nodes).any() and never(row) is None:
                found.nodes[here] = True
    return found


def holding(ledger: Ledger, classes: Classes) -> Callable[[int], Bool]:
    """Of a class, the nodes that could run one task of it, were they idle; none for -1."""

    def holds(c: int) -> Bool:
        if c < 0:
            return np.zeros(len(ledger.up), np.bool_)
        found = classes.allowed[c] & (ledger.devices * WHOLE >= classes.milli[c])
        found &= (ledger.cpu_total >= classes.cpu[c]) & (ledger.mib_total >= classes.mib[c])
        return np.asarray(found & ((ledger.device_mib >= classes.gpu_mib[c]) | (classes.milli[c] == 0)))

    return holds


def below(parent: IntArray, team: int) -> Bool:
    """[T] the team itself, and all under it."""
    inside = np.zeros(len(parent), np.bool_)
    inside[team] = True
    for row in range(team + 1, len(parent)):  # parents come before children
        inside[row] |= parent[row] >= 0 and inside[parent[row]]
    return inside


def grow(
    gangs: IntArray,
    running: RunningJobs,
    team: IntArray,
    klass: IntArray,
    pool: Pool,
    teams: Teams,
    lacks: Wanted,
) -> Grown:
    """Workers for `gangs`, rows of `running`, in what is left of `pool` and `teams`. `team[V]`, `klass[V]`: each job's
    team, and the class of one more worker, as the decision counts them."""
    gangs = gangs[team[gangs] >= 0]
    gangs = gangs[~lacks.teams[team[gangs]]]
    count = np.diff(running.first)[gangs]
    most = (np.zeros(0, np.int64) if running.most_tasks is None else running.most_tasks)[gangs]
    milli = pool.classes.milli[klass[gangs]]
    free = int(pool.nodes.milli_free.sum()) // int(milli.min(initial=1)) if len(gangs) else 0
    taken = np.zeros((4, min(int((most - count).sum()), free)), np.int64)
    models = teams.own.shape[1]
    able = growing.Growing(
        team=team[gangs],
        klass=klass[gangs],
        tasks=count.copy(),
        most=most,
        keeps=(running.fixed if running.keeps is None else running.keeps)[gangs] != 0,
        done=np.zeros(len(gangs), np.bool_),
        here=~lacks.nodes,
        anywhere=not lacks.nodes.any(),
        first=np.full(len(teams.parent), -1, np.int64),
        key=np.zeros(len(gangs), np.int64),
        nothing=np.zeros(len(gangs), np.int64),
        within=np.zeros(models, np.int64),
        own=np.zeros(models, np.int64),
    )
    given = growing.grow(able, pool, teams, not lacks.lent, *taken)
    gang, node, mask, mem = (column[:given] for column in taken)
    order = np.argsort(gang, kind="stable")
    return Grown(job=gangs[gang][order], node=node[order], mask=mask[order], mem=mem[order])


def columns(running: RunningJobs | None, grown: Grown | None) -> dict[str, Any]:
    """Of a plan."""
    if grown is None or running is None or not len(grown.job):
        return {}
    jobs, of = np.unique(grown.job, return_inverse=True)
    return {
        "grown": tuple(running.leases[v] for v in jobs),
        "grown_of": of.astype(np.int64),
        "grown_node": grown.node,
        "grown_devices": grown.mask,
        "grown_gpu_mib": grown.mem,
    }
