"""What a job could ask less of: its constraints, one at a time, as changes that start it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moorage.scheduling.constraints import ANYWHERE, Constraints, Effect, Toleration, Traits
from moorage.scheduling.ledger import Ledger

EVERYTHING = "every constraint"


@dataclass(frozen=True, slots=True)
class Relax:
    """Do without one constraint. `kind` is label (`value`: the term), region (one more), spot, taint (one more is
    tolerated), or `EVERYTHING`."""

    kind: str
    value: str = ""

    def text(self) -> str:
        match self.kind:
            case "label":
                return f"do without the label {self.value}"
            case "region":
                return f"allow region {self.value} as well"
            case "spot":
                return "allow spot nodes"
            case "taint":
                return f"tolerate the taint {self.value}"
        return "allow every node, whatever its labels, region, taints and spot"

    def to_json(self) -> dict[str, Any]:
        return {"change": "relax", "constraint": self.kind, "value": self.value}


def relaxations(ledger: Ledger, asked: Iterable[Constraints]) -> list[Relax]:
    """Each single change that lets the job use a kind of node that is up and that it may not use now, the constraints
    in the order in which a node is judged. Empty when it has none that matter."""
    there = [ledger.traits[row] for row in np.unique(ledger.trait[ledger.up])]
    found: dict[Relax, None] = {}
    for one in asked:
        kept_off = [traits for traits in there if one.excluded(traits)]
        found |= dict.fromkeys(_of(one, kept_off))
    return list(found)


def _of(asked: Constraints, kept_off: list[Traits]) -> Iterable[Relax]:
    if not kept_off:
        return
    yield from (Relax("label", term.text()) for term in asked.select)
    if asked.regions:
        others = {traits.region for traits in kept_off if traits.region} - set(asked.regions)
        yield from (Relax("region", region) for region in sorted(others))
    if not asked.spot and any(traits.spot for traits in kept_off):
        yield Relax("spot")
    taints = {taint for traits in kept_off for taint in traits.taints if taint.effect is Effect.NO_SCHEDULE}
    hard = {taint.text() for taint in taints if not any(one.matches(taint) for one in asked.tolerations)}
    yield from (Relax("taint", text) for text in sorted(hard))


def relaxed(asked: Constraints, change: Relax, there: Iterable[Traits]) -> Constraints:
    """The constraints after the change; the same where it says nothing to them. `there`: what nodes are."""
    match change.kind:
        case "label":
            return replace(asked, select=tuple(t for t in asked.select if t.text() != change.value))
        case "region":
            return replace(asked, regions=(*asked.regions, change.value)) if asked.regions else asked
        case "spot":
            return replace(asked, spot=True)
        case "taint":
            taints = {t for traits in there for t in traits.taints if t.text() == change.value}
            more = (Toleration(key=t.key, value=t.value, effect=t.effect) for t in sorted(taints, key=repr))
            return replace(asked, tolerations=(*asked.tolerations, *more))
    return replace(ANYWHERE, spot=True, tolerations=(Toleration(),))
