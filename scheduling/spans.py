"""Lengths of time in words."""

from __future__ import annotations


def span(ns: int) -> str:
    """A length of time as people say it, rounded up: '2 h 5 min'."""
    seconds = -(-max(0, ns) // 10**9)
    for long, short, size in (("d", "h", 86400), ("h", "min", 3600), ("min", "s", 60)):
        if seconds >= size:
            rest = seconds % size * (24 if long == "d" else 60) // size
            return f"{seconds // size} {long}" + (f" {rest} {short}" if rest else "")
    return f"{seconds} s"
