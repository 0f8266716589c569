"""The unmodified `ray job` CLI and `JobSubmissionClient` against the front door's real socket (S9).

The control plane is the in-memory one, so that a test can hold a job at an exact state; tests/ray has the same
commands over the real pool.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen
from typing import Any

import pytest
from frontdoor_world import Script, World, world
from waiting import until

from moorage.runtime.control import api

RAY = Path(sys.executable).with_name("ray")
RESERVED = ("RAY_", "MOORAGE_")


class Stage:
    """A world on a loop of its own, and the stock CLI as a subprocess."""

    def __init__(self, door: World, loop: asyncio.AbstractEventLoop) -> None:
        self.door, self.loop = door, loop
        self.address = f"http://127.0.0.1:{door.client.port}"

    def environment(self, who: str = "ops") -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(RESERVED)}
        return kept | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": f"{who}-token",
            "RAY_API_SERVER_ADDRESS": self.address,
        }

    def start(self, *arguments: str, who: str = "ops", extra: dict[str, str] | None = None) -> Popen[str]:
        return Popen(
            [str(RAY), "job", *arguments],
            env=self.environment(who) | (extra or {}),
            stdout=PIPE,
            stderr=STDOUT,
            text=True,
            start_new_session=True,
        )

    def ray(self, *arguments: str, who: str = "ops", extra: dict[str, str] | None = None) -> tuple[int, str]:
        process = self.start(*arguments, who=who, extra=extra)
        try:
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
        return process.returncode, output

    def run(self, job_id: str, script: Script) -> None:
        """Move a waiting job to running with this log."""
        self.door.dashboard.scripts[self.door.control.attempt(job_id)] = script
        self.door.control.to(job_id, api.RUNNING)

    def finish(self, job_id: str, script: Script, state: str = api.SUCCEEDED, exit_code: int = 0) -> None:
        script.ended = True
        self.door.control.end_attempt(job_id)
        self.door.control.to(job_id, state, f"exit code {exit_code}", exit_code)


@contextmanager
def serving(home: Path, **settings: Any) -> Iterator[Stage]:
    loop = asyncio.new_event_loop()
    ready, done = threading.Event(), asyncio.Event()
    found: list[World] = []

    async def main() -> None:
        async with world(home, **settings) as door:
            found.append(door)
            ready.set()
            await done.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),), daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield Stage(found[0], loop)
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(20)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with serving(tmp_path) as found:
        yield found


class Printed:
    """What a process prints, readable while it runs."""

    def __init__(self, process: Popen[str]) -> None:
        self._process = process
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line)

    def text(self) -> str:
        return "".join(self._lines)

    def to_the_end(self, timeout: float = 60) -> str:
        self._process.wait(timeout)
        self._reader.join(timeout)
        return self.text()


def submitted(stage: Stage) -> str:
    return until(lambda: next(iter(stage.door.control.views), ""), 60, "a job was submitted")


def test_submit_waits_and_follows_to_the_end(stage: Stage, tmp_path: Path) -> None:
    """S9: `ray job submit` uploads, waits in our queue, follows, exits 0."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "train.py").write_text("print('the user's own train.py')")
    process = stage.start(
        "submit",
        "--working-dir",
        str(folder),
        "--metadata-json",
        '{"team": "ops"}',
        "--",
        "python",
        "train.py",
    )
    job_id = submitted(stage)
    asked = stage.door.control.views[job_id].submission
    assert asked.entrypoint == "python train.py" and list(asked.packages) == [
        asked.runtime_env["working_dir"]
    ]
    printed = Printed(process)
    until(lambda: "waiting: team ops uses 4 of 4 GPUs" in printed.text(), 60, "the client shows the reason")
    script = Script(b"epoch 1\n")
    stage.run(job_id, script)
    script.data += b"epoch 2\n"
    stage.finish(job_id, script)
    output = printed.to_the_end()
    assert process.returncode == 0, output
    assert "epoch 1\nepoch 2\n" in output
    assert f"Job '{job_id}' succeeded" in output


def test_a_failing_job_makes_the_cli_exit_1(stage: Stage) -> None:
    process = stage.start("submit", "--submission-id", "fails", "--", "false")
    submitted(stage)
    script = Script(b"Traceback\n")
    stage.run("fails", script)
    stage.finish("fails", script, api.FAILED, 1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "Job 'fails' failed" in output and "exit code 1" in output


def test_a_cut_connection_is_not_success(stage: Stage) -> None:
    """The front door dies under a follower while the job runs: the CLI must not exit 0."""
    process = stage.start("submit", "--submission-id", "cut", "--", "sleep", "100")
    submitted(stage)
    stage.run("cut", Script(b"working\n"))
    assert process.stdout is not None
    until(lambda: "working" in process.stdout.readline(), 60, "the log is followed")
    asyncio.run_coroutine_threadsafe(stage.door.client.server.close(), stage.loop).result(20)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0, output


def test_status_logs_list_stop_delete(stage: Stage) -> None:
    """Each command of the CLI on a job that waits, then on one that has ended."""
    code, output = stage.ray("submit", "--no-wait", "--submission-id", "one", "--", "python", "-c", "1")
    assert code == 0, output
    code, output = stage.ray("status", "one")
    assert code == 0 and "PENDING" in output and "team ops uses 4 of 4 GPUs; waits for 2" in output
    code, output = stage.ray("delete", "one")
    assert code == 1 and "has not ended" in output
    code, output = stage.ray("stop", "one")
    assert code == 0 and "was stopped" in output
    code, output = stage.ray("logs", "one")
    assert code == 0
    code, output = stage.ray("list")
    assert code == 0 and "submission_id='one'" in output
    code, output = stage.ray("delete", "one")
    assert code == 0 and "deleted successfully" in output
    code, output = stage.ray("status", "one")
    assert code == 1 and "404" in output and "No job 'one'" in output


def test_what_the_client_prints_when_refused(stage: Stage) -> None:
    """The reason must reach the user's screen, whatever Ray wraps around it."""
    code, output = stage.ray("submit", "--no-wait", "--", "x", who="nobody")
    assert code == 1 and "This token is not known" in output
    code, output = stage.ray("submit", "--no-wait", "--metadata-json", '{"team": "research"}', "--", "x")
    assert code == 1 and "ops may not submit for team 'research'" in output
    code, output = stage.ray("submit", "--no-wait", "--metadata-json", '{"worker": "2"}', "--", "x")
    assert code == 1 and "did you mean 'workers'?" in output
    code, output = stage.ray(
        "submit", "--no-wait", "--runtime-env-json", '{"env_vars": {"RAY_AUTH_TOKEN": "x"}}', "--", "x"
    )
    assert code == 1 and "RAY_AUTH_TOKEN is reserved" in output
    assert not stage.door.control.views


def test_headers_instead_of_ray_auth(stage: Stage) -> None:
    """`--headers` and RAY_JOB_HEADERS carry the token and Moorage-* as well."""
    headers = json.dumps({"Authorization": "Bearer research-token", "Moorage-Team": "research"})
    code, output = stage.ray(
        "submit", "--no-wait", "--headers", headers, "--", "x", extra={"RAY_AUTH_MODE": ""}
    )
    assert code == 0, output
    code, output = stage.ray("list", extra={"RAY_JOB_HEADERS": headers, "RAY_AUTH_MODE": ""})
    assert code == 0 and "SUBMISSION" in output
    assert {view.team for view in stage.door.control.views.values()} == {"research"}


def test_a_package_over_the_limit_is_a_clear_error(tmp_path: Path) -> None:
    """Bad input: a working_dir over the front door's limit. The client sends all of it before it reads the answer."""
    home, folder = tmp_path / "home", tmp_path / "big"
    home.mkdir()
    folder.mkdir()
    (folder / "data.bin").write_bytes(os.urandom(40 << 20))
    with serving(home, max_package=1 << 20) as stage:
        code, output = stage.ray("submit", "--no-wait", "--working-dir", str(folder), "--", "x")
        assert code == 1 and "The package is larger than 1 MiB" in output and "413" in output
        assert not stage.door.control.views and not list((home / "packages").glob("_ray*"))


def test_the_sdk(stage: Stage, tmp_path: Path) -> None:
    """`JobSubmissionClient` in a process of its own: submit, details, list, tail, logs."""
    script = tmp_path / "sdk.py"
    script.write_text(
        "import asyncio, sys\n"
        "from ray.job_submission import JobStatus, JobSubmissionClient\n"
        "client = JobSubmissionClient(sys.argv[1], metadata={'note': 'from the sdk'})\n"
        "job = client.submit_job(entrypoint='python train.py', entrypoint_num_cpus=1, entrypoint_num_gpus=0.5,\n"
        "    entrypoint_memory=1 << 20, entrypoint_resources={'shelf': 1}, metadata={'workers': '2'})\n"
        "assert client.get_job_status(job) == JobStatus.PENDING\n"
        "assert client.list_jobs()[0].submission_id == job\n"
        "assert client.get_job_logs(job) == ''\n"
        "print('JOB', job, flush=True)\n"
        "async def tail():\n"
        "    return [text async for text in client.tail_job_logs(job)]\n"
        "print(asyncio.run(tail()))\n"
        "assert client.get_job_status(job) == JobStatus.SUCCEEDED\n"
        "assert client.get_job_info(job).metadata == {'workers': '2', 'note': 'from the sdk'}\n"
        "assert client.delete_job(job)\n"
    )
    process = Popen(
        [sys.executable, str(script), stage.address],
        env=stage.environment(),
        stdout=PIPE,
        stderr=STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    until(
        lambda: lines.append(process.stdout.readline()) or lines[-1].startswith("JOB"),
        60,
        "the job was submitted",
    )
    job_id = submitted(stage)
    asked = stage.door.control.views[job_id].submission
    assert (asked.entrypoint_num_gpus, asked.entrypoint_memory) == (0.5, 1 << 20)
    assert asked.entrypoint_resources == {"shelf": 1}
    log = Script(b"hello\n")
    stage.run(job_id, log)
    stage.finish(job_id, log)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "hello" in output


def test_a_working_dir_of_500_mb_is_refused(stage: Stage, tmp_path: Path) -> None:
    """S9: below the client's own limit, above ours: one clear sentence, no job, nothing left in the spool."""
    folder = tmp_path / "work"
    folder.mkdir()
    block = os.urandom(1_000_000)  # further apart than deflate's window: it stays 500 MB in the zip
    with (folder / "data.bin").open("wb") as file:
        for _ in range(500):
            file.write(block)
    process = stage.start("submit", "--no-wait", "--working-dir", str(folder), "--", "python", "x.py")
    output, _ = process.communicate(timeout=150)
    assert process.returncode == 1, output
    assert "The package is larger than 200 MiB" in output and "too-large" in output, output[-2000:]
    assert not stage.door.control.views
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".zip" or "tmp" in path.name]
