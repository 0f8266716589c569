"""How fast one caller may ask: a token bucket per principal, so that a loop gone wild in one team slows only that team.

Source: the token bucket of RFC 2697 (single rate); 429 and Retry-After are those of RFC 6585.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from moorage.errors import MoorageError

MOST_CALLERS = 10_000
"""Buckets that are remembered; the fullest are let go first, which changes nothing for them."""


class RateLimited(MoorageError):
    """This caller asks too fast."""

    code = "rate-limited"
    http_status = 429


@dataclass(slots=True)
class RateLimit:
    """`per_s` requests per second for each caller, `burst` at once after a pause. 0 per second: no limit.

    `buckets`: caller -> (tokens left, when that was counted, in seconds of a monotonic clock).
    """

    per_s: float
    burst: float
    buckets: dict[str, tuple[float, float]] = field(default_factory=dict)

    def take(self, caller: str, now_s: float) -> None:
        """Take one token of `caller`; raises RateLimited with the whole seconds until there is one."""
        if self.per_s <= 0:
            return
        left, then = self.buckets.get(caller, (self.burst, now_s))
        left = min(self.burst, left + max(0.0, now_s - then) * self.per_s)
        if left < 1:
            self.buckets[caller] = (left, now_s)
            wait_s = math.ceil((1 - left) / self.per_s)
            raise RateLimited(
                f"{caller} asks more than {self.per_s:g} times a second",
                todo=f"ask again in {wait_s} s; follow logs and events instead of asking again and again",
                retry_after_s=wait_s,
            )
        if caller not in self.buckets and len(self.buckets) >= MOST_CALLERS:
            del self.buckets[max(self.buckets, key=lambda one: self.buckets[one][0])]
        self.buckets[caller] = (left - 1, now_s)
