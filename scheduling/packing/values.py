"""What the room on a node is worth: value tables for the potential rule.

A placement is good when little of what can still be packed is lost by it. Three steps make that a number.

1. *What a size is worth.* The fewest devices that hold the mix are a cutting-stock problem (Gilmore and Gomory, 1961):
   minimise the sum over patterns x_p, such that sum_p x_p * a_p(s) >= demand(s) for each size s, where a pattern is a
   multiset of sizes that fits one device. Its linear programme, solved by generating columns, has a price per size:
   the part of a device that one more task of this size costs. 470 costs half a device, because nothing else fits
   beside two of them.
2. *What a hole is worth.* h_k(f) = the largest price sum of tasks that fit into f milli-GPU (a knapsack), each price
   net of the CPU and memory the task takes, at prices c_k per milli-CPU and m_k per MiB. A size's net price is the
   mean of max(0, price - c_k * cpu - m_k * mib) over the tasks of that size.
3. *What a node is worth.* For any prices, sum of h_k over its holes + c_k * free CPU + m_k * free memory bounds from
   above what can be packed into the node (Lagrangian duality). The potential is the least of these bounds over a few
   price points: a node short of CPU is worth its CPU, a node with plenty is worth its holes.

A model of GPU is worth more the further it is spoken for by tasks that name it (`_asked`), so that what may go
elsewhere does, before the model is short.

A task goes where the potential falls least. A small convex term prefers tight holes among equals, and nodes with
idle devices together are worth a little more than the devices apart.

The idea of steering by the price of what is left is that of bid prices in revenue management (Talluri and van Ryzin,
1998); the value of a hole by what it may hold extends "Beware of Fragmentation" (USENIX ATC'23), which counts what
cannot be used.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from moorage.kernels.placing_scores import WHOLE
from moorage.kernels.placing_values import best_pattern, fillings
from moorage.scheduling.packing.classes import I64, Mix

F64 = npt.NDArray[np.float64]

SCALE = 2**14
"""Units of the integer tables per milli-GPU of value."""
_ROUNDS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """What the tables need to know of the nodes."""

    milli_by_model: tuple[int, ...]
    """milli-GPU of each GPU model row; row 0, no GPU, is 0"""
    width: int
    """devices of the largest node"""
    milli_cpu: int

    @property
    def models(self) -> int:
        return len(self.milli_by_model)

    @property
    def milli_gpu(self) -> int:
        return sum(self.milli_by_model)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The few numbers that are chosen, not computed. Value is in milli-GPU."""

    cpu_points: int = 8
    cpu_most: float = 0.42
    """the highest price of a milli-CPU; the points go from `cpu_least` up to it by a power"""
    cpu_least: float = 0.002
    """so that CPU is never free: nodes with more of it than their GPUs need are left for tasks that need it"""
    spread: float = 2.84
    mib_points: int = 4
    mib_most: float = 0.036
    mib_least: float = 0.00012
    """the price of a MiB at the CPU points"""
    size_early: float = 0.4
    """how far a task's worth goes from its price towards its size: holes that are no exact fit are worth something,
    because some task will come for them; unless CPU runs out first"""
    size_late: float = 0.42
    """the same once the pool is `late`"""
    asked: float = 0.024
    """how much dearer a GPU model is that is all spoken for by tasks that name it, see `_asked`: enough to send
    elsewhere what may go there; more of it leaves larger holes"""
    late: float = 0.75
    """part of the pool's GPUs in use from which on idle devices are no longer saved"""
    scarce: float = 0.99
    """CPU demand per GPU demand, as parts of what there is, from which on CPU counts as scarce"""
    ample: float = 0.012
    """so far below `scarce` it counts as ample"""
    tight: float = 0.06
    """a convex term, as a part of an idle device's value: of two equal holes the tighter is filled"""
    power: float = 2.24
    together: float = 1.4
    """a convex term of idle devices, times their number squared: they are kept together"""


def tables(mix: Mix, pool: Pool, weights: Weights | None = None) -> tuple[I64, I64, I64]:
    """`value`, `price` and `stages` of `kernels.placing_scores.Scoring` for the potential rule.

    Raises ValueError when no task of the mix uses a GPU up to a whole one: then nothing can be valued.
    """
    chosen = weights or Weights()
    single = (mix.milli > 0) & (mix.milli <= WHOLE)
    if not single.any() or pool.milli_gpu <= 0:
        raise ValueError("the mix has no task of one GPU or less, or the pool no GPU")
    cpu, mib = _points(chosen)
    early = chosen.size_early * _ample(mix, pool, chosen)
    value = np.concatenate(
        [_stage(mix, pool, single, cpu, mib, size, chosen) for size in (early, chosen.size_late)]
    )
    value *= np.tile(1 + chosen.asked * _asked(mix, pool), 2)[:, None, None]
    price = np.broadcast_to(np.stack([cpu, mib]), (len(value), 2, len(cpu)))
    stages = np.array([pool.milli_gpu - round(chosen.late * pool.milli_gpu)], np.int64)
    return _whole(value), _whole(price), stages


