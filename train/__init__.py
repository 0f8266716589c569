"""Inside a training job: placement by the lease, checkpoints, data order, sweeps and metrics.

May import `moorage.runtime` and what is below it, never `moorage.serve`: the two meet through the registry and
the feature store. Names load lazily, so importing this brings neither torch nor Ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

if __name__ == "train":
    raise ImportError("'train' is a root folder of Moorage: import it as 'moorage.train'")

_LAZY = {
    "scaling_config": "scaling",
    "tune_config": "scaling",
    "tune_resources": "scaling",
    "tune_slots": "scaling",
    "LeasedSearch": "search",
    "sample_configs": "search",
    "Checkpoint": "checkpoint",
    "CheckpointError": "checkpoint",
    "CheckpointStore": "checkpoint",
    "BatchOrder": "order",
    "seed_step": "order",
    "Peers": "loop",
    "train_steps": "loop",
    "StepLog": "steplog",
    "told": "elastic",
    "hand_over": "elastic",
}

__all__ = list(_LAZY)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'moorage.train' has no attribute {name!r}")
    return getattr(import_module(f"moorage.train.{_LAZY[name]}"), name)
