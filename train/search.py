"""The search side of a sweep under a lease: fixed configurations, each running trial on a slot of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune.search import Searcher
from ray.tune.search.sample import Domain

from moorage.train.scaling import SLOT


def sample_configs(space: Mapping[str, Any], count: int, seed: int) -> list[dict[str, Any]]:
    """Draw `count` configurations from Tune domains; constants pass through. The same seed gives the same list."""
    rng = np.random.RandomState(seed)
    return [
        {
            key: value.sample(random_state=rng) if isinstance(value, Domain) else value
            for key, value in space.items()
        }
        for _ in range(count)
    ]


class LeasedSearch(Searcher):
    """Hands out `configs` in order, as long as one of `slots` is free.

    Invariants: a slot is held by at most one running trial; `_next` configurations have been handed out.
    `save` and `restore` are what Tune asks of a searcher; the state is plain JSON.
    """

    def __init__(self, configs: list[dict[str, Any]], slots: int) -> None:
        if slots < 1 or not configs:
            raise ValueError(f"{len(configs)} configurations on {slots} slots")
        super().__init__()
        self.configs, self.slots = configs, slots
        self._next = 0
        self._held: dict[str, int] = {}  # trial id -> slot

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        if metric:
            self._metric = metric
        if mode:
            self._mode = mode
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self._next >= len(self.configs):
            return str(Searcher.FINISHED)
        free = sorted(set(range(self.slots)) - set(self._held.values()))
        if not free:
            return None
        self._held[trial_id] = free[0]
        config = {**self.configs[self._next], SLOT: free[0], "trial_index": self._next}
        self._next += 1
        return config

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self._held.pop(trial_id, None)

    def save(self, checkpoint_path: str) -> None:
        state = {"configs": self.configs, "slots": self.slots, "next": self._next, "held": self._held}
        Path(checkpoint_path).write_text(json.dumps(state), encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        state = json.loads(Path(checkpoint_path).read_text(encoding="utf-8"))
        self.configs, self.slots, self._next = state["configs"], state["slots"], state["next"]
        self._held = {str(trial): int(slot) for trial, slot in state["held"].items()}
