"""S9: a package on its way to Ray holds up the start that needs it, and nothing else."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from control_world import World, world
from waiting import until

from moorage.cluster.backend import BackendUnavailable, LaunchRefused, PackageRef
from moorage.runtime.control.api import Submission
from moorage.runtime.control.uploads import AT_ONCE, Uploads


class Line:
    """Brings packages one by one when the test lets them go; `fails` by URI, once each."""

    def __init__(self, w: World) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.gates: dict[str, threading.Event] = {}
        self.fails: dict[str, Exception] = {}
        self.threads: set[str] = set()
        w.backend.stage = self.stage  # type: ignore[method-assign]
        w.service.loop._effects._uploads._stage = self.stage

    def stage(self, package: PackageRef) -> None:
        self.begun.append(package.uri)
        self.threads.add(threading.current_thread().name)
        if package.uri in self.gates:
            assert self.gates[package.uri].wait(20)
        self.ended.append(package.uri)
        if package.uri in self.fails:
            raise self.fails.pop(package.uri)

    def hold(self, name: str) -> threading.Event:
        gate = self.gates[f"gcs://{name}"] = threading.Event()
        return gate


def submit(w: World, job: str, package: str, team: str = "ops", gpus: str = "4") -> str:
    asked = {"gpus_per_worker": gpus, "sim.seconds": "1000"}
    what = Submission(
        entrypoint="python x.py",
        submission_id=job,
        metadata=asked,
        runtime_env={"working_dir": f"gcs://{package}"},
        packages={f"gcs://{package}": f"/spool/{package}"},
    )
    w.clock.tick(0.001)
    return w.service.submit(w.caller(team), what)


def test_others_start_and_end_while_a_package_is_on_its_way(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        line = Line(w)
        gate = line.hold("big.zip")
        short = w.submit("research", job="short", gpus=1, seconds="2")
        submit(w, "large", "big.zip")
        w.run(1)
        assert w.states("large", "short") == ["ADMITTED", "RUNNING"]
        w.submit("research", job="next", gpus=1, seconds="1000")
        w.run(3)
        assert w.states("large", short, "next") == ["ADMITTED", "SUCCEEDED", "RUNNING"]
        assert line.begun == ["gcs://big.zip"], "begun once, however many rounds there were"
        w.service.core.wake.clear()
        gate.set()
        assert w.service.core.wake.wait(10), "the loop is told, and need not wait for its next round"
        w.run(1)
        assert w.states("large") == ["RUNNING"] and w.backend.launches.count("large-1") == 1
        assert line.threads == {"upload"}


def test_starts_on_a_node_keep_their_order(tmp_path: Path) -> None:
    """The raylet picks the device: a later start must not go before an earlier one whose package is not there."""
    with world(tmp_path, teams="teams: {ops: {quota: 8}}") as w:
        line = Line(w)
        gate = line.hold("big.zip")
        submit(w, "first", "big.zip", gpus="3")
        w.submit("ops", job="other", gpus=4, seconds="1000")
        w.run(1)
        w.submit("ops", job="second", gpus=1, seconds="1000")
        w.run(3)
        assert w.states("first", "other", "second") == ["ADMITTED", "RUNNING", "ADMITTED"]
        gate.set()
        until(lambda: w.run(1) or w.states("second") == ["RUNNING"], 60, "the upload, and who waited for it")
        assert w.backend.launches == ["other-1", "first-1", "second-1"]


def test_a_job_that_is_stopped_meanwhile_never_starts(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        gate = Line(w).hold("big.zip")
        submit(w, "large", "big.zip")
        w.run(1)
        w.service.stop(w.caller("ops"), "large")
        w.run(1)
        assert w.states("large") == ["STOPPED"] and not w.service.core.book.ledger.leases
        gate.set()
        w.run(2)
        assert w.backend.launches == []


@pytest.mark.parametrize("held", [True, False])
def test_what_an_upload_fails_with_is_what_the_launch_would_have(tmp_path: Path, held: bool) -> None:
    """Ray does not take it: the end. Ray does not answer: again, later. Said at once, or only after other rounds."""
    with world(tmp_path) as w:
        line = Line(w)
        line.fails = {
            "gcs://bad.zip": LaunchRefused("Ray does not take the package"),
            "gcs://late.zip": BackendUnavailable("Ray does not answer"),
        }
        gates = [line.hold("bad.zip"), line.hold("late.zip")] if held else []
        submit(w, "bad", "bad.zip")
        submit(w, "late", "late.zip", team="research", gpus="1")
        w.run(1)
        for gate in gates:
            gate.set()
        until(lambda: w.run(1) or w.states("bad", "late") == ["FAILED", "RUNNING"], 60, "both uploads")
        assert "does not take" in w.job("bad").message
        assert line.begun.count("gcs://late.zip") == 2 and w.backend.launches == ["late-1"]


def test_a_restart_brings_what_was_on_its_way(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        line = Line(w)
        gate = line.hold("big.zip")
        submit(w, "large", "big.zip")
        w.run(1)
        w.restart()
        gate.set()
        until(lambda: w.run(1) or w.states("large") == ["RUNNING"], 60, "both uploads")
        assert w.backend.launches == ["large-1"]


def test_few_at_once_and_each_once() -> None:
    gate, under_way, most = threading.Event(), [], []
    lock = threading.Lock()

    def stage(package: PackageRef) -> None:
        with lock:
            under_way.append(package.uri)
            most.append(len(under_way))
        assert gate.wait(20)
        with lock:
            under_way.remove(package.uri)

    woken = threading.Semaphore(0)
    uploads = Uploads(stage, woken.release)
    packages = [PackageRef(uri=f"gcs://{n}.zip", path=Path()) for n in range(6)]
    assert not any(uploads.ready([one]) for one in packages)
    uploads.sweep()
    assert not uploads.ready(packages)
    until(lambda: len(under_way) == AT_ONCE, 10, "as many as may")
    gate.set()
    for _ in packages:
        assert woken.acquire(timeout=10)
    assert uploads.ready(packages) and uploads.ready([]) and max(most) == AT_ONCE and len(most) == 6
    uploads.sweep()
    uploads.sweep()
    uploads.ready(packages[:1])
    assert woken.acquire(timeout=10) and len(most) == 7, "forgotten once nobody asks: Ray may have dropped it"
