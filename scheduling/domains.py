"""The limits beyond a single node as columns: topology domains, spread, and power caps. See `kernels.pool.Limits`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moorage.kernels import pool
from moorage.kernels.pool import Limits
from moorage.scheduling.constraints import Constraints, Power, Term, Traits
from moorage.scheduling.ledger import Ledger
from moorage.scheduling.model import UNLIMITED, IntArray, Policy
from moorage.scheduling.queue import TaskClass


def keys_of(classes: Sequence[TaskClass], policy: Policy) -> tuple[str, ...]:
    """The keys that part nodes into domains for these classes."""
    wanted = [policy.power.level] if policy.power.caps else []
    for c in classes:
        wanted += [c.constraints.required, c.constraints.preferred, c.constraints.spread_by]
    return tuple(dict.fromkeys(key for key in wanted if key))


def domain_of(traits: Traits, key: str, levels: Sequence[str]) -> str | None:
    """The name of a node's domain: its value of the key, behind those of the levels above it (`eu/z1/r7`); None = it
    has no such label. Of two racks `r7` in two zones each is then itself."""
    own = traits.value(key)
    if own is None:
        return None
    above = levels[: levels.index(key)] if key in levels else ()
    return "/".join([*(traits.value(level) or "" for level in above), own])


def domain_names(ledger: Ledger, key: str, levels: Sequence[str]) -> tuple[list[str], IntArray]:
    """The names of a key's domains, sorted, and [N] each node's, -1 = none."""
    found = [domain_of(traits, key, levels) for traits in ledger.traits]
    names = sorted({name for name in found if name is not None})
    rank = {name: d for d, name in enumerate(names)}
    of_trait = np.array([-1 if name is None else rank[name] for name in found], np.int64)
    return names, of_trait[ledger.trait]


def staying(wanted: Constraints, traits: Traits, levels: Sequence[str]) -> Constraints:
    """The constraints of what a running gang grows by: the domain that it required is the one it is in (of a node with
    these traits)."""
    key = wanted.required
    if not key:
        return wanted
    path = (*levels[: levels.index(key)], key) if key in levels else (key,)
    found = ((level, traits.value(level)) for level in path)
    terms = tuple(Term(key=level, values=(value,)) for level, value in found if value is not None)
    return replace(wanted, select=(*wanted.select, *terms))


def limits_of(ledger: Ledger, policy: Policy, keys: Sequence[str], rows: int = 0) -> Limits:
    """The tables of these keys, with rules for `rows` classes that say nothing yet."""
    count = len(ledger.up)
    named = [domain_names(ledger, key, policy.topology) for key in keys]
    most = max((len(names) for names, _ in named), default=0)
    domain = np.array([of for _, of in named], np.int64).reshape(len(keys), count)
    member = np.empty((len(keys) + 1, count), np.int64)
    start = np.full((len(keys), most + 1), count, np.int64)
    member[-1] = np.arange(count)
    for k in range(len(keys)):
        member[k] = np.argsort(domain[k], kind="stable")
        start[k] = np.searchsorted(domain[k][member[k]], np.arange(most + 1))
    power = policy.power
    power_by = keys.index(power.level) if power.caps else -1
    rules = np.full((rows, pool.RULES), -1, np.int64)
    rules[:, [pool.SPREAD, pool.ANY]] = 0
    return Limits(
        on=power_by >= 0,
        rules=rules,
        domain=domain,
        member=member,
        start=start,
        domains=np.array([len(names) for names, _ in named], np.int64),
        power_by=power_by,
        watts=watts_of(ledger, power),
        cap=caps_of(power, named[power_by][0] if power_by >= 0 else []),
        tally=np.zeros(max(count, most), np.int64),
        hold=np.zeros((2, most), np.int64),
        tried=np.zeros((2, most), np.bool_),
    )


def bound(limits: Limits, rows: IntArray) -> npt.NDArray[np.bool_]:
    """Which of these classes are bound by anything beyond their tasks' own nodes."""
    if not limits.on:
        return np.zeros(len(rows), np.bool_)
    return np.asarray((limits.rules[rows, pool.ANY] > 0) | (limits.power_by >= 0), np.bool_)


def keep_in_place(limits: Limits, may: npt.NDArray[Any], first: IntArray, klass: IntArray) -> None:
    """Let nobody move who is bound: `may[P]` becomes 0 of pieces with such a task, which are `klass[first[p]..]`."""
    if limits.on and len(klass):
        piece = np.repeat(np.arange(len(first) - 1), np.diff(first))
        may[np.bincount(piece, weights=bound(limits, klass), minlength=len(first) - 1) > 0] = 0


def watts_of(ledger: Ledger, power: Power) -> IntArray:
    """[N] rated power of one device: the node's own, else its GPU model's; 0 where neither is known."""
    by_model = dict(power.watts)
    models = np.array([by_model.get(model, by_model.get("*", 0)) for model in ledger.models], np.int64)
    own = np.array([traits.device_watts for traits in ledger.traits], np.int64)[ledger.trait]
    return np.where(own > 0, own, models[ledger.model]).astype(np.int64)


def caps_of(power: Power, names: Sequence[str]) -> IntArray:
    """[D] each domain's cap."""
    caps = dict(power.caps)
    return np.array([caps.get(name, caps.get("*", UNLIMITED)) for name in names], np.int64)


def rules_of(c: TaskClass, keys: Sequence[str], at: Mapping[TaskClass, int]) -> IntArray:
    """One row of `Limits.rules`. `at`: the rows of the classes."""
    wanted = c.constraints
    rule = np.full(pool.RULES, -1, np.int64)
    rule[pool.SPREAD] = wanted.spread
    for column, key in (
        (pool.REQUIRED, wanted.required),
        (pool.PREFERRED, wanted.preferred),
        (pool.SPREAD_BY, wanted.spread_by),
    ):
        if key:
            rule[column] = keys.index(key)
    rule[pool.FIRST] = at.get(replace(c, strict=True), -1) if not c.strict else -1
    bound = wanted.spread > 0 or max(rule[pool.REQUIRED], rule[pool.PREFERRED], rule[pool.FIRST]) >= 0
    rule[pool.ANY] = bound
    return rule
