"""What the endpoint proxy remembers for a moment, so that a request to an endpoint costs no database and no thread.

Only for `/endpoints/`: every other route asks the control plane each time. What is remembered is good for
`Settings.endpoint_cache_s` (2 s): a revoked token, or that of a job that ended, reaches endpoints no longer than
that. Refusals are not remembered: a new token works at once, and a guessed one costs what it costs elsewhere.
Used on the server's loop only, so there are no locks.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
AT_MOST = 4096
ADDRESS_S = 1.0


class Remembered(Generic[K, V]):
    """Values by key for `keep_s` seconds after they were put, `AT_MOST` of them. `keep_s` 0 remembers nothing."""

    def __init__(self, keep_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._keep_s, self._clock = keep_s, clock
        self._found: dict[K, tuple[float, V]] = {}

    def get(self, key: K) -> V | None:
        entry = self._found.get(key)
        if entry is None:
            return None
        if self._clock() >= entry[0]:
            del self._found[key]
            return None
        return entry[1]

    def put(self, key: K, value: V, asked_at: float | None = None) -> None:
        """`asked_at` (this clock): when the question was asked, if its answer took a while."""
        began = self._clock() if asked_at is None else asked_at
        if self._keep_s <= 0:
            return
        if len(self._found) >= AT_MOST:
            now = self._clock()
            self._found = {k: entry for k, entry in self._found.items() if now < entry[0]}
            if len(self._found) >= AT_MOST:
                self._found.clear()
        self._found[key] = (began + self._keep_s, value)

    def clear(self) -> None:
        self._found.clear()


def mark(token: str) -> bytes:
    """What stands for a token as a key: tokens themselves are not kept."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
