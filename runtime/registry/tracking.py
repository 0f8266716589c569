"""One tracked run: parameters and metrics, sent to MLflow in batches."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

_BATCH = 1000  # MLflow's limit for one log_batch, which costs as much as ~25 single calls


def quiet_mlflow() -> None:
    """Before the first import: no telemetry leaves the machine, no migration chatter on a job's stderr."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        # as a level of the logger, since Ray may have imported MLflow, and with it read the variable, before us
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)


class Run:
    """Buffers metrics; `flush` or the end of the `with` block sends them. Not shared between threads."""

    def __init__(self, *, client: Any, run_id: str, clock: Callable[[], float] = time.time) -> None:
        self._client, self.run_id, self._clock = client, run_id, clock
        self._buffer: list[Any] = []

    def params(self, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        self._client.log_batch(self.run_id, params=[Param(str(k), str(v)[:6000]) for k, v in params.items()])

    def tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in tags.items()])

    def metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record figures at `step`. What is not finite is left out: the database has no form for it."""
        from mlflow.entities import Metric

        now = int(self._clock() * 1000)
        self._buffer += [
            Metric(k, float(v), now, step) for k, v in metrics.items() if math.isfinite(float(v))
        ]
        if len(self._buffer) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        while self._buffer:
            batch, self._buffer = self._buffer[:_BATCH], self._buffer[_BATCH:]
            self._client.log_batch(self.run_id, metrics=batch)

    def end(self, status: str = "FINISHED") -> None:
        """`status`: FINISHED, FAILED or KILLED."""
        self.flush()
        self._client.set_terminated(self.run_id, status=status)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.end("FINISHED" if kind is None else "FAILED")
