"""Where a job may run: what a node is (labels, taints, region, spot, power) and what a job wants of it.

Terms and effects are those of Kubernetes (Assigning Pods to Nodes; Taints and Tolerations): a job may go to a node when
every term of its selector holds of the node's labels and when it tolerates each `NoSchedule` taint. A node with an
untolerated `PreferNoSchedule` taint is used when no other will do. Two rules are ours: a job with regions runs in these
only, and a spot node (capacity that its provider may take back) is only for jobs that allow spot.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Operator(StrEnum):
    """How a term reads a label."""

    IN = "in"
    NOT_IN = "notin"
    """Also holds of a node without the label."""
    EXISTS = "exists"
    ABSENT = "absent"


class Effect(StrEnum):
    """What a taint does to a job that does not tolerate it."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One requirement on one label. `values` for `IN` and `NOT_IN`; one value is equality."""

    key: str
    operator: Operator = Operator.IN
    values: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        listed = self.operator in (Operator.IN, Operator.NOT_IN)
        if listed != bool(self.values):
            raise ValueError(f"label {self.key} {self.operator}: {'no' if listed else 'takes no'} values")

    def holds(self, labels: dict[str, str]) -> bool:
        match self.operator:
            case Operator.IN:
                return labels.get(self.key) in self.values
            case Operator.NOT_IN:
                return labels.get(self.key) not in self.values
            case Operator.EXISTS:
                return self.key in labels
            case Operator.ABSENT:
                return self.key not in labels

    def text(self) -> str:
        match self.operator:
            case Operator.IN | Operator.NOT_IN:
                one, sign = len(self.values) == 1, "=" if self.operator is Operator.IN else "!="
                listed = f" {self.operator} ({', '.join(self.values)})"
                return f"{self.key}{sign}{self.values[0]}" if one else f"{self.key}{listed}"
            case Operator.EXISTS:
                return self.key
            case Operator.ABSENT:
                return f"!{self.key}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Taint:
    key: str
    value: str = ""
    effect: Effect = Effect.NO_SCHEDULE

    def text(self) -> str:
        return f"{self.key}{'=' if self.value else ''}{self.value}:{self.effect}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Toleration:
    """Matches taints of this key (`""`: of any), value (None: any) and effect (None: both)."""

    key: str = ""
    value: str | None = None
    effect: Effect | None = None

    def matches(self, taint: Taint) -> bool:
        if self.key and self.key != taint.key:
            return False
        if self.value is not None and self.value != taint.value:
            return False
        return self.effect is None or self.effect is taint.effect


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What a node is, beside its figures. A lease does not depend on it: it may change while leases are held."""

    labels: tuple[tuple[str, str], ...] = ()
    """Sorted by key, each key once (`Traits.of` sees to it)."""
    taints: tuple[Taint, ...] = ()
    region: str = ""
    spot: bool = False
    device_watts: int = 0
    """Rated power of one device; 0 = by its GPU model, as the policy says."""

    @classmethod
    def of(cls, labels: dict[str, str], **more: object) -> Traits:
        return cls(labels=tuple(sorted(labels.items())), **more)  # type: ignore[arg-type]

    def value(self, key: str) -> str | None:
        """A label's value; the region is the label `region` where no other is set."""
        for name, value in self.labels:
            if name == key:
                return value
        return self.region or None if key == "region" else None


NO_TRAITS = Traits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """What a job wants of the nodes that its tasks run on."""

    select: tuple[Term, ...] = ()
    """All must hold."""
    tolerations: tuple[Toleration, ...] = ()
    regions: tuple[str, ...] = ()
    """Empty = any."""
    spot: bool = False
    """May run on spot nodes too."""
    required: str = ""
    """A level of the topology (a label's key): the whole gang within one domain of it."""
    preferred: str = ""
    """A level of the topology: the gang in as few domains of it as there is room for it in."""
    spread: int = 0
    """At most so many workers of the gang on one node, or in one domain of `spread_by`; 0 = any number."""
    spread_by: str = ""

    def __post_init__(self) -> None:
        if self.spread < 0 or (self.spread_by and not self.spread):
            raise ValueError(f"spread must say at most how many, got {self.spread} by {self.spread_by!r}")

    @property
    def near(self) -> bool:
        """Whether it says where its tasks are to each other."""
        return bool(self.required or self.preferred or self.spread)

    def excluded(self, traits: Traits) -> str:
        """Which constraint keeps the job off such a node, as `words` names them; "" when none does."""
        labels = dict(traits.labels)
        if traits.region:
            labels.setdefault("region", traits.region)
        for term in self.select:
            if not term.holds(labels):
                return f"label {term.text()}"
        if self.regions and traits.region not in self.regions:
            return f"region {' or '.join(self.regions)}"
        if traits.spot and not self.spot:
            return "spot"
        for taint in traits.taints:
            if taint.effect is Effect.NO_SCHEDULE and not self._tolerated(taint):
                return f"taint {taint.text()}"
        return ""

    def shuns(self, traits: Traits) -> bool:
        """Whether another node is to be preferred: an untolerated `PreferNoSchedule` taint."""
        return any(
            taint.effect is Effect.PREFER_NO_SCHEDULE and not self._tolerated(taint)
            for taint in traits.taints
        )

    def _tolerated(self, taint: Taint) -> bool:
        return any(toleration.matches(taint) for toleration in self.tolerations)


ANYWHERE = Constraints()


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """Power caps over the domains of one level: what the devices in use there are rated for may not exceed them."""

    level: str = "rack"
    watts: tuple[tuple[str, int], ...] = ()
    """W of one device by GPU model, `*` for models not named; a node's own figure goes before it."""
    caps: tuple[tuple[str, int], ...] = ()
    """W by domain, `*` for those not named. Empty = no caps."""


NO_POWER = Power()
