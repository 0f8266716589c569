"""Labels, taints, regions and the like as text: what a job's metadata asks for, and what a node's labels say.

Selectors are written as Kubernetes' label selectors (`zone in (a, b), disk=ssd, tier!=old, nvme, !draining`), taints as
kubectl writes them (`key=value:NoSchedule`), tolerations alike with each part left out standing for any.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from moorage.configs import units
from moorage.configs.section import Section
from moorage.errors import InvalidRequest
from moorage.scheduling.constraints import (
    Constraints,
    Effect,
    Operator,
    Power,
    Taint,
    Term,
    Toleration,
    Traits,
)

KEYS = (
    "node_selector",
    "tolerations",
    "region",
    "allow_spot",
    "required_topology",
    "preferred_topology",
    "max_per_domain",
)
"""Metadata keys of a job's constraints."""
MAX_TERMS = 32
RAY, OURS = "ray.io/", "moorage.io/"
NO_SCHEDULE, PREFER_NO_SCHEDULE = f"{OURS}no-schedule.", f"{OURS}prefer-no-schedule."
SPOT, REGION, ZONE, WATTS = f"{OURS}spot", f"{OURS}region", f"{OURS}zone", f"{OURS}device-watts"
_MARKET, _RAY_REGION, _RAY_ZONE = (
    "ray.io/market-type",
    "ray.io/availability-region",
    "ray.io/availability-zone",
)
_KEY = re.compile(r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_SET = re.compile(r"(\S+)\s+(in|notin)\s*\(([^()]*)\)")
_EQUAL = re.compile(r"([^\s=!]+)\s*(==|=|!=)\s*([^\s=!]*)")
_SPLIT = re.compile(r",(?![^(]*\))")


def constraints(ours: Mapping[str, Any]) -> Constraints:
    """Of a job's metadata; `InvalidRequest` names the field."""
    most, _, by = str(ours.get("max_per_domain", "")).partition("/")
    levels = {
        field: label_key(field, str(ours[field])) if ours.get(field) else ""
        for field in ("required_topology", "preferred_topology")
    }
    return Constraints(
        select=selector("node_selector", str(ours.get("node_selector", ""))),
        tolerations=tuple(
            toleration("tolerations", part) for part in _parts("tolerations", ours.get("tolerations", ""))
        ),
        regions=tuple(
            label_value("region", part) for part in str(ours.get("region", "")).split("|") if part.strip()
        ),
        spot=units.boolean("allow_spot", ours.get("allow_spot", False)),
        required=levels["required_topology"],
        preferred=levels["preferred_topology"],
        spread=units.whole("max_per_domain", most, 1, units.MAX_WORKERS) if most or by else 0,
        spread_by=label_key("max_per_domain", by) if by and by.strip() != "node" else "",
    )


def selector(field: str, text: str) -> tuple[Term, ...]:
    """The terms of a label selector, in the order of the text."""
    return tuple(_term(field, part) for part in _parts(field, text, _SPLIT))


def _term(field: str, text: str) -> Term:
    if found := _SET.fullmatch(text):
        key, operator, listed = found.groups()
        values = tuple(label_value(field, value) for value in listed.split(",") if value.strip())
        if not values:
            raise units.refuse(field, text, "a set of values is empty")
        return Term(key=label_key(field, key), operator=Operator(operator), values=values)
    if found := _EQUAL.fullmatch(text):
        key, sign, value = found.groups()
        operator = Operator.NOT_IN if sign == "!=" else Operator.IN
        return Term(key=label_key(field, key), operator=operator, values=(label_value(field, value),))
    negated = text.startswith("!")
    key = label_key(field, text[1:].strip() if negated else text)
    return Term(key=key, operator=Operator.ABSENT if negated else Operator.EXISTS)


def toleration(field: str, text: str) -> Toleration:
    """`*`, `key`, `key=value`, each with or without `:NoSchedule` or `:PreferNoSchedule`."""
    body, _, effect = text.partition(":")
    key, equals, value = body.partition("=")
    return Toleration(
        key="" if key.strip() == "*" and not equals else label_key(field, key),
        value=label_value(field, value) if equals else None,
        effect=_effect(field, effect) if effect else None,
    )


def taint(field: str, text: str) -> Taint:
    """`key:effect` or `key=value:effect`."""
    body, colon, effect = text.partition(":")
    if not colon:
        raise units.refuse(field, text, "a taint ends in its effect", "write key=value:NoSchedule")
    key, _, value = body.partition("=")
    return Taint(key=label_key(field, key), value=label_value(field, value), effect=_effect(field, effect))


def label_key(field: str, text: str) -> str:
    key = text.strip()
    if not _KEY.fullmatch(key):
        raise units.refuse(
            field, text, "a label's key has letters, digits, '-', '_', '.', and perhaps a prefix/"
        )
    return key


def label_value(field: str, text: str) -> str:
    value = text.strip()
    if not _VALUE.fullmatch(value):
        raise units.refuse(field, text, "a label's value has at most 63 letters, digits, '-', '_', '.'")
    return value


def _effect(field: str, text: str) -> Effect:
    try:
        return Effect(text.strip())
    except ValueError:
        raise units.refuse(field, text, f"an effect is {' or '.join(Effect)}") from None


def _parts(field: str, text: Any, split: re.Pattern[str] | None = None) -> list[str]:
    parts = split.split(str(text)) if split else str(text).split(",")
    if len(parts) > MAX_TERMS:
        raise units.refuse(field, text, f"it has more than {MAX_TERMS} parts")
    return [part.strip() for part in parts if part.strip()]


def _taints(value: Any) -> Any:
    """Text to taints; ValueError, which pydantic wants, instead of ours."""
    try:
        return tuple(t if isinstance(t, Taint) else taint("taints", str(t)) for t in value)
    except InvalidRequest as error:
        raise ValueError(f"{error}: {error.why}") from None


def _labels(value: Any) -> Any:
    try:
        return {label_key("labels", str(k)): label_value("labels", str(v)) for k, v in dict(value).items()}
    except (TypeError, InvalidRequest) as error:
        raise ValueError(str(error)) from None


class NodeRule(Section):
    """What an operator says of the nodes whose name matches `match` (`*`, `?` and `[...]` as a shell does)."""

    where = "a rule of nodes"

    match: str = Field(default="*", min_length=1, max_length=256)
    labels: Annotated[dict[str, str], BeforeValidator(_labels)] = Field(default={})
    taints: Annotated[tuple[Taint, ...], BeforeValidator(_taints)] = ()
    region: str = Field(default="", max_length=63)
    spot: bool | None = None
    device_watts: int = Field(default=0, ge=0, le=100_000)


def _whole_by_name(value: Any) -> Any:
    """{name: W} as sorted pairs; `gpus` and `*` stand for those not named."""
    try:
        named = {str(k): units.whole(str(k), v, 0, 10**9) for k, v in dict(value).items()}
    except (TypeError, InvalidRequest) as error:
        raise ValueError(str(error)) from None
    return tuple(sorted(("*" if name == "gpus" else name, watts) for name, watts in named.items()))


Watts = Annotated[tuple[tuple[str, int], ...], BeforeValidator(_whole_by_name)]


class PowerSettings(Section):
    """Rated power of devices, and what the devices in use under one domain may be rated for together."""

    where = "power"

    level: str = Field(default="rack", min_length=1, max_length=253)
    watts: Watts = ()
    """W of one device by GPU model; `gpus` for models not named."""
    caps: Watts = ()
    """W by domain of the level; `*` for those not named."""

    def policy(self) -> Power:
        return Power(level=self.level, watts=self.watts, caps=self.caps)


def traits(name: str, labels: Mapping[str, str], rules: Sequence[NodeRule] = ()) -> Traits:
    """What a node is: by the labels that Ray reports of it, then by each rule that matches its name, in order.

    Labels under `ray.io/` and `moorage.io/` are not the pool's own and cannot be selected by; some of them say what the
    node is. The zone is the label `zone`.
    """
    own = {k: v for k, v in labels.items() if not k.startswith((RAY, OURS))}
    taints = [*_label_taints(labels)]
    region = labels.get(REGION) or labels.get(_RAY_REGION) or own.get("region", "")
    if zone := labels.get(ZONE) or labels.get(_RAY_ZONE):
        own.setdefault("zone", zone)
    spot = labels.get(SPOT, "").lower() == "true" or labels.get(_MARKET) == "spot"
    watts = int(labels[WATTS]) if labels.get(WATTS, "").isdecimal() else 0
    for rule in rules:
        if not fnmatch.fnmatchcase(name, rule.match):
            continue
        own |= rule.labels
        taints += rule.taints
        region = rule.region or region
        spot = spot if rule.spot is None else rule.spot
        watts = rule.device_watts or watts
    return Traits.of(
        own, taints=tuple(dict.fromkeys(taints)), region=region, spot=spot, device_watts=min(watts, 100_000)
    )


def _label_taints(labels: Mapping[str, str]) -> Iterable[Taint]:
    for label, value in sorted(labels.items()):
        for prefix, effect in (
            (NO_SCHEDULE, Effect.NO_SCHEDULE),
            (PREFER_NO_SCHEDULE, Effect.PREFER_NO_SCHEDULE),
        ):
            if label.startswith(prefix) and len(label) > len(prefix):
                yield Taint(key=label.removeprefix(prefix), value=value, effect=effect)
