"""What a job could ask less of: its constraints on nodes, and on where its tasks are to each other, one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from moorage.scheduling.constraints import ANYWHERE, Constraints, Effect, Toleration, Traits
from moorage.scheduling.ledger import Ledger

EVERYTHING = "every constraint"
"""All that it says of nodes."""
ANYHOW = "every constraint and limit"
"""That, and all that it says of where its tasks are to each other."""


@dataclass(frozen=True, slots=True)
class Relax:
    """Do without one constraint. `kind` is label (`value`: the term), region (one more), spot, taint (one more is
    tolerated), `EVERYTHING` or `ANYHOW`."""

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
            case "every constraint":
                return "allow every node, whatever its labels, region, taints and spot"
        return "allow every node, and its workers anywhere on them, however far apart or close together"

    def to_json(self) -> dict[str, Any]:
        return {"change": "relax", "constraint": self.kind, "value": self.value}


@dataclass(frozen=True, slots=True)
class Wider:
    """Require one domain of `level` where one of `required` was; "" = of none."""

    required: str
    level: str = ""

    def text(self) -> str:
        return f"let it use more than one {self.required}{f' of the same {self.level}' * bool(self.level)}"

    def to_json(self) -> dict[str, Any]:
        return {"change": "wider", "required": self.required, "level": self.level}


@dataclass(frozen=True, slots=True)
class Closer:
    """Allow up to `most` workers where fewer were: on one node, or in one domain of `by`."""

    most: int
    by: str = ""

    def text(self) -> str:
        return f"allow up to {self.most} workers per {self.by or 'node'}"

    def to_json(self) -> dict[str, Any]:
        return {"change": "closer", "most": self.most, "per": self.by or "node"}


Freer: TypeAlias = Relax | Wider | Closer


def wider(asked: Iterable[Constraints], levels: Sequence[str]) -> list[Wider]:
    """Levels that a gang could require in place of its own, the next wider one first; none at all comes last."""
    required = next((one.required for one in asked if one.required), "")
    if not required:
        return []
    above = levels[: levels.index(required)] if required in levels else ()
    return [Wider(required, level) for level in (*reversed(above), "")]


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


def relaxed(asked: Constraints, change: Freer, there: Iterable[Traits]) -> Constraints:
    """The constraints after the change; the same where it says nothing to them. `there`: what nodes are."""
    if isinstance(change, Wider):
        return replace(asked, required=change.level) if asked.required == change.required else asked
    if isinstance(change, Closer):
        return replace(asked, spread=change.most) if asked.spread and asked.spread_by == change.by else asked
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
        case "every constraint":
            return replace(asked, select=(), regions=(), spot=True, tolerations=(Toleration(),))
    return replace(ANYWHERE, spot=True, tolerations=(Toleration(),))
