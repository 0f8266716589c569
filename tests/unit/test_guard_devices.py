"""S9: processes on devices: whose they are, what is said of them, and that only the one that was meant is ended."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest
from waiting import until

from moorage.cluster import devices
from moorage.cluster.holdings import RawActor, RawDriver, RawGroup, RawProcess, Records, assemble
from moorage.scheduling.guard import Cover, GuardPolicy, Holding, Kind, Mode, Seen, Target, judge

AGENT, USER, ENDED = "01000000", "02000000", "03000000"
LEASED = {"train-1": Cover(job="train", team="ops", parts={("node-1", 0): 1000})}
DRIVERS = {
    AGENT: RawDriver(submission="", dead=False),
    USER: RawDriver(submission="train-1", dead=False),
    ENDED: RawDriver(submission="", dead=True),
}


def process(pid: int, device: int = 1, /, **more: Any) -> RawProcess:
    values = {"device": device, "pid": pid, "started": 5, "mib": 700, "command": "python x.py", "job": ""}
    return RawProcess(**{**values, "submission": "", **more})


def actor(pid: int, /, **more: Any) -> RawActor:
    values = {"id": f"id-{pid}", "job": USER, "name": "", "namespace": "user", "node": "n1", "pid": pid}
    rest = {"detached": False, "since_ms": 5, "group": "", "worker": "w", "owner_worker": "", "gpus": {}}
    return RawActor(**{**values, **rest, **more})


def seen(*running: RawProcess, **more: Any) -> Seen:
    values = {"nodes": {"n1": "node-1"}, "drivers": DRIVERS, "own_job": AGENT, "deployers": {}}
    return assemble(Records(**{**values, "processes": {"n1": running}, **more}), 10**9, True, {})


def said(look: Seen) -> dict[str, Kind]:
    return {one.target_id: one.kind for one in judge(look, LEASED) if one.target is Target.PROCESS}


def test_a_process_on_its_jobs_device_is_fine_and_on_another_is_not() -> None:
    look = seen(process(7, 0, submission="train-1"), process(8, 1, submission="train-1"))
    assert said(look) == {"node-1/8/5": Kind.UNBOOKED_DEVICE}
    (found,) = judge(look, LEASED)
    assert (found.job, found.team) == ("train", "ops")
    assert found.text() == (
        "process 8 ('python x.py') has 700 MiB of node-1/1, which job train has not leased and Ray has not given it"
    )


def test_where_ray_has_booked_the_device_the_process_is_not_judged_a_second_time() -> None:
    """Ray's own choice of a device, and what a rogue holds: the actor is what is found."""
    rogue = actor(7, job=ENDED, gpus={1: 1.0})
    look = seen(process(7), process(9, job=ENDED), actors=[rogue])
    assert said(look) == {} and [one.kind for one in judge(look, LEASED)] == [Kind.DEAD_OWNER]


@pytest.mark.parametrize(("inside", "kinds"), [({0: 1.0}, {"node-1/8/5": Kind.UNBOOKED_DEVICE}), ({}, {})])
def test_a_group_explains_the_devices_of_the_actors_in_it_and_all_while_they_are_not_known(
    inside: dict[int, float], kinds: dict[str, Kind]
) -> None:
    group = RawGroup(
        id="g", job=USER, name="", namespace="", detached=False, since_ms=1, bundles=(("n1", 1.0),)
    )
    look = seen(
        process(8, 1, submission="train-1"), groups=[group], actors=[actor(7, group="g", in_group=inside)]
    )
    assert said(look) == kinds


def test_an_actors_process_is_its_jobs_whatever_its_environment_says() -> None:
    assert said(seen(process(7, job=ENDED), actors=[actor(7)])) == {"node-1/7/5": Kind.UNBOOKED_DEVICE}


@pytest.mark.parametrize(
    ("of", "kind"),
    [
        ({"job": ENDED}, Kind.ORPHAN_PROCESS),
        ({"submission": "train-0"}, Kind.ORPHAN_PROCESS),
        ({"job": USER, "submission": "train-1"}, Kind.UNBOOKED_DEVICE),
        ({}, Kind.FOREIGN_PROCESS),
    ],
)
def test_whose_process_it_is_decides_what_is_said(of: dict[str, str], kind: Kind) -> None:
    assert said(seen(process(8, **of))) == {"node-1/8/5": kind}


