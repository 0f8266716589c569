"""Every trial of a sweep as a tracked run, written by the sweep's driver (importing MLflow per trial costs seconds)."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

from ray.tune import Callback

from moorage.runtime.registry import Registry
from moorage.runtime.registry.tracking import Run
from moorage.train.scaling import SLOT


class TrackTrials(Callback):
    """One run per trial: its configuration as parameters, each report as metrics at its iteration.

    `on_end(trial index, last result, failed)` hears each end, for progress lines.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        experiment: str,
        ignore: tuple[str, ...] = (),
        on_end: Callable[[int, dict[str, Any], bool], None] | None = None,
    ) -> None:
        self._registry, self._experiment = registry, experiment
        self._ignore, self._on_end = {*ignore, SLOT}, on_end
        self._runs: dict[str, Run] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if trial.trial_id in self._runs:
            return
        params = {key: value for key, value in trial.config.items() if key not in self._ignore}
        name = f"trial-{trial.config.get('trial_index', trial.trial_id)}"
        tags = {"moorage.trial": trial.trial_id}
        self._runs[trial.trial_id] = self._registry.track(
            name, experiment=self._experiment, params=params, tags=tags
        )

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        run = self._runs.get(trial.trial_id)
        if run is not None:
            figures = {k: float(v) for k, v in result.items() if isinstance(v, numbers.Real) and "/" not in k}
            run.metrics(figures, step=int(result.get("training_iteration", 0)))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, failed=False)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, failed=True)

    def _end(self, trial: Any, *, failed: bool) -> None:
        run = self._runs.pop(trial.trial_id, None)
        if run is not None:
            run.end("FAILED" if failed else "FINISHED")
        if self._on_end is not None:
            self._on_end(int(trial.config.get("trial_index", -1)), dict(trial.last_result or {}), failed)
