"""`guard` in pool.yaml: what is done about GPUs that are held without a lease or beyond it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from moorage.configs.section import Section
from moorage.scheduling.guard import Allow, GuardPolicy, Kind, Mode

SECOND_NS = 10**9
ModeName = Literal["off", "warn", "stop"]


def _word(value: Any) -> Any:
    """YAML reads a bare `off` as false."""
    return "off" if value is False else value


def _short(value: Any) -> Any:
    """`warn` alone is `{mode: warn}`."""
    value = _word(value)
    return {"mode": value} if isinstance(value, str) else value


def _patterns(value: Any) -> Any:
    """A list, as YAML has it."""
    return tuple(value) if isinstance(value, list) else value


Patterns = Annotated[tuple[str, ...], BeforeValidator(_patterns)]


class KindSettings(Section):
    """One kind of finding; what is left out is as for all kinds."""

    where = "the guard's settings"

    mode: Annotated[ModeName | None, BeforeValidator(_word)] = None
    grace_s: int | None = Field(default=None, ge=0, le=86_400)


class AllowSettings(Section):
    """Never judged: shell patterns for Ray's namespaces and for names of actors, groups and Serve applications; ids of
    jobs (ours or Ray's)."""

    where = "the guard's settings"

    namespaces: Patterns = ()
    names: Patterns = ()
    jobs: Patterns = ()


KindName = Literal[
    "no-lease",
    "beyond-lease",
    "other-node",
    "other-device",
    "leaked-placement-group",
    "dead-owner",
    "unbooked-device",
    "orphan-process",
    "foreign-process",
]


class GuardSettings(Section):
    """`mode` left out: `stop` on a pool whose Ray cluster `moorage up` started, `warn` beside one that it joined."""

    where = "the guard's settings"

    mode: Annotated[ModeName | None, BeforeValidator(_word)] = None
    grace_s: int = Field(default=30, ge=0, le=86_400)
    """From the warning to the stop."""
    confirm_s: int = Field(default=5, ge=0, le=3600)
    """How long a thing must have been seen before it counts: what ends with its job takes a moment."""
    interval_ms: int = Field(default=2000, ge=100, le=600_000)
    """Pause between two looks."""
    devices: bool | None = None
    """Whether the nodes are asked what runs on their devices (NVML). Left out: yes beside a cluster that was joined, no
    on a pool whose GPUs are logical ones."""
    kinds: dict[KindName, Annotated[KindSettings, BeforeValidator(_short)]] = Field(default={})
    allow: AllowSettings = AllowSettings()

    def policy(self, *, joined: bool = False) -> GuardPolicy:
        """`joined`: the Ray cluster is somebody else's."""
        kinds = {Kind(name): one for name, one in self.kinds.items()}
        return GuardPolicy(
            mode=Mode(self.mode or ("warn" if joined else "stop")),
            grace_ns=self.grace_s * SECOND_NS,
            confirm_ns=self.confirm_s * SECOND_NS,
            interval_ns=self.interval_ms * 10**6,
            devices=joined if self.devices is None else self.devices,
            modes={kind: Mode(one.mode) for kind, one in kinds.items() if one.mode is not None},
            graces_ns={
                kind: one.grace_s * SECOND_NS for kind, one in kinds.items() if one.grace_s is not None
            },
            allow=Allow(
                namespaces=self.allow.namespaces,
                names=self.allow.names,
                jobs=self.allow.jobs,
            ),
        )


Guard = Annotated[GuardSettings, BeforeValidator(_short)]
