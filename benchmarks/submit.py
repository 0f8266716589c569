"""From `submit` to the entrypoint's first moment: through Moorage, and straight to Ray, on the same raylets.

One client (Ray's own), one pool of two raylets, in turn. The entrypoint writes down when it began; the clock is the
machine's, so both ends are one clock. Each job has ended, and its record is seen to be final, before the next is sent.
The front door's jobs are admitted under a quota, written down durably, planned and bound; Ray's are not.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from _frame import Figure, interleaved, main, percentile

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from pools import Pool, clean_environment, discard, start  # noqa: E402
from waiting import until  # noqa: E402

TARGET = 1 / 1.15
"""At most 1.15 times the time of a direct submission."""


class Side:
    """One of the two ways to submit. `seconds` is every wait so far."""

    def __init__(self, pool: Pool, address: str, token: str, name: str) -> None:
        from ray.job_submission import JobSubmissionClient

        self.client = JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"})
        self.seconds: list[float] = []
        self._environment = clean_environment() | {
            "RAY_API_SERVER_ADDRESS": address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
        }
        self._files = (pool.home / f"{name}-{n}.txt" for n in itertools.count())

    def by_sdk(self) -> float:
        """Seconds from `submit_job` to the entrypoint."""

        def submit(entrypoint: str) -> str:
            return str(self.client.submit_job(entrypoint=entrypoint))

        return self._timed(submit)

    def by_command(self) -> float:
        """Seconds from the start of `ray job submit --no-wait`, its own start included."""

        def submit(entrypoint: str) -> str:
            ray = str(Path(sys.executable).with_name("ray"))
            name = f"c-{time.time_ns()}"
            command = [ray, "job", "submit", "--no-wait", "--submission-id", name, "--"]
            command += ["sh", "-c", entrypoint]
            subprocess.run(command, env=self._environment, check=True, capture_output=True)
            return name

        return self._timed(submit)

    def _timed(self, submit: Callable[[str], str]) -> float:
        file = next(self._files)
        began = time.time_ns()
        job = submit(f"date +%s%N > {file}")
        until(lambda: file.exists() and file.read_text().strip(), 60, f"{job} has begun", every=0.02)
        until(lambda: self.client.get_job_status(job).is_terminal(), 60, f"{job} has ended", every=0.05)
        self.seconds.append((int(file.read_text()) - began) / 1e9)
        return self.seconds[-1]


def measure(quick: bool) -> list[Figure]:
    os.environ["RAY_AUTH_MODE"] = "token"  # else Ray's client reads no headers of ours
    pool = start({"nodes": 2, "logical_gpus": 4, "teams": "teams: {ops: {quota: 8}}"})
    try:
        dashboard = pool.record().dashboard
        door = Side(pool, pool.url, pool.token("ops"), "door")
        ray = Side(pool, dashboard, pool.files.ray_token.read_text().strip(), "ray")
        found = []
        for what, ours, peer, rounds in (
            ("SDK", door.by_sdk, ray.by_sdk, 3 if quick else 25),
            ("ray job submit", door.by_command, ray.by_command, 1 if quick else 9),
        ):
            door.seconds.clear(), ray.seconds.clear()
            one, other = interleaved(ours, peer, rounds)
            print(f"{what}: {one:.3f} s, straight to Ray {other:.3f} s", file=sys.stderr, flush=True)
            tail = percentile(door.seconds, 90), percentile(ray.seconds, 90)
            name = "Ray's own Jobs API on the same raylets"
            found += [
                Figure(
                    metric=f"{what}, submit to entrypoint: median s",
                    ours=one,
                    better="lower",
                    peer=other,
                    peer_name=name,
                    target=TARGET,
                ),
                Figure(metric=f"{what}: p90 s", ours=tail[0], better="lower", peer=tail[1], peer_name=name),
            ]
        return found
    finally:
        discard(pool)


if __name__ == "__main__":
    raise SystemExit(main(measure, "Submit to entrypoint, through the front door and straight to Ray"))
