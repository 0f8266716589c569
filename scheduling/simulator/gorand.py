"""Go's math/rand, number for number: FGD's published runs draw their arrivals from it.

An additive lagged Fibonacci generator (Mitchell and Reeds): y[k] = y[k-607] + y[k-273] mod 2^64. Go starts from a table
that is the state after 7.8e12 steps; here that state is computed, by x^(7.8e12) modulo the recurrence's polynomial.
No randomness of its own: the seed is an argument.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from moorage.scheduling.model import IntArray

_U64 = npt.NDArray[np.uint64]
_LONG, _SHORT = 607, 273
_STEPS = 7_800_000_000_000
_PRIME = 2**31 - 1
_AT = (334 - np.arange(-606, 1)) % _LONG
"""Where Go's array keeps the value of step -606..0 (of any 607 steps that end at a multiple of 607)."""


class GoRand:
    """`rand.New(rand.NewSource(seed))`."""

    def __init__(self, seed: int) -> None:
        filled = _fill(seed, (40, 20, 0)) ^ _cooked()
        self._last: _U64 = filled[_AT]
        """The last 607 numbers, oldest first."""
        self._ready: list[int] = []
        """Drawn ahead, next one last."""

    def int63(self) -> int:
        if not self._ready:
            # the next 273 numbers depend only on what is there already
            fresh = self._last[:_SHORT] + self._last[_LONG - _SHORT :]
            self._last = np.concatenate([self._last[_SHORT:], fresh])
            self._ready = (fresh & np.uint64(2**63 - 1))[::-1].tolist()
        return self._ready.pop()

    def intn(self, n: int) -> int:
        """0..n-1, for 0 < n < 2^31."""
        if not n & (n - 1):
            return (self.int63() >> 32) & (n - 1)
        most = _PRIME - 2**31 % n
        while (drawn := self.int63() >> 32) > most:
            pass
        return drawn % n

    def shuffle(self, n: int) -> IntArray:
        """0..n-1 in the order `rand.Shuffle` leaves them. Its draw is Lemire's (2018), not `intn`'s."""
        order = list(range(n))
        for i in range(n - 1, 0, -1):
            bound = i + 1
            product = (self.int63() >> 31) * bound
            if product % 2**32 < bound:
                least = (2**32 - bound) % bound
                while product % 2**32 < least:
                    product = (self.int63() >> 31) * bound
            j = product >> 32
            order[i], order[j] = order[j], order[i]
        return np.array(order, np.int64)

    def perm(self, n: int) -> IntArray:
        """`rand.Perm(n)`."""
        order = [0] * n
        for i in range(n):
            j = self.intn(i + 1)
            order[i] = order[j]
            order[j] = i
        return np.array(order, np.int64)


def _fill(seed: int, shifts: tuple[int, int, int]) -> _U64:
    """[607] Go's array as a seed fills it: three numbers of a Lehmer generator each, after 20 thrown away."""
    x = seed % _PRIME or 89482311
    drawn = []
    for _ in range(20 + 3 * _LONG):
        x = 48271 * x % _PRIME
        drawn.append(x)
    parts = np.array(drawn[20:], np.uint64).reshape(_LONG, 3)
    filled: _U64 = np.bitwise_xor.reduce(parts << np.array(shifts, np.uint64), axis=1)
    return filled


@lru_cache(maxsize=1)
def _cooked() -> _U64:
    """[607] Go's table `rngCooked`. Over y's window, step t - 606 is x^t; so N steps on, it is x^(N + t) mod P."""
    begun = _fill(1, (20, 10, 0))[_AT]
    power = np.array([1], np.uint64)
    for bit in bin(_STEPS)[2:]:
        power = _reduced(np.convolve(power, power))
        if bit == "1":
            power = _reduced(np.concatenate([np.zeros(1, np.uint64), power]))
    longer = np.concatenate([begun, np.zeros(_LONG, np.uint64)])
    for k in range(_LONG, 2 * _LONG):
        longer[k : k + 1] = longer[k - _LONG : k - _LONG + 1] + longer[k - _SHORT : k - _SHORT + 1]
    window = np.convolve(longer[: 2 * _LONG - 1], power[::-1], "valid")
    table = np.zeros(_LONG, np.uint64)
    table[(334 - (_STEPS + np.arange(-606, 1))) % _LONG] = window
    return table


def _reduced(poly: _U64) -> _U64:
    """[607] the remainder modulo P = x^607 - x^334 - 1, coefficients mod 2^64, lowest power first."""
    while len(poly) > _LONG:
        low, high = poly[:_LONG], poly[_LONG:]
        poly = np.zeros(max(_LONG, len(high) + 334), np.uint64)
        poly[:_LONG] += low
        poly[: len(high)] += high
        poly[334 : 334 + len(high)] += high
    return np.concatenate([poly, np.zeros(_LONG - len(poly), np.uint64)])
