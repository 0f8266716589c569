"""S9: what Ray never booked is seen on the devices themselves.

The driver's library is a stand-in (there is no GPU), its list of processes is the test's; the processes, their jobs,
the raylet and the SIGKILL are real.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from pools import Pool, discard, short_folder, start
from waiting import until

from moorage.cluster import devices

pytestmark = [
    pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in for the driver's library needs gcc"),
    pytest.mark.skipif(
        not devices._numbers_are_the_machines(),
        reason="in a container only processes that have the driver's files open count",
    ),
]
SCRIPTS = Path(__file__).parent / "scripts"
WITHIN_S = 90.0


@dataclass
class Machine:
    """A pool of one node with two devices, and the file that says what is on them."""

    pool: Pool
    listed: Path

    def put(self, *lines: tuple[int, int, int]) -> None:
        """(device, pid, MiB): all that is on the devices from now on."""
        draft = self.listed.with_suffix(".draft")
        draft.write_text("".join(f"{device} {pid} {mib}\n" for device, pid, mib in lines))
        draft.rename(self.listed)

    def findings(self) -> list[dict[str, Any]]:
        with self.pool.http("admin") as client:
            found: list[dict[str, Any]] = (
                client.get("/moorage/v1/guard").raise_for_status().json()["findings"]
            )
        return found

    def finding(self, kind: str, state: str) -> dict[str, Any]:
        return until(
            lambda: next((f for f in self.findings() if (f["kind"], f["state"]) == (kind, state)), None),
            WITHIN_S,
            f"{kind} {state}",
        )


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    folder = short_folder()
    listed = folder / "on-devices"
    listed.touch()
    command = ["gcc", "-shared", "-fPIC", "-o", folder / "libnvidia-ml.so.1", SCRIPTS / "driver_library.c"]
    subprocess.run(command, check=True, timeout=60)
    guard = "guard: {devices: true, confirm_s: 1, grace_s: 2, interval_ms: 500}"
    environment = {"LD_LIBRARY_PATH": str(folder), "FAKE_NVML_PROCESSES": str(listed)}
    wishes = {
        "nodes": 1,
        "logical_gpus": 2,
        "settings": guard,
        "options": ["--pass-env", "FAKE_NVML_PROCESSES"],
    }
    pool = start(wishes | {"environment": environment})
    yield Machine(pool, listed)
    discard(pool)
    shutil.rmtree(folder)


def pid(path: Path) -> int:
    until(path.exists, WITHIN_S, f"{path.name}")
    return int(path.read_text())


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_processes_beside_their_lease_are_stopped_and_others_go_on(machine: Machine, tmp_path: Path) -> None:
    pool = machine.pool
    entrypoint = shlex.join([sys.executable, str(SCRIPTS / "on_devices.py"), str(tmp_path)])
    body = {"entrypoint": entrypoint, "submission_id": "two", "metadata": {"gpus_per_worker": "1"}}
    with pool.http("ops") as client:
        answer = client.post("/api/jobs/", json=body, timeout=WITHIN_S)
    assert answer.status_code == 200, answer.text
    leased, stray = pid(tmp_path / "leased.pid"), pid(tmp_path / "stray.pid")
    left = psutil.Process(pid(tmp_path / "left.pid"))
    foreign = subprocess.Popen(["sleep", "1000"])
    try:
        with pool.http("ops") as client:
            devices = client.get("/moorage/v1/status").raise_for_status().json()["devices"]
        (device,) = (one["index"] for one in devices if any(held["job"] == "two" for held in one["holders"]))
        other = 1 - device
        machine.put(
            (device, leased, 900), (other, stray, 700), (other, foreign.pid, 50), (device, left.pid, 30)
        )
        warned = machine.finding("unbooked-device", "STOPPED")
        assert warned["job"] == "two" and warned["team"] == "ops" and warned["target"] == "process"
        assert warned["detail"]["pid"] == stray and "700 MiB of node-0/" in warned["message"]
        until(lambda: not psutil.pid_exists(stray), 15, "the process that asked for no GPU to be gone")
        before = lines(tmp_path / "leased")
        until(lambda: lines(tmp_path / "leased") > before, 15, "the leased actor to go on")
        assert left.is_running(), "its job runs, and the device is leased to that job"

        (tmp_path / "end").touch()
        with pool.http("ops") as client:
            until(
                lambda: client.get("/moorage/v1/jobs/two").raise_for_status().json()["state"] == "SUCCEEDED",
                WITHIN_S,
                "the end",
            )
        assert left.is_running(), "it outlived its job"
        machine.put((device, left.pid, 30), (other, foreign.pid, 50))
        orphan = machine.finding("orphan-process", "STOPPED")
        assert orphan["detail"]["submission"] == "two-1" and orphan["detail"]["pid"] == left.pid
        until(lambda: not left.is_running() or left.status() == psutil.STATUS_ZOMBIE, 15, "the orphan to end")

        mine = machine.finding("foreign-process", "WARNED")
        assert mine["detail"]["pid"] == foreign.pid and mine["stops_in_ns"] is None
        assert foreign.poll() is None, "what came from no job is only warned about"
        kinds = {one["kind"] for one in machine.findings()}
        assert kinds == {"unbooked-device", "orphan-process", "foreign-process"}, (
            "and the leased one never was"
        )
    finally:
        machine.put()
        foreign.kill()
        foreign.wait()
        if left.is_running():
            left.kill()
