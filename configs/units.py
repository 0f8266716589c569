"""Text to exact integers: GPUs to milli-GPU, CPUs to milli-CPU, durations to nanoseconds. Errors name the field."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Any

from moorage.errors import InvalidRequest

MAX_GPUS = 62
"""Of one process: what the core can express (`scheduling.model.MAX_DEVICES` per node)."""
MAX_CPUS = 65536
MAX_WORKERS = 100_000
MAX_MIB = 1 << 24
MAX_SECONDS = 366 * 86400

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d{1,18})(\.\d{1,18})?([eE][+-]?\d{1,3})?", re.ASCII)


def refuse(field: str, value: Any, why: str, todo: str = "") -> InvalidRequest:
    """The error for a bad value: names the field and what was given (cut to 60 characters)."""
    return InvalidRequest(
        f"{field} = {str(value)[:60]!r} is not allowed", why=why, todo=todo, code="invalid-field", field=field
    )


def decimal(field: str, value: Any) -> Decimal:
    """A finite decimal from text or a JSON number; NaN, infinities, booleans and underscores are refused."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise refuse(field, value, f"it must be a number, not {type(value).__name__}")
    text = repr(value) if isinstance(value, float) else str(value).strip()
    if not _NUMBER.fullmatch(text):
        finite = (
            "it must be a finite number" if text.lower().lstrip("+-") in ("nan", "inf", "infinity") else ""
        )
        raise refuse(field, value, finite or "it must be a number such as 2 or 0.5")
    try:
        return Decimal(text)
    except InvalidOperation:  # pragma: no cover - the pattern above admits only decimals
        raise refuse(field, value, "it must be a number") from None


def whole(field: str, value: Any, low: int, high: int) -> int:
    """An integer in [low, high]."""
    number = decimal(field, value)
    if number != number.to_integral_value():
        raise refuse(field, value, "it must be a whole number")
    if not low <= number <= high:
        raise refuse(field, value, f"it must be between {low} and {high}")
    return int(number)


def milli(field: str, value: Any, high: int) -> int:
    """Thousandths of a non-negative number with at most three decimals, up to `high` whole ones."""
    number = decimal(field, value)
    if number < 0:
        raise refuse(field, value, "it must not be negative")
    if number > high:
        raise refuse(field, value, f"it is over the maximum of {high}")
    scaled = number * 1000
    if scaled != scaled.to_integral_value():
        raise refuse(field, value, "it has more than three decimals")
    return int(scaled)


def milli_gpu(field: str, value: Any) -> int:
    """Milli-GPU: 0, a part of one device (0 < g < 1), or whole devices; 1.5 is refused, as Ray refuses it."""
    amount = milli(field, value, MAX_GPUS)
    if amount > 1000 and amount % 1000:
        raise refuse(
            field, value, "above one GPU only whole GPUs exist", "ask for 1 or 2, or for a part below 1"
        )
    return amount


def duration_ns(field: str, value: Any) -> int:
    """Nanoseconds from "90", "90s", "30m", "1h30m", "2d"; more than zero and at most 366 days."""
    text = str(value).strip().lower()
    match = _DURATION.fullmatch(text)
    if match and any(match.groups()):
        parts = zip(("d", "h", "m", "s"), match.groups(), strict=True)
        seconds = Decimal(sum(int(part) * _UNITS[unit] for unit, part in parts if part))
    elif _NUMBER.fullmatch(text):
        seconds = decimal(field, value)
    else:
        raise refuse(field, value, "it must be a duration", "write seconds or, for example, 30m, 2h, 1h30m")
    if seconds <= 0:
        raise refuse(field, value, "it must be more than zero")
    if seconds > MAX_SECONDS:
        raise refuse(field, value, "it is over 366 days")
    return int(seconds * 10**9)


def boolean(field: str, value: Any) -> bool:
    """true/false, yes/no, 1/0, on/off in any case."""
    text = str(value).strip().lower()
    if text in ("true", "yes", "1", "on"):
        return True
    if text in ("false", "no", "0", "off"):
        return False
    raise refuse(field, value, "it must be true or false")
