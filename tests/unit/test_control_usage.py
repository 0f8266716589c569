"""L5, S8: what teams held over time is what the ledger leased, however it is cut into intervals."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
from control_world import world
from hypothesis import given
from hypothesis import strategies as st

from moorage.configs.pool import PoolSettings
from moorage.runtime.control.book import Book
from moorage.runtime.control.usage import KEPT_NS, Steps
from moorage.scheduling.ledger import Ledger

SECOND = 10**9


def test_means_over_intervals_are_what_was_held(tmp_path: Path) -> None:
    """A job of 2 GPUs for the first of two minutes: 2 GPUs on average, then none."""
    with world(tmp_path, settings=PoolSettings()) as w:
        w.submit("ops", gpus=2, seconds="30")
        w.run(60)
        admin = w.caller("admin")
        report = w.service.usage(admin, 1, 60)
        assert set(report["teams"]) == {"ops"} and report["capacity_milli_gpu"] == 8000
        means = report["teams"]["ops"]
        assert max(means) == 2000 and means[-1] == 0
        billed = w.service.cost(admin)["total"]["milli_gpu_ns"]
        assert sum(means) * SECOND == pytest.approx(billed, rel=0.01)
        assert report["to_ns"] - report["from_ns"] == 60 * SECOND


def test_a_restart_reads_the_same_history(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        w.submit("ops", gpus=1, seconds="5")
        w.submit("research", gpus=0.5, seconds="500")
        w.run(20)
        before = w.service.usage(w.caller("ops"), 1, 12)
        w.restart()
        assert w.service.usage(w.caller("ops"), 1, 12)["teams"] == before["teams"]
        assert set(before["teams"]) == {"ops", "research"}


@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(-3, 3)), max_size=20),
    st.integers(0, 1000),
    st.integers(0, 1000),
)
def test_areas_against_counting(changes: list[tuple[int, int]], begin: int, end: int) -> None:
    steps, at = Steps(), 0
    held = [0] * 3000
    for pause, milli in changes:
        at += pause
        steps.change(at, milli)
        for second in range(at, len(held)):
            held[second] += milli
    begin, end = sorted((begin, end))
    assert steps.until(end) - steps.until(begin) == sum(held[begin:end])


def test_old_changes_are_let_go() -> None:
    """What is asked for is a week at most: a pool of years keeps no more changes than days need."""
    steps, day = Steps(), 86_400 * SECOND
    for i in range(1000):
        steps.change(i * day, 1 if i % 2 == 0 else -1)
    assert len(steps.at_ns) < 200
    assert steps.at_ns[0] <= 999 * day - KEPT_NS < steps.at_ns[-1]
    assert steps.until(999 * day) - steps.until(995 * day) == 2 * day


def test_whoever_reads_the_ledger_holds_the_lock(tmp_path: Path) -> None:
    """A node that joins between two reads would leave one column longer than the other."""
    with world(tmp_path) as w:
        service, lock = w.service, w.service.store.lock
        read: list[str] = []

        class Watched(Book):
            @property
            def ledger(self) -> Ledger:  # type: ignore[override]
                if not lock._is_owned():  # type: ignore[attr-defined]
                    unlocked.extend(frame.name for frame in traceback.extract_stack()[-4:-1])
                read.append(traceback.extract_stack()[-2].name)
                return self.__dict__["ledger"]  # type: ignore[no-any-return]

            @ledger.setter
            def ledger(self, value: Ledger) -> None:
                self.__dict__["ledger"] = value

        unlocked: list[str] = []
        service.core.book.__class__ = Watched
        admin = w.caller("admin")
        busy = w.submit("ops", gpus=1, workers=2, seconds="20", preemptible="true", max_runtime="1h")
        w.run(3)
        waits = w.submit("research", gpus=1, workers=2, seconds="5")
        w.submit("research", gpus=1, workers=2, seconds="5")
        service.follow_lease(w.caller("ops"), busy, follows=True)
        w.run(3)
        for job in (busy, waits):
            (
                service.why(admin, job),
                service.job(admin, job),
                service.notice(admin, job),
                service.lease_now(admin, job),
            )
        service.usage(admin, 5, 5), service.status(admin), service.cost(admin), service.metrics()
        service.jobs(admin), service.health(), service.guard(admin), service.endpoints(admin)
        service.quotas(admin), service.drain(admin, "node-1", True), service.events(admin)
        service.put_quotas(admin, "teams: {ops: {quota: 1}, research: {quota: 2, limit: 2}}")
        service.stop(admin, busy)
        w.run(3)
        assert not unlocked, unlocked
        assert {"usage", "status", "samples"} <= set(read), "the paths above are not those that read it"
