"""Jobs submitted with the unmodified `ray job submit`, as subprocesses; what they print is followed line by line."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from demo_steps.checks import StepFailed
from demo_steps.pool import Pool, tool

EXAMPLE = Path(__file__).resolve().parents[1]
PREFIX = "@moorage "
_NOISE = re.compile(r"^\s*$|WARNING|INFO|SUCC|^Running entrypoint|^-+$|Next steps|ray job |\x1b")


class Submitted:
    """One running `ray job submit`. `events` are the job's `@moorage` lines; `listen` hears every readable line."""

    def __init__(
        self, job_id: str, step: str, process: subprocess.Popen[str], log: Path, listen: Callable[[str], None]
    ) -> None:
        self.job_id, self.step, self.log = job_id, step, log
        self.events: list[dict[str, Any]] = []
        self.began, self.ended = time.time(), 0.0
        self._process, self._listen = process, listen
        self._news = threading.Condition()
        self._pump = threading.Thread(target=self._read, name=f"log of {job_id}", daemon=True)
        self._pump.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with open(self.log, "w", encoding="utf-8") as log:
            for line in self._process.stdout:
                log.write(line)
                log.flush()
                self._take(line.rstrip("\n"))
        self._process.wait()
        with self._news:
            self.ended = time.time()
            self._news.notify_all()

    def _take(self, line: str) -> None:
        if line.startswith(PREFIX):
            try:
                event = json.loads(line[len(PREFIX) :])
            except ValueError:
                return
            with self._news:
                self.events.append(event)
                self._news.notify_all()
            self._listen(told(event))
        elif not _NOISE.search(line):
            self._listen(line.strip()[:160])

    @property
    def finished(self) -> bool:
        return self.ended > 0

    def latest(self, name: str) -> dict[str, Any] | None:
        """The newest event of this name."""
        with self._news:
            return next((e for e in reversed(self.events) if e["event"] == name), None)

    def event(self, name: str, timeout: float) -> dict[str, Any]:
        """Wait for an event; StepFailed when the job ends or the time is over without it."""
        deadline = time.monotonic() + timeout
        with self._news:
            while True:
                found = next((e for e in reversed(self.events) if e["event"] == name), None)
                if found is not None:
                    return found
                left = deadline - time.monotonic()
                if self.finished or left <= 0:
                    break
                self._news.wait(min(left, 1.0))
        why = (
            f"ended without saying {name!r}"
            if self.finished
            else f"did not say {name!r} within {timeout:.0f} s"
        )
        raise self.failure(why)

    def wait(self, timeout: float) -> None:
        """Until it has succeeded; StepFailed with the end of its log otherwise."""
        deadline = time.monotonic() + timeout
        with self._news:
            while not self.finished and time.monotonic() < deadline:
                self._news.wait(1.0)
        if not self.finished:
            raise self.failure(f"did not end within {timeout:.0f} s")
        if self._process.returncode:
            raise self.failure(f"`ray job submit` ended with exit code {self._process.returncode}")

    def failure(self, why: str) -> StepFailed:
        lines = (
            self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []
        )
        return StepFailed(self.step, f"job {self.job_id} {why}", str(self.log), tuple(lines[-15:]))

    def abandon(self) -> None:
        """Stop following; the job itself goes on, or ends with the pool."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(timeout=10)
        self._pump.join(timeout=10)


def told(event: Mapping[str, Any]) -> str:
    """An event as one short readable line."""
    fields = {
        k: v for k, v in event.items() if k not in ("event", "elapsed_s") and not isinstance(v, (dict, list))
    }
    if "step" in fields and "of" in fields:
        return f"step {fields['step']} of {fields['of']}, loss {fields.get('loss', '')}"
    return f"{event['event']}: " + ", ".join(f"{k} {_short(v)}" for k, v in fields.items())


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= 40 else "…" + text[-39:]


def submit(
    pool: Pool,
    step: str,
    job_id: str,
    team: str,
    command: Sequence[str],
    *,
    logs: Path,
    listen: Callable[[str], None],
    metadata: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
) -> Submitted:
    """Start `ray job submit` as `team`; it follows the job's log until the job ends."""
    asked = [
        *(
            tool("ray"),
            "job",
            "submit",
            "--address",
            pool.url,
            "--submission-id",
            job_id,
            "--log-color",
            "false",
        ),
        *("--working-dir", str(EXAMPLE), *options),
        *(("--metadata-json", json.dumps(metadata)) if metadata else ()),
        *("--", *command),
    ]
    process = subprocess.Popen(
        asked,
        env=pool.environment(team),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        bufsize=1,
        start_new_session=True,
    )
    return Submitted(job_id, step, process, logs / f"{job_id}.log", listen)


def ray_job(pool: Pool, team: str, *arguments: str, log: Path) -> str:
    """What `ray job <arguments>` prints, as `team`."""
    done = subprocess.run(
        [tool("ray"), "job", *arguments, "--address", pool.url],
        env=pool.environment(team),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    printed = done.stdout + done.stderr
    with open(log, "a", encoding="utf-8") as out:
        out.write(f"$ ray job {' '.join(arguments)}\n{printed}[exit {done.returncode}]\n")
    return printed
