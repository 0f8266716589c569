"""G6: random deaths, stalls and returns of control planes over one store and one pool, on both databases.

Whatever happens to whom: what was acknowledged runs, once; and no control plane acts on the cluster after another one
has begun to. Judged by the cluster's own journal. A slice in every test run, the rest in `make soak`.
"""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
from planes import Nursery, Plane, Site
from waiting import until

SETTINGS = "tick_ms: 50\ntakeover_s: 2\n"
LONG = pytest.mark.soak


class Churn:
    """One life of `site`, with as many control planes as `planes`."""

    def __init__(self, site: Site, seed: int, planes: int) -> None:
        self.site, self.rng = site, random.Random(seed)
        self.planes = [site.plane(f"plane-{n}").start("--standby") for n in range(planes)]
        self.stopped: dict[str, float] = {}
        self.asked = 0
        self.acknowledged: list[str] = []
        self.did: list[str] = []

    def step(self) -> None:
        rng = self.rng
        if any(plane.poll() is None and plane.name not in self.stopped for plane in self.planes):
            # Somebody runs, so somebody leads soon: a step without a leader would prove nothing.
            until(lambda: any(plane.ready() for plane in self.planes), 30, f"one to lead after {self.did}")
        for _ in range(rng.choice((1, 2, 3))):
            self.submit(rng.choice(self.planes))
        plane = rng.choice(self.planes)
        if plane.poll() is not None:
            self.did.append(f"start {plane.name}")
            plane.start("--standby", wait=False)
        elif plane.name in self.stopped:
            if time.monotonic() - self.stopped[plane.name] > rng.choice((0.1, 4.0)):
                self.wake(plane)
        else:
            number = rng.choice((None, None, signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM))
            if number is not None:
                self.did.append(f"{number.name} {plane.name}")
                plane.signal(number)
                if number is signal.SIGSTOP:
                    self.stopped[plane.name] = time.monotonic()
                elif number is signal.SIGKILL:
                    plane.wait(10)

    def wake(self, plane: Plane) -> None:
        self.did.append(f"wake {plane.name}")
        self.stopped.pop(plane.name, None)
        with contextlib.suppress(ProcessLookupError):
            plane.signal(signal.SIGCONT)

    def submit(self, plane: Plane) -> None:
        """Counted when it was acknowledged; a job that was not may be there or not, and may run once."""
        job = f"job-{self.asked}"
        self.asked += 1
        asked = {"team": "ops", "gpus_per_worker": "0.5", "sim.seconds": "0.3"}
        body = {"entrypoint": "true", "submission_id": job, "metadata": asked}
        answer = plane.request("POST", "/api/jobs/", json=body, timeout=1)
        if answer is not None and answer.status_code == 200:
            self.acknowledged.append(job)

    def finish(self) -> None:
        for plane in self.planes:
            self.wake(plane)
        leader: list[Plane] = []

        def led() -> bool:
            for plane in self.planes:
                if plane.poll() is not None:
                    plane.start("--standby", wait=False)
            leader[:] = [plane for plane in self.planes if plane.ready()]
            return len(leader) == 1

        until(led, 30, f"one to lead after {self.did}", every=0.5)

        def over() -> dict[str, str]:
            found = leader[0].jobs() if led() else {}
            return found if all(state == "SUCCEEDED" for state in found.values()) else {}

        found = until(over, 60, f"every job to end after {self.did}", every=0.5)
        launches = self.site.launches()
        assert set(found) >= set(self.acknowledged), f"lost after {self.did}"
        twice = {name: count for name, count in launches.items() if count > 1 or not name.endswith("-1")}
        assert not twice, f"started again: {twice} after {self.did}"
        assert {name.rpartition("-")[0] for name in launches} == set(found)
        turns = [pid for pid, _ in groupby(one["by"] for one in self.site.effects())]
        assert len(turns) == len(set(turns)), f"a replaced leader acted: {turns} after {self.did}"
        print(
            f"{len(self.acknowledged)} acknowledged, {len(turns)} leaders acted, after {len(self.did)} faults"
        )


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("where", "steps", "seed"),
    [
        ("sqlite", 6, 1),
        ("postgresql", 6, 2),
        *[pytest.param(db, 80, seed, marks=LONG) for db in ("sqlite", "postgresql") for seed in (3, 4)],
    ],
)
def test_no_job_is_lost_or_doubled_whoever_dies_or_stalls(
    tmp_path: Path, nursery: Nursery, where: str, steps: int, seed: int, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("postgresql").database(tmp_path) if where == "postgresql" else ""
    with Site(tmp_path, nursery, url, SETTINGS) as site:
        churn = Churn(site, seed, planes=2 if where == "sqlite" else 3)
        for _ in range(steps):
            churn.step()
        churn.finish()
