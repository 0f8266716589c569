"""The openb protocol, as the source of FGD's simulator has it (Weng et al., USENIX ATC'23): fill a cluster until the
demand that arrived reaches a share of its GPUs, and read how much of them is held.

Jobs never leave, so one decision over all arrivals in their order equals a decision at each arrival.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moorage.scheduling.model import WHOLE, IntArray
from moorage.scheduling.simulator.gorand import GoRand
from moorage.scheduling.simulator.model import JOB_CLASSES, BoolArray, Workload

FloatArray = npt.NDArray[np.float64]

_BLOCK = 1024


class Arrivals(NamedTuple):
    """What one seed makes of a list of jobs and a list of nodes."""

    order: IntArray
    """[m] rows of the workload, in order of arrival; a row that was sampled again comes again."""
    tie: IntArray
    """[nodes] rank of each node: between equal nodes the lowest is taken."""


def arrivals(
    workload: Workload, node_names: Sequence[str], capacity: int, demand: float, seed: int
) -> Arrivals:
    """The arrivals of one seed, number for number those of FGD's source (Go's math/rand).

    Jobs in order of name are shuffled. Then jobs drawn from the whole list are appended while the demand stays within
    `demand` x `capacity` (milli-GPU), or, when the list alone asks for more, jobs drawn are removed until it does not.
    The source compares the next job's milli-GPU per device, not its total, so the demand may end a few GPUs above.
    Raises ValueError when the jobs or the nodes have no GPU: the demand would never be reached.
    """
    total = workload.gpus()
    target = demand * capacity
    if capacity <= 0 or not total.any():
        raise ValueError("demand is counted in GPUs: both the nodes and the jobs need some")
    by_name = np.arange(len(workload))
    if workload.names is not None:
        by_name = np.argsort(np.array(workload.names), kind="stable")
    rand = GoRand(seed)
    rand.int63()  # the source logs one number
    order = by_name[rand.shuffle(len(workload))]
    asked = int(total.sum())
    if asked > target:
        order = _thinned(order, total, asked, target, rand)
    elif asked < target:
        order = np.concatenate([order, _sampled(by_name, workload, asked, target, rand)])
    names = np.argsort(np.array(node_names), kind="stable")
    tie = np.empty(len(names), np.int64)
    tie[names] = rand.perm(len(names))
    return Arrivals(order, tie)


def _sampled(by_name: IntArray, workload: Workload, asked: int, target: float, rand: GoRand) -> IntArray:
    """Rows appended, drawn from the list in order of name."""
    rows, total = by_name.tolist(), workload.gpus().tolist()
    each = np.minimum(workload.milli_gpu, WHOLE).tolist()
    drawn: list[int] = []
    while True:
        row = rows[rand.intn(len(rows))]
        if asked + each[row] > target:
            return np.array(drawn, np.int64)
        asked += total[row]
        drawn.append(row)


def _thinned(order: IntArray, total: IntArray, asked: int, target: float, rand: GoRand) -> IntArray:
    """`order` less rows drawn by position, until the demand is within the target. In blocks: a removal is no move of
    the whole list."""
    blocks = [order[at : at + _BLOCK].tolist() for at in range(0, len(order), _BLOCK)]
    weight, left = total.tolist(), len(order)
    while asked > target:
        at, left = rand.intn(left), left - 1
        for block in blocks:
            if at < len(block):
                asked -= weight[block.pop(at)]
                break
            at -= len(block)
    return np.array([row for block in blocks for row in block], np.int64)


def curve(milli: IntArray, accepted: BoolArray, capacity: int, demand: float) -> FloatArray:
    """[D + 1] percent of the GPUs held at 0..D percent of demand, D = round(100 x demand).

    `milli` and `accepted` are [m] in order of arrival. As the source's analysis has it: after each arrival, the demand
    that has arrived in percent of the GPUs is rounded (halves to even); the value at d is the mean over the arrivals
    that round to d, or, where none does, to d - 1..d + 1. Where there are none either, nothing changes from d - 1 on.
    """
    arrived = np.cumsum(milli) * (100 / capacity)
    held = np.cumsum(np.where(accepted, milli, 0)) * (100 / capacity)
    last = round(100 * demand)
    at = np.rint(arrived).astype(np.int64)
    inside = at <= last + 1
    count = np.bincount(at[inside], minlength=last + 2)
    total = np.bincount(at[inside], weights=held[inside], minlength=last + 2)
    found = np.zeros(last + 1)
    for d in range(last + 1):
        near = slice(d, d + 1) if count[d] else slice(max(d - 1, 0), d + 2)
        if count[near].any():
            found[d] = total[near].sum() / count[near].sum()
        elif d:
            found[d] = found[d - 1]
    return found


class Acceptance(NamedTuple):
    """[len(JOB_CLASSES)] jobs that came, and those of them that got their place."""

    arrived: IntArray
    accepted: IntArray


def acceptance(workload: Workload, order: IntArray, accepted: BoolArray) -> Acceptance:
    """Counts by class of job, over the arrivals of one seed."""
    rows = workload.job_class()[order]
    count = len(JOB_CLASSES)
    return Acceptance(
        np.bincount(rows, minlength=count).astype(np.int64),
        np.bincount(rows[accepted], minlength=count).astype(np.int64),
    )