def fewest_devices(milli: I64) -> float:
    """A lower bound on the devices that hold tasks of `milli` GPU each, however they are placed.

    Tasks of whole devices take their own; the fractions count at the duals of the cutting-stock programme (Gilmore
    and Gomory, 1961), memory and CPU not counted. Raises ValueError for a task of a device and a part of one.
    """
    whole, part = milli[milli >= WHOLE], milli[(milli > 0) & (milli < WHOLE)]
    if (whole % WHOLE).any():
        raise ValueError("a task uses a part of one device, or whole devices")
    sizes, count = np.unique(part, return_counts=True)
    prices = np.array(_size_prices(tuple(sizes.tolist()), tuple(count.tolist()))) if len(sizes) else sizes
    return float(whole.sum() + prices @ count) / WHOLE


def _points(weights: Weights) -> tuple[F64, F64]:
    """The price points: CPU rising at the least price of memory, then memory rising at the least price of CPU."""
    cpu = np.linspace(0, 1, weights.cpu_points) ** weights.spread * weights.cpu_most + weights.cpu_least
    mib = np.linspace(0, 1, weights.mib_points + 1)[1:] ** weights.spread * weights.mib_most
    return (
        np.concatenate([cpu, np.full(len(mib), weights.cpu_least)]),
        np.concatenate([np.full(len(cpu), weights.mib_least), mib]),
    )


def _ample(mix: Mix, pool: Pool, weights: Weights) -> float:
    """1 where GPUs run out long before CPU, 0 where CPU runs out first."""
    cpu = float(mix.cpu @ mix.count) / max(1, pool.milli_cpu)
    gpu = float(mix.milli @ mix.count) / pool.milli_gpu
    return float(np.clip((weights.scarce - cpu / gpu) / weights.ample, 0, 1))


def _stage(
    mix: Mix, pool: Pool, single: npt.NDArray[np.bool_], cpu: F64, mib: F64, size: float, weights: Weights
) -> F64:
    """The value table [M,1001+G+1,K] with worths `size` of the way from price to size."""
    sizes, which = np.unique(mix.milli[single], return_inverse=True)
    demand = np.zeros(len(sizes), np.int64)
    np.add.at(demand, which, mix.count[single])
    priced = np.array(_size_prices(tuple(sizes.tolist()), tuple(demand.tolist())))
    worth = ((1 - size) * priced + size * sizes)[which]
    net = worth[:, None] - mix.cpu[single, None] * cpu - mix.mib[single, None] * mib
    net = np.maximum(net, 0) * mix.count[single, None]
    out = np.zeros((pool.models, WHOLE + 2 + pool.width, len(cpu)))
    tighter = weights.tight * (np.arange(WHOLE + 1) / WHOLE) ** weights.power
    idle = np.arange(pool.width + 1)[:, None]
    together = weights.together * idle**2
    for row in range(pool.models):
        here = (mix.models[single] >> row) & 1 > 0
        if not here.any():
            continue
        count = np.zeros(len(sizes))
        total = np.zeros((len(sizes), len(cpu)))
        np.add.at(count, which[here], mix.count[single][here])
        np.add.at(total, which[here], net[here])
        some = count > 0
        hole = fillings(sizes[some], total[some] / count[some, None], WHOLE)
        hole += tighter[:, None] * hole[WHOLE]
        out[row, 1:WHOLE] = hole[1:WHOLE]
        out[row, WHOLE + 1 :] = idle * hole[WHOLE] + together
    return out


def _asked(mix: Mix, pool: Pool) -> F64:
    """[M] how far each GPU model is spoken for by tasks that name models, less the least of all.

    Were the mix as large as the pool: the part of a model's GPUs that such tasks ask for, each spread over the models
    it names by what there is of them. At most 1: beyond that the model is lost to others anyhow.
    """
    room = np.array(pool.milli_by_model, np.float64)
    held = room > 0
    there = sum(1 << m for m in np.flatnonzero(held).tolist())
    demand = mix.milli * mix.count
    load = np.zeros(len(room))
    for models in np.unique(mix.models[demand > 0]).tolist():
        named = held & np.array([models >> m & 1 > 0 for m in range(len(room))])
        if named.any() and models & there != there:
            share = demand[mix.models == models].sum() / demand.sum()
            load += share * room.sum() * np.where(named, room, 0) / room[named].sum()
    part = np.minimum(load / np.maximum(room, 1), 1)
    return np.where(held, part - part[held].min(), 0.0)


def _whole(table: npt.NDArray[np.float64]) -> I64:
    return np.ascontiguousarray(np.round(table * SCALE).astype(np.int64))


@lru_cache(maxsize=64)
def _size_prices(sizes: tuple[int, ...], demand: tuple[int, ...]) -> tuple[float, ...]:
    """Duals of the cutting-stock programme, as milli-GPU of a device (WHOLE = one device)."""
    from scipy.optimize import linprog  # a heavy import that only this rule needs

    size, need = np.array(sizes, np.int64), np.array(demand, np.float64) / sum(demand)
    patterns = [np.eye(len(size), dtype=np.int64)[i] * (WHOLE // s) for i, s in enumerate(sizes)]
    price = np.zeros(len(size))
    for _ in range(_ROUNDS):
        matrix = -np.stack(patterns, axis=1)
        solved = linprog(np.ones(len(patterns)), A_ub=matrix, b_ub=-need, method="highs")
        price = np.maximum(0.0, -solved.ineqlin.marginals)
        worth, pattern = best_pattern(size, price, WHOLE)
        if worth <= 1 + 1e-9:
            break
        patterns.append(pattern)
    return tuple(float(p) for p in np.round(price * WHOLE, 6))
