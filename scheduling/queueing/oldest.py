"""The slice kept for who was queued longest, so that waiting is bounded whatever the index says.

A job that was queued for `bound_ns` in all, over all its stints, is overdue: it is served before all others, longest
queued first, and keeps its place until it ends, while overdue jobs together hold no more than `slice_milli`. So every
job's time in the queue is at most `bound_ns` plus what the slice needs for the overdue jobs before it
(`longest_wait_ns`); with the slice idle, room is made at once.
What an index postpones for good (a long job) is thereby also kept from being run at the very end, alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

FIRST = -(2**62)
"""Keys of overdue jobs begin here: below every key of an index."""


def overdue(
    queued_ns: I64, milli: I64, before: Bool, running: Bool, rank: I64, bound_ns: int, slice_milli: int
) -> Bool:
    """[R] who is in the slice now.

    `queued_ns`: queued so far, the present stint included. `before`: in the slice already; those stay until they end.
    Only waiting rows enter: a job that runs needs no help. The longest queued enters first (then the lowest `rank`);
    one that does not fit in what is left of the slice holds back those behind it, or small jobs would starve
    it. A gang larger than the slice enters when the slice is empty.
    """
    inside = before.copy()
    held = int(milli[before].sum())
    waits = np.flatnonzero(~before & ~running & (queued_ns >= bound_ns))
    for row in waits[np.lexsort((rank[waits], -queued_ns[waits]))].tolist():
        if held and held + int(milli[row]) > slice_milli:
            break
        inside[row] = True
        held += int(milli[row])
    return inside


def keys(key: I64, inside: Bool, queued_ns: I64) -> I64:
    """[R] the index's keys with the slice's jobs before all, the longest queued first."""
    return np.where(inside, FIRST - np.minimum(queued_ns, 2**61), key)


def longest_wait_ns(
    bound_ns: int, overdue_work: int, slice_milli: int, largest_milli: int, longest_ns: int
) -> int:
    """A bound on the time queued: `bound_ns`, and then a list schedule of the overdue work before the job.

    `overdue_work`: milli-GPU times ns that jobs overdue before it still need. Gangs leave holes below the
    largest gang's size, so the slice works at `slice_milli - largest_milli` at least (Graham, 1966); one longest job
    may be ahead of a gang as large as the slice.
    """
    usable = max(slice_milli - largest_milli, 1)
    return bound_ns + -(-overdue_work // usable) + longest_ns
