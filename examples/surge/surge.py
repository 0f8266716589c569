"""An inference surge takes GPUs from preemptible training and gives them back: the whole of it, on a pool that is up.

    moorage up --nodes 1 --logical-gpus 4 --teams teams.yaml --pool pool.yaml
    python surge.py                   # writes surge.json, surge.svg and surge-narrow.svg here

The endpoint starts with one GPU, training borrows the other three, then more requests come than one replica answers.
What is drawn and reported is what happened: the pool's own record of leases and notices, and what each request got.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from moorage.errors import Unavailable
from moorage.runtime.client import Client
from moorage.runtime.pool.home import PoolHome

HERE = Path(__file__).resolve().parent
T = TypeVar("T")


@dataclass
class Requests:
    """Sent at `rate` a second, whether or not the last were answered: (when, seconds, status; 0 = no answer)."""

    url: str
    token: str
    rate: float = 0.0
    sent: list[tuple[float, float, int]] = field(default_factory=list)
    ended: bool = False

    async def run(self) -> None:
        connector = aiohttp.TCPConnector(limit=0)
        headers = {"Authorization": f"Bearer {self.token}"}
        async with aiohttp.ClientSession(
            connector=connector, headers=headers, timeout=aiohttp.ClientTimeout(total=120)
        ) as http:
            under_way: set[asyncio.Task[None]] = set()
            while not self.ended:
                if self.rate:
                    task = asyncio.create_task(self._one(http))
                    under_way.add(task)
                    task.add_done_callback(under_way.discard)
                await asyncio.sleep(1 / self.rate if self.rate else 0.05)
            await asyncio.gather(*under_way)

    async def _one(self, http: aiohttp.ClientSession) -> None:
        wall, began, status = time.time(), time.perf_counter(), 0
        try:
            async with http.post(f"{self.url}/predict", json={"distance": 80}) as answer:
                await answer.read()
                status = answer.status
        except (aiohttp.ClientError, TimeoutError):
            pass
        self.sent.append((wall, time.perf_counter() - began, status))


@dataclass
class Teams:
    """The pool as the two teams see it."""

    client: Client
    serving: Client
    training: Client

    def state(self, job: str) -> str:
        return str(self.client.job(job)["state"])

    def scaling(self, name: str) -> dict[str, Any]:
        return next((one["scaling"] or {} for one in self.client.endpoints() if one["name"] == name), {})

    def replicas(self, name: str) -> int:
        return sum(one["state"] == "SERVING" for one in self.scaling(name).get("replicas", []))


async def until(predicate: Callable[[], T], within_s: float, what: str) -> T:
    deadline = time.monotonic() + within_s
    while True:
        with contextlib.suppress(Unavailable):  # a pool that is very busy answers later
            if found := await asyncio.to_thread(predicate):
                return found
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {within_s:g} s for {what}")
        await asyncio.sleep(0.25)


def submit(client: Client, job: str, metadata: dict[str, str], *command: str) -> None:
    client.submit(
        {"entrypoint": shlex.join([sys.executable, *command]), "submission_id": job, "metadata": metadata}
    )


async def surge(
    teams: Teams,
    requests: Requests,
    options: argparse.Namespace,
    names: tuple[str, str],
    marks: dict[str, float],
) -> None:
    """One replica, training beside it; the surge; calm; training to its end."""
    endpoint, training = names
    submit(teams.serving, endpoint, {"workers": "1", "gpus_per_worker": "1"}, str(HERE / "endpoint.py"))
    await until(lambda: teams.replicas("trips") == 1, 180, "the endpoint")
    steps = Path(options.data) / "runs" / training / "steps-rank0.jsonl"
    asked = {"workers": "3", "gpus_per_worker": "1", "preemptible": "true"}
    submit(teams.training, training, asked, str(HERE / "train.py"), str(options.steps))
    requests.rate = options.calm
    await until(lambda: steps.exists() and steps.stat().st_size > 1000, 240, "training to run")
    await asyncio.sleep(options.before)
    requests.rate, marks["surge"] = options.surge, time.time()
    print("surge", flush=True)
    await until(lambda: teams.replicas("trips") > 1, 180, "a second replica")
    print("a second replica serves", flush=True)
    await asyncio.sleep(options.during)
    requests.rate, marks["calm"] = options.calm, time.time()
    print("calm", flush=True)
    await until(
        lambda: teams.state(training) in ("STARTING", "RUNNING", "SUCCEEDED"), 180, "training to resume"
    )
    await until(lambda: teams.state(training) == "SUCCEEDED", 400, "training to end")
    marks["end"] = time.time()


async def run(options: argparse.Namespace) -> dict[str, Any]:
    home = Path(options.home or os.environ.get("MOORAGE_HOME") or "~/.moorage").expanduser()
    options.data = str(PoolHome(home).data)
    stamp = time.strftime("%H%M%S")
    names, marks = (f"trips-{stamp}", f"train-{stamp}"), dict[str, float]()
    with (
        Client.from_env(home) as admin,
        Client.from_env(home, "serving") as serving,
        Client.from_env(home, "training") as training,
    ):
        teams = Teams(admin, serving, training)
        requests = Requests(f"{admin.url}/endpoints/trips", serving.token)
        sending = asyncio.create_task(requests.run())
        try:
            await surge(teams, requests, options, names, marks)
        finally:
            requests.ended = True
            await sending
            for job in names[1:] if options.keep else names:
                (serving if job == names[0] else training).stop(job)
        events = [one for job in names for one in _events(admin, job)]
    jobs = {"endpoint": names[0], "training": names[1]}
    return {**jobs, "marks": marks, "events": events, "requests": requests.sent}


def _events(client: Client, job: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while more := client.events(job, after=found[-1]["seq"] if found else 0, limit=1000):
        found += more
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, help="the pool's folder (default: MOORAGE_HOME, ~/.moorage)")
    parser.add_argument("--steps", type=int, default=800, help="of the training job")
    parser.add_argument("--calm", type=float, default=2, help="requests a second before and after")
    parser.add_argument("--surge", type=float, default=14, help="requests a second in the surge")
    parser.add_argument("--before", type=float, default=8, help="seconds of training before it")
    parser.add_argument("--during", type=float, default=20, help="seconds with more than one replica")
    parser.add_argument("--keep", action="store_true", help="leave the endpoint running")
    parser.add_argument("--out", type=Path, default=Path())
    options = parser.parse_args()
    from moorage.runtime.telemetry.surge import Story, draw

    found = asyncio.run(run(options))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "surge.json").write_text(json.dumps(found))
    story = Story.of(found)
    for name, width in (("surge.svg", 860.0), ("surge-narrow.svg", 350.0)):
        picture = draw(story, width=width)
        paper = '<rect width="100%" height="100%" fill="#FFFFFF"/>'  # a page may be dark
        (options.out / name).write_text(picture.replace(">", f">{paper}", 1))
    print(
        json.dumps(
            story.figures() | {"statuses": Counter(status for *_, status in found["requests"])}, indent=1
        )
    )


if __name__ == "__main__":
    main()
