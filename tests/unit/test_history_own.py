"""Moorage's own history: what the control plane wrote, read back as a workload."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from control_world import NODES, World, world
from sqlalchemy import Row, Table, delete, select

from moorage.errors import DataError, InvalidRequest, NotFound
from moorage.runtime.control.clock import ManualClock
from moorage.runtime.control.store import Store, sqlite_url
from moorage.runtime.control.tables import jobs as job_table
from moorage.runtime.control.tables import leases as lease_table
from moorage.runtime.history.own import _gang, _history, _reading, read_own
from moorage.scheduling.simulator.model import Kind

S = 10**9


def test_jobs_come_back_as_they_were_asked_and_as_long_as_they_held(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        url = str(w.service.core.store.engine.url)
        first = w.submit("ops", gpus=2, workers=2, seconds="3")
        w.run(1)
        half = w.submit("research", gpus=0.5, seconds="2", priority="high")
        w.run(20)
        waits = w.submit("ops", gpus=2, workers=1, seconds="900")
        w.run(1)
        found = read_own(url)
        ran = {lease.job_id: lease for lease in rows(w, lease_table)}
        assert w.states(first, half, waits) == ["SUCCEEDED", "SUCCEEDED", "RUNNING"]
    jobs = found.trace.workload
    assert jobs.kind is Kind.JOBS and jobs.names == (first, half)
    assert [jobs.teams[row] for row in jobs.team] == ["ops", "research"]
    assert jobs.workers.tolist() == [2, 1] and jobs.milli_gpu.tolist() == [2000, 500]
    assert jobs.priority.tolist() == [500, 900]
    held = [ran[job].released_ns - ran[job].granted_ns for job in (first, half)]
    assert jobs.duration_ns.tolist() == held and min(held) >= 2 * S
    assert jobs.submit_ns[0] == 0 and jobs.submit_ns[1] > 0.9 * S
    assert found.waited_ns.tolist() == [
        ran[job].granted_ns - found.begun_ns - int(jobs.submit_ns[row])
        for row, job in enumerate((first, half))
    ]
    assert [(one.name, one.code) for one in found.trace.left_out] == [(waits, "not-ended")]
    assert [node.name for node in found.nodes] == [node.name for node in NODES]
    assert "ops" in str(found.teams)


def rows(w: World, table: Table) -> list[Row[Any]]:
    with w.service.core.store.read() as db:
        return list(db.execute(select(table)))


def test_since_leaves_earlier_jobs_away(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        w.submit("ops", seconds="1")
        w.run(10)
        later = w.submit("ops", seconds="1")
        w.run(10)
        begun = next(int(row.created_ns) for row in rows(w, job_table) if row.id == later)
        found = read_own(str(w.service.core.store.engine.url), since_ns=begun)
    assert found.trace.workload.names == (later,) and found.begun_ns == begun


def test_reading_changes_nothing_and_needs_no_lock(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        job = w.submit("ops", seconds="1")
        w.run(10)
        url = str(w.service.core.store.engine.url)
        with w.service.core.store.write():  # a writer in the middle of its transaction
            assert read_own(url).trace.workload.names == (job,)


def test_the_view_cannot_be_written_through(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "c.db")
    Store(url, ManualClock()).close()
    with pytest.raises(DataError, match="history-unreadable"), _reading(url) as db:
        db.execute(delete(job_table))


def test_a_lease_that_is_still_held_has_no_duration_yet() -> None:
    ask = {"workers": 1, "worker": {"milli_gpu": 1000}}
    jobs = [
        SimpleNamespace(id=name, team="ops", ask=ask, created_ns=5, ended_ns=ended)
        for name, ended in (("done", 90), ("held", 90), ("never", 90))
    ]
    held = {
        "done": SimpleNamespace(first=10, ran=70, granted=2, released=2),
        "held": SimpleNamespace(first=10, ran=70, granted=2, released=1),
    }
    found = _history(jobs, held, (), {})
    assert found.trace.workload.names == ("done",) and found.waited_ns.tolist() == [5]
    assert [(one.name, one.code) for one in found.trace.left_out] == [
        ("held", "not-ended"),
        ("never", "never-started"),
    ]


def test_a_database_without_a_history_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="history-not-found"):
        read_own(f"sqlite:///{tmp_path / 'none.db'}")
    assert not (tmp_path / "none.db").exists(), "reading creates nothing"
    (tmp_path / "other.db").write_bytes(b"not a database, and longer than a header of one")
    with pytest.raises(DataError, match="history-unreadable"):
        read_own(f"sqlite:///{tmp_path / 'other.db'}")
    with pytest.raises(InvalidRequest):
        read_own("what")
    Store(sqlite_url(tmp_path / "new.db"), ManualClock()).close()
    with pytest.raises(DataError, match="trace-empty"):
        read_own(f"sqlite:///{tmp_path / 'new.db'}")


@pytest.mark.parametrize(
    ("ask", "gang"),
    [
        ({"head": {"milli_gpu": 1000, "milli_cpu": 5}}, (1, 1, 1000, 0, 5, 0)),
        ({"workers": 3, "worker": {"milli_gpu": 500, "mib": 7}}, (3, 1, 500, 0, 0, 7)),
        (
            {"workers": 3, "min_workers": 2, "worker": {"milli_gpu": 500}, "head": {"milli_cpu": 9}},
            (3, 2, 500, 0, 0, 0),
        ),
        (
            {
                "workers": 3,
                "min_workers": 3,
                "worker": {"milli_gpu": 500},
                "head": {"milli_gpu": 500, "milli_cpu": 9},
            },
            (4, 4, 500, 0, 9, 0),
        ),
        ({"workers": 3, "worker": {"milli_gpu": 500}, "head": {"milli_gpu": 1000}}, None),
    ],
)
def test_a_gang_is_equal_tasks(ask: dict[str, object], gang: tuple[int, ...] | None) -> None:
    assert _gang(ask) == gang
