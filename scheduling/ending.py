"""Whose end would start a job: the fewest leases found, and when the known ends are enough."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from moorage.scheduling.changes import Ends
from moorage.scheduling.model import UNLIMITED, Lease, Reason, ReasonCode
from moorage.scheduling.raising import BOUND
from moorage.scheduling.trying import Enough, Trial, shortest
from moorage.scheduling.words import models_of

MOST_ENDS = 16
"""A suggestion names no more leases than this."""
_SINGLES = 64
"""In a pool of no more leases, each is tried alone."""


def _ending(leases: Sequence[Lease]) -> Ends:
    oldest = sorted(leases, key=lambda lease: lease.epoch)
    return Ends(tuple(one.lease for one in oldest), tuple(dict.fromkeys(one.job for one in oldest)))


def fewest(trial: Trial) -> Iterator[Ends]:
    """The fewest leases found whose end starts the job: none of them can be left out."""
    leases = trial.others()
    best: list[Lease] | None = None
    try:
        for order in _orders(trial, leases):
            found = _core(trial, order)
            if found and (best is None or len(found) < len(best)):
                best = found
            if best and len(best) == 1:
                break
        if (best is None or len(best) > 1) and len(leases) <= _SINGLES:
            best = next(([one] for one in leases if trial.starts(_ending([one]))), best)
    except Enough:
        raise Enough((_ending(best),) if best else ()) from None
    if best:
        yield _ending(best)


def _orders(trial: Trial, leases: list[Lease]) -> Iterator[list[Lease]]:
    """The leases in several orders: who holds most of what the job may use (and of those the smallest), the oldest
    first, and node by node. Whose end is no use is passed over by `_core`."""
    ledger, asked = trial.snapshot.ledger, models_of(trial.snapshot, trial.row)
    known = [ledger.models.index(m) for m in asked if m in ledger.models]
    usable = ledger.up & (np.isin(ledger.model, known) if asked else np.ones(len(ledger.up), np.bool_))
    need = _lacking(trial.reason)
    on: dict[int, dict[str, Lease]] = {}
    held: dict[str, int] = {}
    for lease in leases:
        for task in lease.tasks:
            node = ledger.node_row[task.node]
            if usable[node]:
                amount = task.milli_gpu if trial.reason.asked else task.milli_cpu
                held[lease.lease] = held.get(lease.lease, 0) + amount
                on.setdefault(node, {})[lease.lease] = lease
    far = [lease for lease in leases if lease.lease not in held]
    near = [lease for lease in leases if lease.lease in held]
    by_use = sorted(near, key=lambda x: (-min(held[x.lease], need), held[x.lease], x.epoch))
    yield [*by_use, *far]
    yield [*near, *far]
    nodes = sorted(on, key=lambda node: (len(on[node]), node))
    yield [*{lease.lease: lease for node in nodes for lease in on[node].values()}.values(), *far]


def _lacking(reason: Reason) -> int:
    """Milli-GPU by which the job is short, as far as the reason says."""
    gap = reason.asked - reason.free if reason.code is ReasonCode.POOL_FULL else reason.asked
    return (reason.held + reason.asked - reason.allowed if reason.code in BOUND else gap) or UNLIMITED


def _core(trial: Trial, order: list[Lease]) -> list[Lease] | None:
    """A set of leases that does, none of which can be left out. The last of the shortest prefix that does is needed;
    it is kept, and the rest searched again for what it still lacks."""
    kept: list[Lease] = []
    rest = order
    while not kept or not trial.starts(_ending(kept)):
        if len(kept) == MOST_ENDS:
            return None
        length = shortest(lambda n, k=kept, r=rest: trial.starts(_ending([*k, *r[:n]])), len(rest))  # type: ignore[misc]
        if length is None:
            return None
        kept, rest = [*kept, rest[length - 1]], rest[: length - 1]
    for one in list(kept):
        fewer = [lease for lease in kept if lease is not one]
        if fewer and trial.starts(_ending(fewer)):
            kept = fewer
    needed = len(kept) == 1 or not any(trial.starts(_ending([x for x in kept if x is not y])) for y in kept)
    return kept if needed else None


def earliest(trial: Trial, ends: Mapping[str, int]) -> int | None:
    """When the job starts if leases end in the order of their known ends. One that should have ended ends now."""
    known = [(max(ends[x.lease], trial.now_ns), x) for x in trial.others() if x.lease in ends]
    times = sorted({at for at, _ in known})

    def does(count: int) -> bool:
        gone = [lease for at, lease in known if at <= times[count - 1]]
        return trial.starts(_ending(gone), times[count - 1])

    length = shortest(does, len(times))
    return None if length is None else times[length - 1]
