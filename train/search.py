"""The search side of a sweep under a lease: fixed configurations, each running trial on a slot of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
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
    """Hands out `configs` in order, as long as one of `slots` is free; a function says how many there are now.

    Invariants: a slot is held by at most one running trial; `_next` configurations have been handed out; who is
    `parked` was stopped for the time being, and gets the next free slot.
    `save` and `restore` are what Tune asks of a searcher; the state is plain JSON.
    """

    def __init__(self, configs: list[dict[str, Any]], slots: int | Callable[[], int]) -> None:
        self._slots = slots
        if self.slots < 1 or not configs:
            raise ValueError(f"{len(configs)} configurations on {self.slots} slots")
        super().__init__()
        self.configs = configs
        self._next = 0
        self._held: dict[str, int] = {}  # trial id -> slot
        self.parked: list[str] = []

    @property
    def slots(self) -> int:
        return self._slots() if callable(self._slots) else self._slots

    def _free(self) -> list[int]:
        return sorted(set(range(self.slots)) - set(self._held.values()))

    def must_park(self, trial_id: str) -> bool:
        """Whether the slot of a running trial is the pool's again; if so it has none from now on."""
        if self._held.get(trial_id, -1) < self.slots:
            return False
        del self._held[trial_id]
        self.parked.append(trial_id)
        return True

    def unpark(self, trial_id: str) -> int | None:
        """A slot for a parked trial, if one is free."""
        free = self._free()
        if not free or trial_id not in self.parked:
            return None
        self.parked.remove(trial_id)
        self._held[trial_id] = free[0]
        return free[0]

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
        free = self._free()
        if not free or self.parked:
            return None
        self._held[trial_id] = free[0]
        config = {**self.configs[self._next], SLOT: free[0], "trial_index": self._next}
        self._next += 1
        return config

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self._held.pop(trial_id, None)
        if trial_id in self.parked:
            self.parked.remove(trial_id)

    def save(self, checkpoint_path: str) -> None:
        state = {"configs": self.configs, "slots": self.slots, "next": self._next, "held": self._held}
        Path(checkpoint_path).write_text(json.dumps(state), encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        state = json.loads(Path(checkpoint_path).read_text(encoding="utf-8"))
        self.configs, self._slots, self._next = state["configs"], state["slots"], state["next"]
        self._held = {str(trial): int(slot) for trial, slot in state["held"].items()}


class ParkTrials(FIFOScheduler):
    """Another scheduler's decisions, but that a trial whose slot is the pool's again is paused at its next report, with
    its checkpoint, and goes on in the next slot that is free. `resources(config)` says where a slot is."""

    def __init__(
        self,
        search: LeasedSearch,
        resources: Callable[[Mapping[str, Any]], Any],
        inner: TrialScheduler | None = None,
    ) -> None:
        super().__init__()
        self._search, self._resources, self._inner = search, resources, inner or FIFOScheduler()

    @property
    def metric(self) -> Any:
        return self._inner.metric

    @property
    def supports_buffered_results(self) -> bool:
        return False

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return bool(self._inner.set_search_properties(metric, mode, **spec))

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        self._inner.on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self._inner.on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        decided = str(self._inner.on_trial_result(tune_controller, trial, result))
        if decided == TrialScheduler.CONTINUE and self._search.must_park(trial.trial_id):
            return str(TrialScheduler.PAUSE)
        return decided

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        self._inner.on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        self._inner.on_trial_remove(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        for trial in tune_controller.get_trials():
            if trial.status == Trial.PAUSED and trial.trial_id in self._search.parked:
                slot = self._search.unpark(trial.trial_id)
                if slot is None:
                    break
                trial.config[SLOT] = slot
                trial.update_resources(self._resources(trial.config))
                return trial
        chosen = self._inner.choose_trial_to_run(_WithoutParked(tune_controller, self._search))
        return chosen if chosen is None or isinstance(chosen, Trial) else None

    def debug_string(self) -> str:
        parked = len(self._search.parked)
        return f"{self._inner.debug_string()} {parked} trials wait for a slot of the lease."


class _WithoutParked:
    """A controller that has no parked trials."""

    def __init__(self, controller: Any, search: LeasedSearch) -> None:
        self._controller, self._search = controller, search

    def __getattr__(self, name: str) -> Any:
        return getattr(self._controller, name)

    def get_trials(self) -> list[Trial]:
        parked = self._search.parked
        return [trial for trial in self._controller.get_trials() if trial.trial_id not in parked]
