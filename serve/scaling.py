"""How many replicas a load wants. Pure: the clock is an argument.

The field's rule: as many replicas as bring the rows in flight per replica down to a target (Ray Serve's
`target_ongoing_requests`; the Kubernetes HPA's `ceil(current * metric / target)` is the same figure). A latency target
may ask for more, never for fewer: latency does not fall in proportion to replicas, so that part grows at most twofold a
time and only holds back a shrink. The largest proposal counts, as in the HPA.

Delays are the HPA's stabilization windows: up goes what every proposal of the last `upscale_delay_s` asked for at
least, down what none of the last `downscale_delay_s` exceeded. A peak shorter than the one starts nothing, a dip
shorter than the other ends nothing.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from moorage.errors import InvalidRequest

_TOLERANCE = 0.1
"""So far over its target latency counts as on target (the HPA's default)."""
_COMFORT = 0.7
"""From this share of the latency target on no replica is taken away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalePolicy:
    """`target_ongoing`: rows in flight that one replica is meant to have, waiting ones too. `target_latency_ms` bounds
    the 95th percentile; None: not looked at."""

    max_replicas: int
    min_replicas: int = 1
    target_ongoing: float = 8.0
    target_latency_ms: float | None = None
    upscale_delay_s: float = 5.0
    downscale_delay_s: float = 60.0

    def __post_init__(self) -> None:
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise _bad("min_replicas", self.min_replicas, f"from 1 to max_replicas, {self.max_replicas}")
        for name in ("target_ongoing", "target_latency_ms"):
            value = getattr(self, name)
            if value is not None and not (0 < value < math.inf):
                raise _bad(name, value, "above 0")
        for name in ("upscale_delay_s", "downscale_delay_s"):
            if not 0 <= getattr(self, name) <= 3600:
                raise _bad(name, getattr(self, name), "from 0 to 3600")


def proposal(policy: ScalePolicy, serving: int, ongoing: float, latency_ms: float | None) -> int:
    """How many replicas this load wants, within the bounds. `ongoing`: rows in flight in all of the `serving`."""
    wanted = math.ceil(ongoing / policy.target_ongoing - 1e-9)
    target = policy.target_latency_ms
    if target is not None and latency_ms is not None and serving:
        ratio = latency_ms / target
        if ratio > 1 + _TOLERANCE:
            wanted = max(wanted, min(2 * serving, max(serving + 1, math.ceil(serving * ratio - 1e-9))))
        elif ratio > _COMFORT:
            wanted = max(wanted, serving)
    return min(max(wanted, policy.min_replicas), policy.max_replicas)


class Wanted:
    """What is wanted over time: `count` changes only as the delays allow.

    Invariant: `min_replicas <= count <= max_replicas`; proposals are kept for the longer delay, oldest first.
    """

    def __init__(self, policy: ScalePolicy) -> None:
        self.policy, self.count = policy, policy.min_replicas
        self._proposals: deque[tuple[float, int]] = deque()
        self._since: float | None = None

    def decide(self, now_s: float, serving: int, ongoing: float, latency_ms: float | None) -> int:
        """`now_s` never goes back. The delays begin with the first call."""
        policy = self.policy
        self._since = now_s if self._since is None else self._since
        self._proposals.append((now_s, proposal(policy, serving, ongoing, latency_ms)))
        while self._proposals[0][0] < now_s - max(policy.upscale_delay_s, policy.downscale_delay_s):
            self._proposals.popleft()
        up = self._over(now_s, policy.upscale_delay_s)
        down = self._over(now_s, policy.downscale_delay_s)
        if up and min(up) > self.count:
            self.count = min(up)
        elif down and max(down) < self.count:
            self.count = max(down)
        return self.count

    def _over(self, now_s: float, delay_s: float) -> list[int]:
        """The proposals of a window; none while it is not full."""
        assert self._since is not None
        if now_s - self._since < delay_s:
            return []
        return [count for at, count in self._proposals if at >= now_s - delay_s]


def _bad(name: str, value: object, why: str) -> InvalidRequest:
    return InvalidRequest(f"{name}={value} is not usable", why=f"it must be {why}", code="scale-policy")
