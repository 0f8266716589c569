"""Amounts of GPUs: their unit, the amount that bounds nothing, and how people write them."""

from __future__ import annotations

WHOLE = 1000
"""Milli-GPU of one whole device."""

UNLIMITED = 2**62
"""No bound. Far above any sum of real capacities, far below int64 overflow when two are added."""

ANY_MODEL = "*"
"""The column that counts GPUs of every model together."""


def gpus(milli: int) -> str:
    """Milli-GPU as people write it: 1500 -> '1.5'."""
    return "unlimited" if milli >= UNLIMITED else f"{milli / WHOLE:g}"
