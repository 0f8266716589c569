"""Batches: the limits, the worker that forms and runs them, and how one bad row is kept from failing its neighbours.

No Ray. Why not `@serve.batch`: it closes a batch on a timer although the model is still busy, so rows that
arrive during a computation queue up behind it in batches of one (88 batches for 120 rows in the test that now
asks for fewer than half). Here the worker, when it is free, takes all that waits: the load sets the batch size.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from moorage.errors import InvalidRequest, Unavailable

Row = TypeVar("Row")
Value = TypeVar("Value")

MAX_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """When a batch closes, once the worker is free: at `max_rows` rows, or `wait_ms` ms after its first row came.

    While one batch computes, the next one fills (one batch computes at a time per replica). `wait_ms` is spent only
    while rows come side by side (what waits, or the batch before, has more than one): a lone caller never waits.
    It pays where a batch has a high fixed cost and cores are few: fewer, fuller batches.
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


class _Model(Protocol):
    def predict(self, rows: Sequence[Any]) -> Sequence[Any]: ...


Model = TypeVar("Model", bound=_Model)


@dataclass(slots=True)
class _Waiting:
    row: Any
    future: asyncio.Future[Any]
    since: float = field(default_factory=time.monotonic)


class BatchWorker(Generic[Model]):
    """One thread that owns the model: it takes what waits, computes it, and settles the callers' futures.

    `start`, `submit` and `close` belong to the event loop's thread. Invariants: `_waiting` is touched under `_wake`
    only; the model and `stats` by the worker thread only; a future is settled on the loop only, and exactly once.
    """

    def __init__(
        self, limits: BatchLimits, observe: Callable[[Sequence[object]], None] = lambda outcomes: None
    ) -> None:
        self.limits, self.stats = limits, BatchStats()
        self._observe = observe
        self._waiting: deque[_Waiting] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._before = 0  # rows of the batch before

    async def start(self, load: Callable[[], Model]) -> Model:
        """Load the model in the worker's thread; raises what `load` raises."""
        self._loop = asyncio.get_running_loop()
        loaded: asyncio.Future[Model] = self._loop.create_future()
        threading.Thread(target=self._work, args=(load, loaded), name="model", daemon=True).start()
        return await loaded

    def submit(self, row: Any) -> asyncio.Future[Any]:
        """The outcome of one row: what `predict` gave for it, or `Failed`. Cancel it and it is not computed."""
        item = _Waiting(row, self._loop.create_future())
        with self._wake:
            if self._closed:
                raise Unavailable("this replica is shutting down", code="replica-closed")
            self._waiting.append(item)
            self._wake.notify()
        return item.future

    def close(self) -> None:
        """Let the worker end after the batch it computes; rows that still wait are answered `Failed`."""
        with self._wake:
            self._closed = True
            left = list(self._waiting)
            self._waiting.clear()
            self._wake.notify()
        error = Unavailable("this replica is shutting down", code="replica-closed")
        _settle([item.future for item in left], [Failed(error)] * len(left))

    def _work(self, load: Callable[[], Model], loaded: asyncio.Future[Model]) -> None:
        try:
            model = load()
        except Exception as error:
            self._tell(_refuse, loaded, error)
            return
        self._tell(_settle, [loaded], [model])
        while batch := self._take():
            outcomes = run_batch(model.predict, [item.row for item in batch])
            self.stats.record(outcomes)
            self._tell(_settle, [item.future for item in batch], outcomes)
            self._observe(outcomes)

    def _take(self) -> list[_Waiting]:
        """The next batch, in order of arrival; empty when closed."""
        with self._wake:
            while True:
                while not self._waiting and not self._closed:
                    self._wake.wait()
                self._fill()
                count = min(len(self._waiting), self.limits.max_rows)
                batch = [
                    item for item in (self._waiting.popleft() for _ in range(count)) if not item.future.done()
                ]
                self._before = len(batch)
                if batch or self._closed:
                    return batch

    def _fill(self) -> None:
        """Wait for more rows, as long as the oldest one may; not for a caller who is alone."""
        if self._before < 2 and len(self._waiting) < 2:
            return
        while self._waiting and len(self._waiting) < self.limits.max_rows and not self._closed:
            left = self._waiting[0].since + self.limits.wait_s - time.monotonic()
            if left <= 0:
                return
            self._wake.wait(left)

    def _tell(self, call: Callable[..., None], *arguments: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *arguments)


def _settle(futures: Sequence[asyncio.Future[Any]], outcomes: Sequence[Any]) -> None:
    for future, outcome in zip(futures, outcomes, strict=True):
        if not future.done():
            future.set_result(outcome)


def _refuse(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _bad(name: str, value: object, why: str) -> InvalidRequest:
    return InvalidRequest(f"batch limit {name}={value} is not usable", why=why, code="batch-limits")
