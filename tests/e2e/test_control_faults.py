"""Faults around the control plane (G6): a locked database, a full disk, torn files, a clock that is set, duplicates.

Each is injected for real into the process that `moorage up` starts; the pool under it is simulated.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from planes import Nursery, Plane, Site
from waiting import until

WITHIN_S = 60.0
LOCKED_S = float(os.environ.get("MOORAGE_TEST_LOCKED_S", "3"))
HOUR_NS = 3600 * 10**9


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


def accepted(plane: Plane, job: str, **more: str) -> None:
    answer = plane.submit(job, **more)  # type: ignore[arg-type]
    assert answer is not None and answer.status_code == 200, answer and answer.text


def succeeded(plane: Plane, *jobs: str) -> None:
    until(
        lambda: all(plane.jobs().get(job) == "SUCCEEDED" for job in jobs),
        WITHIN_S,
        f"{jobs} to end: {plane.log}",
    )


# -- the database is locked by another program


@contextmanager
def locked(site: Site) -> Iterator[None]:
    if site.database:
        import psycopg

        with psycopg.connect(site.database) as other:
            # Table by table it locks, as ours do in their own order: of two that so wait for each other one is undone.
            while True:
                with suppress(psycopg.errors.DeadlockDetected):
                    other.execute("LOCK TABLE jobs, events, facts IN ACCESS EXCLUSIVE MODE")
                    break
                other.rollback()
            yield
            other.rollback()
        return
    other_file = sqlite3.connect(site.home / "control.db", isolation_level=None, timeout=60)
    other_file.execute("BEGIN EXCLUSIVE")
    yield
    other_file.execute("ROLLBACK")
    other_file.close()


@pytest.mark.parametrize("where", ["sqlite", "postgresql"])
def test_a_locked_database_loses_nothing(
    tmp_path: Path, nursery: Nursery, where: str, request: pytest.FixtureRequest
) -> None:
    """MOORAGE_TEST_LOCKED_S=30 for the long one."""
    url = request.getfixturevalue("postgresql").database(tmp_path) if where == "postgresql" else ""
    with Site(tmp_path, nursery, url) as site:
        plane = site.plane("first").start()
        accepted(plane, "before", seconds="1")  # type: ignore[arg-type]
        told: dict[str, tuple[int, str]] = {}

        def submit(job: str) -> None:
            answer = plane.submit(job)
            assert answer is not None, "the front door answers all the time"
            told[job] = (answer.status_code, answer.headers.get("Retry-After", ""))
            if answer.status_code != 200:
                assert answer.json()["code"] == "database-busy", answer.text

        threads = [threading.Thread(target=submit, args=(f"during-{n}",)) for n in range(8)]
        with locked(site):
            began = time.monotonic()
            for thread in threads:
                thread.start()
            until(lambda: time.monotonic() - began > LOCKED_S, LOCKED_S + 5, "the time of the lock")
        freed = time.monotonic()
        for thread in threads:
            thread.join(60)
        succeeded(plane, "before")
        back = time.monotonic() - freed
        yes = [job for job, (status, _) in told.items() if status == 200]
        assert len(told) == 8 and all(
            status == 200 or (status == 503 and int(retry) >= 1) for status, retry in told.values()
        ), told
        succeeded(plane, *yes)
        assert set(plane.known()) >= {"before", *yes}, "acknowledged is there"
        accepted(plane, "after")
        succeeded(plane, "after")
        assert all(count == 1 for count in site.launches().values())
        assert "Traceback" not in plane.log
        print(
            f"{where} locked {LOCKED_S:g} s: {8 - len(yes)} of 8 told 503, {len(yes)} acknowledged late, 0 lost,"
            f" goes on {back:.1f} s after"
        )


# -- the disk is full


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], capture_output=True
    )
    if done.returncode != 0:
        pytest.skip("no file system can be mounted here: needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def full(plane: Plane, code: str = "database-full") -> None:
    """Refused with the code, and nothing is half there; what can be read is."""

    def refused() -> bool:
        answer = plane.submit(f"too-much-{time.monotonic_ns()}")
        assert answer is not None
        if answer.status_code == 200:
            return False
        assert answer.status_code == 503 and answer.json()["code"] == code, answer.text
        return True

    until(refused, WITHIN_S, "the disk to be full")
    assert plane.get("/healthz") is not None and "before" in plane.known()


def test_a_full_disk_is_said_and_survived(tmp_path: Path, nursery: Nursery) -> None:
    with small_disk(tmp_path / "disk") as disk, Site(tmp_path, nursery, disk=disk) as site:
        plane = site.plane("first").start()
        accepted(plane, "before")
        succeeded(plane, "before")
        ballast = disk / "ballast"
        handle = os.open(ballast, os.O_CREAT | os.O_WRONLY)
        with suppress(OSError):
            while True:
                os.write(handle, b"x" * 4096)
        os.close(handle)
        full(plane)
        archive = b"PK" + os.urandom(1 << 16)
        answer = plane.request("PUT", "/api/packages/gcs/_ray_pkg_0123456789abcdef.zip", content=archive)
        assert answer is not None and answer.status_code == 507 and answer.json()["code"] == "spool-full"
        assert not list((disk / "home" / "packages").glob(".incoming-*")), "nothing half is left"
        ballast.unlink()
        until(
            lambda: (answer := plane.submit("after")) is not None and answer.status_code == 200,
            WITHIN_S,
            "room",
        )
        known = plane.known()
        succeeded(plane, *known)
        assert all(count == 1 for count in site.launches().values()) and len(site.launches()) == len(known)
        assert "Traceback" not in plane.log, plane.log


def test_a_file_that_may_not_grow_is_said_and_survived(tmp_path: Path, nursery: Nursery) -> None:
    """As by a quota: writes beyond a size fail (RLIMIT_FSIZE), and may go on later."""
    with Site(tmp_path, nursery) as site:
        plane = site.plane("first").start()
        accepted(plane, "before")
        succeeded(plane, "before")
        soft, hard = resource.prlimit(plane.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(plane.pid, resource.RLIMIT_FSIZE, (4096, hard))
        full(plane)
        resource.prlimit(plane.pid, resource.RLIMIT_FSIZE, (soft, hard))
        accepted(plane, "after")
        succeeded(plane, *plane.known())
        assert all(count == 1 for count in site.launches().values())


# -- torn files


def test_a_torn_end_is_reported_and_the_rest_is_there(tmp_path: Path, nursery: Nursery) -> None:
    with Site(tmp_path, nursery) as site:
        plane = site.plane("first").start()
        accepted(plane, "kept")
        succeeded(plane, "kept")
        with closing(sqlite3.connect(site.home / "control.db", timeout=60)) as db:
            until(
                lambda: not db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0], 60, "the whole log"
            )
        accepted(plane, "torn", gpus="2")
        succeeded(plane, "torn")
        head = site.home / "control.db.head"
        until(
            lambda: head.exists() and json.loads(head.read_text())["seq"] >= last_event(site),
            WITHIN_S,
            "the head to be noted",
        )
        plane.kill()
        wal = site.home / "control.db-wal"
        assert wal.stat().st_size > 4096
        os.truncate(wal, wal.stat().st_size // 3)
        plane.start()
        assert plane.known().get("kept") == "SUCCEEDED"
        lost = [one for one in events(plane) if one["kind"] == "store.torn"]
        assert len(lost) == 1 and lost[0]["payload"]["lost_events"] > 0
        assert "are lost" in plane.log and "Traceback" not in plane.log
        assert lost[0]["seq"] > lost[0]["payload"]["was"], "numbers of lost events are not used again"
        accepted(plane, "after")
        succeeded(plane, "after")
        plane.kill()
        plane.start()
        assert len([one for one in events(plane) if one["kind"] == "store.torn"]) == 1, "told once"


def last_event(site: Site) -> int:
    with closing(sqlite3.connect(site.home / "control.db", timeout=60)) as db:
        return int(db.execute("SELECT max(seq) FROM events").fetchone()[0])


def events(plane: Plane) -> list[dict[str, object]]:
    answer = plane.get("/moorage/v1/events?limit=1000")
    assert answer is not None and answer.status_code == 200, answer
    found: list[dict[str, object]] = answer.json()
    return found


def test_a_database_that_is_none_and_torn_state_files_end_with_a_sentence(
    tmp_path: Path, nursery: Nursery
) -> None:
    with Site(tmp_path, nursery) as site:
        plane = site.plane("first").start()
        accepted(plane, "kept")
        plane.signal(signal.SIGTERM)
        assert plane.wait(90) == 0
        for name in ("control.db.head", "ray.json", "pool.json"):
            (site.home / name).write_text('{"seq": 12')
        refused = site.plane("second").start(wait=False)
        assert (
            refused.wait(60) == 2 and "state-file-damaged" in refused.log and "Traceback" not in refused.log
        )
        (site.home / "pool.json").unlink()
        plane.start()
        succeeded(plane, "kept")
        assert "control.db.head is damaged" in plane.log and "Traceback" not in plane.log
        plane.kill()
        whole = (site.home / "control.db").read_bytes()
        (site.home / "control.db").write_bytes(b"\0" * len(whole))
        for more in ("control.db-wal", "control.db-shm"):
            (site.home / more).unlink(missing_ok=True)
        refused = site.plane("third").start(wait=False)
        assert refused.wait(60) == 2 and "database-damaged" in refused.log and "Traceback" not in refused.log


# -- the clock is set


def test_a_clock_that_is_set_an_hour_either_way_expires_nothing(tmp_path: Path, nursery: Nursery) -> None:
    """Forward and back, while it runs and while it is away; a job may run half an hour, and costs what it ran."""
    offset = tmp_path / "offset"
    offset.write_text("0")
    with Site(tmp_path, nursery, environment={"MOORAGE_TEST_CLOCK": str(offset)}) as site:
        plane = site.plane("first").start()
        accepted(plane, "long", seconds="900", max_runtime="30m")  # type: ignore[arg-type]
        until(lambda: plane.jobs().get("long") == "RUNNING", WITHIN_S, "the job to run")
        began, spent = time.monotonic(), 0
        for number, (hours, restart) in enumerate(
            [(1, False), (1, True), (-1, False), (-1, True), (0, True)]
        ):
            offset.write_text(str(hours * HOUR_NS))
            if restart:
                plane.kill()
                plane.start()
            accepted(plane, f"job-{number}")
            succeeded(plane, f"job-{number}")
            assert plane.known()["long"] == "RUNNING", f"{hours} h, restarted: {restart}"
            answer = plane.get("/moorage/v1/cost")
            assert answer is not None
            total = answer.json()["total"]["milli_gpu_ns"]
            most = 2000 * (time.monotonic() - began + 10) * 10**9
            assert spent <= total <= most, f"{hours} h: {spent} -> {total}, at most {most}"
            spent = total
        stamps = [one["control_ns"] for one in events(plane)]
        assert stamps == sorted(stamps)


# -- fifty at once


@pytest.mark.parametrize("by", ["id", "key"])
def test_fifty_duplicates_at_once_are_one_job(tmp_path: Path, nursery: Nursery, by: str) -> None:
    with Site(tmp_path, nursery) as site:
        plane = site.plane("first").start()
        asked = {"team": "ops", "gpus_per_worker": "1", "sim.seconds": "0.2"}
        body = {"entrypoint": "true", "metadata": asked} | ({"submission_id": "one"} if by == "id" else {})
        headers = {"Idempotency-Key": "one"} if by == "key" else {}
        together = threading.Barrier(50)

        def submit(_: int) -> tuple[int, str]:
            together.wait(30)
            answer = plane.request("POST", "/api/jobs/", json=body, headers=headers, timeout=60)
            assert answer is not None
            return answer.status_code, answer.json().get("submission_id", answer.text)

        with ThreadPoolExecutor(50) as pool:
            told = set(pool.map(submit, range(50)))
        assert len(told) == 1 and next(iter(told))[0] == 200, told
        job = next(iter(told))[1]
        succeeded(plane, job)
        assert set(plane.known()) == {job} and site.launches() == {f"{job}-1": 1}
