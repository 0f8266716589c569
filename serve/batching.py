"""Batches: the limits, and how a batch runs so that one bad row cannot fail its neighbours. No Ray.

The queue itself is Ray Serve's (`@serve.batch` in `host`); what is here is what a batch *does* when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from moorage.errors import InvalidRequest

Row = TypeVar("Row")
Value = TypeVar("Value")

MAX_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """When a batch closes: at `max_rows` rows, or `wait_ms` milliseconds after its first row came.

    While one batch computes, the next one fills (one batch computes at a time per replica), so under load the
    batches grow without any waiting; `wait_ms` only adds latency when the endpoint is idle. 0 is the right
    choice unless a forward pass has a high fixed cost and the traffic is steady.
    """

    max_rows: int = 64
    wait_ms: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.max_rows <= MAX_ROWS:
            raise _bad("max_rows", self.max_rows, f"it must be between 1 and {MAX_ROWS}")
        if not 0 <= self.wait_ms <= 10_000:  # NaN fails this too
            raise _bad("wait_ms", self.wait_ms, "it must be between 0 and 10000")

    @property
    def wait_s(self) -> float:
        return self.wait_ms / 1000


@dataclass(frozen=True, slots=True)
class Failed:
    """The outcome of one row that the model could not answer."""

    error: Exception


@dataclass(slots=True)
class BatchStats:
    """What a replica's batches looked like so far: one writer, the thread that runs them.

    Invariant: `largest <= rows`, and `rows >= batches` once anything ran.
    """

    batches: int = 0
    rows: int = 0
    largest: int = 0
    failed_rows: int = 0

    def record(self, outcomes: Sequence[object]) -> None:
        self.batches += 1
        self.rows += len(outcomes)
        self.largest = max(self.largest, len(outcomes))
        self.failed_rows += sum(isinstance(outcome, Failed) for outcome in outcomes)

    def as_dict(self) -> dict[str, float]:
        mean = self.rows / self.batches if self.batches else 0.0
        return {
            "batches": self.batches,
            "rows": self.rows,
            "largest": self.largest,
            "mean": round(mean, 3),
            "failed_rows": self.failed_rows,
        }


def run_batch(
    predict: Callable[[Sequence[Row]], Sequence[Value]], rows: Sequence[Row]
) -> list[Value | Failed]:
    """One outcome per row, in order: a value, or `Failed` for exactly the rows that make `predict` raise.

    The good case is one call to `predict`. When it raises, the halves run by themselves: k bad rows among n
    cost O(k log n) calls, and no good row pays with its answer.
    """
    if not rows:
        return []
    try:
        values = predict(rows)
        if len(values) != len(rows):
            raise ValueError(f"the model answered {len(values)} rows for {len(rows)}")
        return list(values)
    except Exception as error:  # a model's code is the user's: anything may come out of it
        if len(rows) == 1:
            return [Failed(error)]
    middle = len(rows) // 2
    return run_batch(predict, rows[:middle]) + run_batch(predict, rows[middle:])


def _bad(name: str, value: object, why: str) -> InvalidRequest:
    return InvalidRequest(f"batch limit {name}={value} is not usable", why=why, code="batch-limits")
