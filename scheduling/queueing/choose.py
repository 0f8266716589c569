"""Who holds GPUs now, from keys and sizes alone: the decision before placement (numba).

The same rules as the planner's, over one pool counted in milli-GPU: for fast studies, for a plain statement of what
preemption may do, and as the reference that the planner's preemption by index is compared with.

- waiting rows are tried in the order (key, rank); who fits starts, who does not is passed (backfill)
- a waiting row may push out running rows whose key is beyond its own by more than `margin` (hysteresis), that are
  not fixed and ran for at least `least_run_ns` since they started
- the worst keys go first, at equal keys the one that loses least; who turns out not to be needed stays, whole gangs
- never a cycle: a row is pushed out only by one that is before it in the order, and the gap is strict
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moorage.scheduling.queueing.jit import compiled

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


@compiled
def choose(
    key: I64,
    rank: I64,
    milli: I64,
    running: Bool,
    fixed: Bool,
    ran_ns: I64,
    lost: I64,
    capacity_milli: int,
    margin: int,
    least_run_ns: int,
) -> Bool:
    """[R] who should hold GPUs. `rank` breaks ties and is distinct; `ran_ns` since the last start; `lost` is what a
    stop would lose, in any unit. Running rows that are false in the answer leave. At most `capacity_milli` are held
    unless the running rows exceed it already: then nobody starts before enough have left.
    """
    holds = running.copy()
    free = capacity_milli
    for row in range(len(key)):
        if running[row]:
            free -= milli[row]
    victims, count = _victims(key, rank, running, fixed, ran_ns, lost, least_run_ns)
    waiting = np.flatnonzero(~running)
    by_rank = waiting[np.argsort(rank[waiting], kind="mergesort")]
    for row in by_rank[np.argsort(key[by_rank], kind="mergesort")]:
        if milli[row] > free:
            got, upto = _collect(key, milli, holds, victims, count, free, key[row] + margin, milli[row])
            if got < milli[row]:
                continue
            free = _let_go(milli, holds, victims, upto, got, milli[row])
        holds[row] = True
        free -= milli[row]
    for at in range(count - 1, -1, -1):  # what was left over after all may hold one that had to go
        row = victims[at]
        if not holds[row] and milli[row] <= free:
            holds[row] = True
            free -= milli[row]
    return holds


@compiled
def _victims(
    key: I64, rank: I64, running: Bool, fixed: Bool, ran_ns: I64, lost: I64, least_run_ns: int
) -> tuple[I64, int]:
    """Running rows that may leave, the first to go first: by key from the worst, least lost, newest rank."""
    rows = np.flatnonzero(running & ~fixed & (ran_ns >= least_run_ns))
    rows = rows[np.argsort(-rank[rows], kind="mergesort")]
    rows = rows[np.argsort(lost[rows], kind="mergesort")]
    return rows[np.argsort(-key[rows], kind="mergesort")], len(rows)


@compiled
def _collect(
    key: I64, milli: I64, holds: Bool, victims: I64, count: int, free: int, beyond: int, need: int
) -> tuple[int, int]:
    """(milli-GPU free if victims[:upto] all left, upto): as few from the front as give `need`."""
    got = free
    for at in range(count):
        if key[victims[at]] <= beyond:
            return got, at
        if holds[victims[at]]:
            got += milli[victims[at]]
            if got >= need:
                return got, at + 1
    return got, count


@compiled
def _let_go(milli: I64, holds: Bool, victims: I64, upto: int, got: int, need: int) -> int:
    """Take the collected from their GPUs, sparing from the best those that are not needed. What is then free."""
    for at in range(upto - 1, -1, -1):
        row = victims[at]
        if not holds[row]:
            continue
        if got - milli[row] >= need:
            got -= milli[row]
        else:
            holds[row] = False
    return got
