"""The versions of Ray whose internals were read and checked. Importing this imports no Ray."""

from __future__ import annotations

from importlib import metadata

KNOWN = ("2.60.",)


def is_known(version: str | None = None) -> bool:
    """Whether the installed Ray (or `version`) is one of them."""
    try:
        return (version or metadata.version("ray")).startswith(KNOWN)
    except metadata.PackageNotFoundError:
        return False
