"""Tracking of runs and the model registry: sealed artifacts, the promotion gate, aliases and rollback.

Names load lazily and MLflow only on first use: importing this is cheap. No Ray here.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_LAZY = {
    "Registry": "store",
    "Resolved": "store",
    "Version": "store",
    "GateDecision": "gate",
    "GatePolicy": "gate",
    "Holdout": "gate",
    "holdout_from": "gate",
    "Damaged": "sealed",
    "DiskFull": "sealed",
    "UnsafeArtifact": "artifact",
    "load_model": "artifact",
    "save_model": "artifact",
    "code_version": "environment",
    "current_environment": "environment",
}

__all__ = list(_LAZY)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'moorage.runtime.registry' has no attribute {name!r}")
    return getattr(import_module(f"moorage.runtime.registry.{_LAZY[name]}"), name)
