"""Which limit beyond a single node keeps a gang waiting: found by planning it once more without one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from moorage.kernels.placing import fresh_scores
from moorage.kernels.placing_scores import Nodes
from moorage.kernels.pool import ANY, REQUIRED, SPREAD, Pool
from moorage.scheduling.constraints import Constraints
from moorage.scheduling.domains import caps_of, domain_names, watts_of
from moorage.scheduling.ledger import Ledger
from moorage.scheduling.model import WHOLE, IntArray, Policy, ReasonCode

_SHOWN = 3


def set_aside(pool: Pool) -> Pool:
    """A copy of what is free now, for questions asked later."""
    nodes = Nodes(*(column.copy() for column in pool.nodes))
    limits = pool.limits._replace(
        tally=pool.limits.tally.copy(), hold=pool.limits.hold.copy(), tried=pool.limits.tried.copy()
    )
    return pool._replace(nodes=nodes, scores=fresh_scores(nodes, pool.classes, pool.scoring), limits=limits)


def binds(pool: Pool, c: int, fits: Callable[[Pool], bool]) -> ReasonCode | None:
    """The limit without which a gang of class `c` would fit; None when there is none, or more than that is lacking."""
    found = dict(_without(pool, c))
    for code, other in found.items():
        if fits(other):
            return code
    if len(found) > 1 and fits(pool._replace(limits=pool.limits._replace(on=False))):
        return next(iter(found))
    return None


def _without(pool: Pool, c: int) -> Iterator[tuple[ReasonCode, Pool]]:
    """The pool without each limit that the class has."""
    limits = pool.limits
    if not limits.on:
        return
    if limits.power_by >= 0:
        yield ReasonCode.POWER_CAP, pool._replace(limits=limits._replace(power_by=-1))
    for column, none, code in ((REQUIRED, -1, ReasonCode.TOPOLOGY), (SPREAD, 0, ReasonCode.SPREAD)):
        if limits.rules[c, ANY] > 0 and limits.rules[c, column] > none:
            rules = limits.rules.copy()
            rules[:, column] = none
            yield code, pool._replace(limits=limits._replace(rules=rules))


def describe(
    code: ReasonCode | None, wanted: Constraints, ledger: Ledger, policy: Policy, nodes: Nodes
) -> str:
    """What a limit says, in words."""
    match code:
        case ReasonCode.TOPOLOGY:
            return wanted.required
        case ReasonCode.SPREAD:
            many = f"{wanted.spread} worker{'s' * (wanted.spread != 1)}"
            return f"{many} per {wanted.spread_by or 'node'}"
        case ReasonCode.POWER_CAP:
            return ", ".join(_capped(ledger, policy, nodes))
        case _:
            return ""


def drawn(ledger: Ledger, policy: Policy, milli_free: IntArray) -> dict[str, tuple[int, int]]:
    """By domain of the power level: W that the devices in use are rated for, and the cap."""
    names, of = domain_names(ledger, policy.power.level, policy.topology)
    has = np.arange(milli_free.shape[1])[None, :] < ledger.devices[:, None]
    watts = watts_of(ledger, policy.power) * ((milli_free < WHOLE) & has).sum(axis=1)
    in_use = np.bincount(of[of >= 0], weights=watts[of >= 0], minlength=len(names))
    caps = caps_of(policy.power, names)
    return {name: (int(in_use[d]), int(caps[d])) for d, name in enumerate(names)}


def _capped(ledger: Ledger, policy: Policy, nodes: Nodes) -> Iterator[str]:
    """The domains whose cap is nearest, by what they draw of it."""
    by_left = sorted(drawn(ledger, policy, nodes.milli_free).items(), key=lambda x: (x[1][1] - x[1][0], x[0]))
    for name, (watts, cap) in by_left[:_SHOWN]:
        yield f"{policy.power.level} {name} ({watts} of {cap} W)"
