"""Batches and placement without Ray (V2, V3, S4)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from moorage.cluster.binding import LeaseView, WorkerView
from moorage.errors import Infeasible, InvalidRequest, Unavailable
from moorage.serve.batching import BatchLimits, BatchStats, BatchWorker, Failed, run_batch
from moorage.serve.placement import WrongDevice, check_devices, placement, share_one_device


class Doubler:
    """Raises on negative rows; remembers what it was called with."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def __call__(self, rows: Sequence[int]) -> list[int]:
        self.calls.append(list(rows))
        if min(rows) < 0:
            raise ValueError("negative")
        return [2 * row for row in rows]


def test_a_batch_is_one_call() -> None:
    model = Doubler()
    assert run_batch(model, [1, 2, 3]) == [2, 4, 6]
    assert model.calls == [[1, 2, 3]]


@pytest.mark.parametrize("bad", [{0}, {63}, {5, 6}, {0, 31, 32, 63}])
def test_a_bad_row_fails_alone(bad: set[int]) -> None:
    model = Doubler()
    rows = [-1 if place in bad else place for place in range(64)]
    outcomes = run_batch(model, rows)
    assert {place for place, outcome in enumerate(outcomes) if isinstance(outcome, Failed)} == bad
    assert [o for p, o in enumerate(outcomes) if p not in bad] == [2 * p for p in range(64) if p not in bad]
    assert len(model.calls) <= 1 + 2 * 6 * len(bad)


def test_a_model_that_loses_rows_is_caught() -> None:
    outcomes = run_batch(lambda rows: rows[:1], [1, 2, 3, 4])
    assert outcomes == [1, 2, 3, 4]  # each half alone is right: nobody gets a neighbour's answer
    assert all(isinstance(o, Failed) for o in run_batch(lambda rows: [], [1, 2]))


@pytest.mark.parametrize(
    "limits", [{"max_rows": 0}, {"max_rows": 5000}, {"wait_ms": -1}, {"wait_ms": float("nan")}]
)
def test_limits_are_checked(limits: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest):
        BatchLimits(**limits)  # type: ignore[arg-type]


def test_statistics() -> None:
    stats = BatchStats()
    stats.record([1, 2, 3])
    stats.record([Failed(ValueError())])
    assert stats.as_dict() == {"batches": 2, "rows": 4, "largest": 3, "mean": 2.0, "failed_rows": 1}


def worker(node: str, device: int, milli: int = 500) -> WorkerView:
    return WorkerView(
        node=node, ray_node_id=f"id-{node}", devices=(device,), milli_gpu=milli, gpu_mib=1024, milli_cpu=1000
    )


LEASE = LeaseView(lease_id="l1", epoch=1, head=None, workers=(worker("node-0", 2), worker("node-0", 2)))


def test_placement_pins_a_replica_to_its_worker() -> None:
    assert placement(1, lease=LEASE) == {
        "num_cpus": 1.0,
        "num_gpus": 0.5,
        "label_selector": {"ray.io/node-id": "id-node-0"},
    }
    with pytest.raises(Infeasible, match="2 worker"):
        placement(2, lease=LEASE)


def test_placement_without_a_lease_asks_for_what_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOORAGE_LEASE", raising=False)
    assert placement(0, gpus=0.5) == {"num_cpus": 1.0, "num_gpus": 0.5}
    assert placement(7, cpus=2.0) == {"num_cpus": 2.0}


def info(node: str, *devices: int) -> dict[str, object]:
    return {"ray_node_id": f"id-{node}", "devices": list(devices)}


def test_devices_are_compared_with_the_lease() -> None:
    good = [info("node-0", 2), info("node-0", 2)]
    check_devices(good, LEASE)
    assert share_one_device(good)
    for bad in ([info("node-0", 2), info("node-0", 3)], [info("node-0", 2), info("node-1", 2)]):
        assert not share_one_device(bad)
        with pytest.raises(WrongDevice, match="l1"):
            check_devices(bad, LEASE)
    assert not share_one_device([info("node-0"), info("node-0")])


class Gate:
    """A model that computes only when told to, and tells what it computed."""

    def __init__(self) -> None:
        self.started, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.batches: list[list[int]] = []

    def predict(self, rows: Sequence[int]) -> list[int]:
        self.started.release()
        assert self.go.acquire(timeout=10)
        self.batches.append(list(rows))
        return [2 * row for row in rows]


async def when_started(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.started.acquire, True, 10)


def test_what_arrives_during_a_batch_is_the_next_batch() -> None:
    """V2: no timer decides; rows beyond the limit wait for the batch after."""

    async def scenario() -> None:
        gate, worker = Gate(), BatchWorker[Gate](BatchLimits(max_rows=8))
        await worker.start(lambda: gate)
        futures = [worker.submit(0)]
        await when_started(gate)
        futures += [worker.submit(row) for row in range(1, 13)]
        gate.go.release(3)
        assert await asyncio.gather(*futures) == [2 * row for row in range(13)]
        assert gate.batches == [[0], list(range(1, 9)), list(range(9, 13))]
        assert worker.stats.as_dict()["largest"] == 8
        worker.close()

    asyncio.run(scenario())


def test_rows_that_come_side_by_side_wait_for_a_full_batch() -> None:
    """Two arrived during the first batch: the worker waits for the third, and would for ten seconds."""

    async def scenario() -> None:
        gate, worker = Gate(), BatchWorker[Gate](BatchLimits(max_rows=3, wait_ms=10_000))
        await worker.start(lambda: gate)
        futures = [worker.submit(0)]
        await when_started(gate)
        futures += [worker.submit(row) for row in (1, 2)]
        gate.go.release(2)
        assert await futures[0] == 0
        futures.append(worker.submit(3))
        assert await asyncio.wait_for(asyncio.gather(*futures), 5) == [0, 2, 4, 6]
        assert gate.batches == [[0], [1, 2, 3]]
        worker.close()

    asyncio.run(scenario())


def test_a_caller_who_is_alone_never_waits() -> None:
    async def scenario() -> None:
        gate, worker = Gate(), BatchWorker[Gate](BatchLimits(max_rows=3, wait_ms=10_000))
        await worker.start(lambda: gate)
        gate.go.release(3)
        for row in range(3):
            assert await asyncio.wait_for(worker.submit(row), 5) == 2 * row
        worker.close()

    asyncio.run(scenario())


def test_a_caller_who_left_is_not_computed() -> None:
    async def scenario() -> None:
        gate, worker = Gate(), BatchWorker[Gate](BatchLimits())
        await worker.start(lambda: gate)
        first = worker.submit(1)
        await when_started(gate)
        gone, stays = worker.submit(2), worker.submit(3)
        gone.cancel()
        gate.go.release(2)
        assert (await first, await stays) == (2, 6)
        assert gate.batches == [[1], [3]]
        worker.close()

    asyncio.run(scenario())


def test_closing_answers_everybody() -> None:
    async def scenario() -> None:
        gate, worker = Gate(), BatchWorker[Gate](BatchLimits())
        await worker.start(lambda: gate)
        computing = worker.submit(1)
        await when_started(gate)
        waiting = worker.submit(2)
        worker.close()
        assert isinstance(await waiting, Failed)
        gate.go.release()
        assert await computing == 2
        with pytest.raises(Unavailable):
            worker.submit(3)

    asyncio.run(scenario())


def test_a_model_that_does_not_load_says_why() -> None:
    def load() -> Gate:
        raise ValueError("sha256 differs")

    with pytest.raises(ValueError, match="sha256"):
        asyncio.run(BatchWorker[Gate](BatchLimits()).start(load))