def test_a_living_driver_that_nobody_submitted_has_no_lease() -> None:
    drivers = {**DRIVERS, USER: RawDriver(submission="", dead=False)}
    assert said(seen(process(8, job=USER), drivers=drivers)) == {"node-1/8/5": Kind.NO_LEASE}


def test_what_the_agent_made_for_nobody_known_is_left_alone() -> None:
    assert said(seen(process(8, job=AGENT))) == {}


def test_one_process_on_two_devices_is_one_finding() -> None:
    (held,) = seen(process(8, 0), process(8, 1, mib=300)).holdings
    assert isinstance(held, Holding) and held.mib == 1000 and [part.device for part in held.parts] == [0, 1]


def test_the_machines_own_is_only_warned_about_unless_asked_for() -> None:
    assert GuardPolicy().mode_of(Kind.FOREIGN_PROCESS) is Mode.WARN
    assert GuardPolicy(modes={Kind.FOREIGN_PROCESS: Mode.STOP}).mode_of(Kind.FOREIGN_PROCESS) is Mode.STOP


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, {0: 0, 1: 1, 2: 2}),
        ("2,0", {2: 0, 0: 1}),
        ("GPU-b", {1: 0}),
        ("", {}),
        ("7,GPU-none,1", {1: 2}),
    ],
)
def test_rays_index_is_the_place_among_the_visible_devices(
    visible: str | None, expected: dict[int, int]
) -> None:
    assert devices.order(visible, ["GPU-a", "GPU-b", "GPU-c"]) == expected


def test_only_the_process_that_was_meant_is_ended() -> None:
    victim = subprocess.Popen(["sleep", "100"])
    try:
        started = devices._started(victim.pid)
        assert started is not None
        assert not devices.end(victim.pid, started + 1), "another process had that number"
        assert victim.poll() is None
        assert devices.end(victim.pid, started) and victim.wait(10) == -9
        assert not devices.end(victim.pid, started), "it is gone"
    finally:
        victim.kill()
        victim.wait()


def test_a_node_without_the_drivers_library_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_on_devices", lambda: (_ for _ in ()).throw(OSError("no library")))
    assert devices.processes() is None


def test_a_process_of_which_only_the_exit_code_is_left_is_gone() -> None:
    """Nobody has waited for it yet: it holds nothing, and its environment can no longer be read."""
    victim = subprocess.Popen(["sleep", "100"])
    try:
        victim.kill()
        until(lambda: psutil.Process(victim.pid).status() == psutil.STATUS_ZOMBIE, 10, "its end")
        assert devices._started(victim.pid) is None
    finally:
        victim.wait()


def test_in_a_container_the_number_of_a_process_is_not_enough(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """NVML may say the machine's numbers; in the container another process has the same, and would be ended."""
    monkeypatch.setenv(devices.RAYLET, str(os.getpid()))
    monkeypatch.setattr(devices, "_on_devices", lambda: [("GPU-a", [(victim.pid, 64)])])
    monkeypatch.setattr(devices, "order", lambda visible, uuids: {0: 0})
    monkeypatch.setattr(devices, "DRIVERS_FILES", str(tmp_path / "nvidia"))
    for opened, inside, seen in ((None, True, 0), ("nvidia0", True, 1), (None, False, 1)):
        with contextlib.ExitStack() as stack:
            held = stack.enter_context(open(tmp_path / opened, "w")) if opened else None
            victim = subprocess.Popen(["sleep", "60"], stdin=held)
            stack.callback(victim.wait)
            stack.callback(victim.kill)
            monkeypatch.setattr(devices, "_numbers_are_the_machines", lambda here=not inside: here)
            until(lambda: Path(f"/proc/{victim.pid}/cmdline").read_bytes(), 5, "it to run")  # noqa: B023
            found = devices.processes()
            assert found is not None and len(found) == seen
