"""Moorage: many teams, one Ray cluster. Quotas, leases and the life of a model around them.

Names here load lazily: `import moorage` brings neither Ray nor a database.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_LAZY: dict[str, str] = {
    "lease": "moorage.runtime.client:lease",
    "context": "moorage.cluster.following:context",
    "follow": "moorage.cluster.following:follow",
    "preemption": "moorage.runtime.preemption:preemption",
    "checkpointed": "moorage.runtime.preemption:checkpointed",
    "leave": "moorage.runtime.preemption:leave",
    "MoorageError": "moorage.errors:MoorageError",
}

__all__ = ["MoorageError", "__version__", "checkpointed", "context", "follow", "lease", "leave", "preemption"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        module, attribute = _LAZY[name].split(":")
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'moorage' has no attribute {name!r}")
