"""Churn on a real pool, with kills in between: many short jobs of several teams while processes are SIGKILLed.

What is judged afterwards: the jobs' own files (`diaries`), and Ray's books as a process of its own saw them all along
(`raybooks`). Used by tests/ray/test_soak.py; `make soak` runs ten minutes of it.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from diaries import Job, complaints, read
from pools import Pool, clean_environment
from waiting import until

SCRIPTS = Path(__file__).parent / "ray" / "scripts"
BOOKS = Path(__file__).with_name("raybooks.py")
POOL = {
    "nodes": 3,
    "logical_gpus": 2,
    "teams": "teams: {ops: {quota: 3, limit: 4}, research: {quota: 1, limit: 2}, lab: {quota: 1, limit: 3}}",
    "settings": "{preemption: {grace_s: 2, least_run_s: 0}, infra_attempts: 4, lost_after_ms: 4000}",
}
LIMITS = {"ops": 4000, "research": 2000, "lab": 3000}
FINAL = ("SUCCEEDED", "FAILED", "STOPPED", "QUARANTINED")
STEP_S = 0.25
AGAIN_S = 0.3
SETTLE_S = 240.0
RECOVER_S = 90.0


@dataclass(frozen=True)
class Plan:
    """One run. `kills`: what is killed, and every how many seconds (the first after half of that)."""

    seconds: float
    seed: int = 1
    outstanding: int = 16
    kills: Mapping[str, float] = field(default_factory=lambda: {"control": 25, "agent": 40, "worker": 15})
    poison: float = 0.04
    gangs: float = 0.06
    infra: bool = False
    """The infrastructure may lose attempts by itself: those that the pool says it lost were rightly run again."""


@dataclass
class Asked:
    """One acknowledged job, and what was done to it."""

    kind: str
    team: str
    wanted: tuple[str, ...] = ("SUCCEEDED",)
    excused: int = 0
    preemptible: bool = False
    stopped: bool = False


@dataclass
class Figures:
    """What a run came to. Times in seconds; `complaints` and `violations` must be empty and 0."""

    seconds: float
    jobs: Counter[str] = field(default_factory=Counter)
    tripled: int = 0
    """Jobs that were submitted three times at once."""
    ended: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    worst_recovery: dict[str, float] = field(default_factory=dict)
    observer: dict[str, Any] = field(default_factory=dict)
    violations: list[dict[str, Any]] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The table at the end."""
        seen = self.observer
        rows = [
            ("ran for", f"{self.seconds:.0f} s"),
            ("jobs acknowledged", f"{self.jobs.total()} ({_counts(self.jobs)})"),
            ("submitted three times", str(self.tripled)),
            ("ended as", _counts(self.ended)),
            ("kills", f"{self.kills.total()} ({_counts(self.kills)})"),
            *(
                (f"worst recovery: {name}", f"{worst:.1f} s")
                for name, worst in sorted(self.worst_recovery.items())
            ),
            (
                "looks at Ray's books",
                f"{seen['samples']} at the GCS, {seen['raylet_samples']} at raylets, {seen['blind']} unanswered",
            ),
            ("busiest", f"{seen['busiest'] / 1000:g} GPUs; by team {seen['most']} milli-GPU"),
            ("violations seen", str(len(self.violations))),
            ("jobs lost, doubled", str(len(self.complaints))),
        ]
        return [f"  {name:<28} {value}" for name, value in rows]

    def as_json(self) -> str:
        return json.dumps(vars(self), sort_keys=True)  # asdict() makes a Counter of pairs of a Counter


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counter.most_common())


@contextmanager
def observed(pool: Pool, limits: Mapping[str, int], figures: Figures) -> Any:
    """The observer's process over the body; what it saw is in `figures` afterwards."""
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as out:
        command = [sys.executable, "-P", str(BOOKS), "--gcs", str(pool.files.ray_json)]
        command += ["--limits", json.dumps(limits), "--out", out.name]
        secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(pool.files.ray_token)}
        observer = subprocess.Popen(command, env=clean_environment() | secret)
        try:
            yield observer
            assert observer.poll() is None, f"the observer ended with {observer.returncode}"
        finally:
            observer.send_signal(signal.SIGTERM)
            observer.wait(timeout=30)
        *seen, counted = [
            json.loads(line) for line in Path(out.name).read_text(encoding="utf-8").splitlines()
        ]
        figures.violations, figures.observer = seen, counted


class Churn:
    """`run` once. `say` gets a line of progress every ten seconds."""

    def __init__(
        self, pool: Pool, folder: Path, plan: Plan, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self.pool, self.folder, self.plan, self.say = pool, folder, plan, say
        self.rng = random.Random(plan.seed)
        self.jobs: dict[str, Asked] = {}
        self.figures = Figures(plan.seconds)
        self._calls = ThreadPoolExecutor(max_workers=6)
        self._asking: dict[str, list[Future[None]]] = {}
        self._killing: Future[None] | None = None
        self._killed_at: dict[str, list[tuple[float, int]]] = defaultdict(list)
        self._states: dict[str, str] = {}

    def run(self) -> Figures:
        with observed(self.pool, LIMITS, self.figures):
            self._warm()
            self._churn()
            self._settle()
        self._judge()
        return self.figures

    def _warm(self) -> None:
        """One job of each team, to its end: the planner's kernels may have to be compiled."""
        for team in LIMITS:
            asked, body = self._body(f"{team}-warm", "whole", team)
            self.jobs[f"{team}-warm"] = asked
            self._acknowledged(team, body)
        until(lambda: (self._look(), not self._open())[1], SETTLE_S, "the first jobs to end", every=0.5)

    # -- the time of churn

    def _churn(self) -> None:
        began = time.monotonic()
        due = {name: began + every / 2 for name, every in self.plan.kills.items()}
        told, idle = began, threading.Event()
        while (now := time.monotonic()) - began < self.plan.seconds:
            self._look()
            if self._open() < self.plan.outstanding:
                self._submit()
            if self.rng.random() < 0.02:
                self._stop_one()
            for name, when in due.items():
                if now >= when and (self._killing is None or self._killing.done()):
                    self._kill(name)
                    due[name] = now + self.plan.kills[name]
            if now - told >= 10:
                told = now
                self.say(self._progress(now - began))
            idle.wait(STEP_S)

    def _progress(self, seconds: float) -> str:
        ended = sum(state in FINAL for state in self._states.values())
        kills = self.figures.kills
        return f"{seconds:4.0f} s: {len(self.jobs)} jobs, {ended} ended, {kills.total()} kills ({_counts(kills)})"

    def _open(self) -> int:
        return len(self.jobs) - sum(state in FINAL for state in self._states.values())

    def _submit(self) -> None:
        team = self.rng.choice(("ops", "ops", "research", "lab", "lab"))
        name = f"{team}-{len(self.jobs)}"
        kind = self.rng.choices(
            ("fraction", "whole", "gang", "poison", "failing"),
            (0.45, 0.45 - self.plan.gangs, self.plan.gangs, self.plan.poison, 0.05),
        )[0]
        asked, body = self._body(name, kind, team)
        copies = 3 if self.rng.random() < 0.15 else 1
        self.figures.jobs[kind] += 1
        self.figures.tripled += copies > 1
        self._asking[name] = [self._calls.submit(self._acknowledged, team, body) for _ in range(copies)]
        self.jobs[name] = asked

    def _body(self, name: str, kind: str, team: str) -> tuple[Asked, dict[str, Any]]:
        rng = self.rng
        asked = Asked(kind, team, preemptible=rng.random() < (0.8 if team == "lab" else 0.2))
        metadata = {
            "priority": str(rng.choice((100, 500, 900))),
            "preemptible": str(asked.preemptible).lower(),
        }
        job = ["exec", "sh", str(SCRIPTS / "soak_job.sh"), str(self.folder), str(rng.randrange(4, 30)), "0"]
        more: dict[str, Any] = {"entrypoint_num_gpus": 1}
        if kind == "fraction":
            more = {"entrypoint_num_gpus": rng.choice((0.2, 0.3, 0.5, 0.7))}
        elif kind == "gang":
            job = [sys.executable, str(SCRIPTS / "soak_gang.py"), str(self.folder), str(rng.randrange(2, 10))]
            most = LIMITS[team] // 1000  # a gang beyond its team's limit can never start, and is refused
            metadata |= {
                "workers": str(rng.choice((2, min(3, most)))),
                "gpus_per_worker": "1",
                "cpus_per_worker": "0",
            }
            more = {}
        elif kind == "poison":
            job[-2:], asked.wanted, asked.excused = ["1", "poison"], ("QUARANTINED",), 3
        elif kind == "failing":
            job[-2:], asked.wanted, asked.excused = ["1", "7"], ("FAILED",), 1
            metadata["max_attempts"] = "2"
        entrypoint = "exec " + shlex.join(job[1:]) if job[0] == "exec" else shlex.join(job)
        return asked, {"submission_id": name, "entrypoint": entrypoint, "metadata": metadata, **more}

    def _acknowledged(self, team: str, body: dict[str, Any]) -> None:
        """As a client that never gives up: the same id until somebody says that it is there."""
        idle = threading.Event()
        while True:
            with suppress(httpx.TransportError), self.pool.http(team) as door:
                answer = door.post("/api/jobs/", json=body)
                if answer.status_code == 200:
                    return
                assert answer.status_code >= 500, answer.text
            idle.wait(AGAIN_S)

    def _stop_one(self) -> None:
        open_ = [n for n in self.jobs if n not in self._asking and self._states.get(n) not in FINAL]
        victims = [name for name in open_ if self.jobs[name].kind in ("fraction", "whole")]
        if not victims:
            return
        name = self.rng.choice(victims)
        with suppress(httpx.TransportError), self.pool.http("admin") as door:
            # Acknowledged or not (it may die in the answer): it may have ended before.
            self.jobs[name].stopped = True
            self.jobs[name].wanted = ("STOPPED", "SUCCEEDED")
            door.post(f"/api/jobs/{name}/stop", timeout=5)

    def _look(self) -> None:
        for name, calls in list(self._asking.items()):
            if all(call.done() for call in calls):
                for call in calls:
                    call.result()
                del self._asking[name]
        with suppress(httpx.TransportError), self.pool.http("admin") as door:
            answer = door.get("/moorage/v1/jobs", params={"limit": 1000}, timeout=5)
            if answer.status_code == 200:
                self._states |= {row["job_id"]: row["state"] for row in answer.json()}

    # -- kills

    def _kill(self, name: str) -> None:
        act = {"control": self._kill_process, "agent": self._kill_process}.get(name)
        if act is not None:
            self._killing = self._calls.submit(act, name)
        elif name == "worker":
            self._kill_worker()
        elif name == "raylet":
            self._killing = self._calls.submit(self._kill_raylet)
        else:
            raise AssertionError(f"nobody knows how to kill {name}")

    def _kill_process(self, name: str) -> None:
        before, began = self.pool.process(name), time.monotonic()
        os.kill(before.pid, signal.SIGKILL)
        self.figures.kills[name] += 1
        until(
            lambda: self.pool.process(name).pid != before.pid and self._well(),
            RECOVER_S,
            f"{name} to be back",
            every=0.1,
        )
        self._recovered(name, time.monotonic() - began)

    def _well(self) -> bool:
        with suppress(httpx.TransportError), self.pool.http("admin") as door:
            answer = door.get("/moorage/v1/status")
            return answer.status_code == 200 and bool(answer.json()["ray"]["reachable"])
        return False

    def _kill_worker(self) -> None:
        """Ray's own supervisor of a running job: from outside, by the pid that its job wrote down."""
        running = []
        for name, asked in self.jobs.items():
            lines = read(self.folder / name)
            spared = asked.kind in ("poison", "failing") or asked.stopped or asked.excused
            if lines and lines[-1].word != "end" and not spared and self._states.get(name) not in FINAL:
                running.append((name, lines[-1]))
        if not running:
            return
        name, line = self.rng.choice(running)
        with suppress(psutil.Error):
            process = psutil.Process(line.parent)
            if any("ray::JobSupervisor" in word for word in process.cmdline()):
                self.jobs[name].excused += 1
                # Its end may have been written in this very moment: it then ran to its end, twice.
                process.kill()
                self._killed_at[name].append((time.time(), line.attempt))
                self.figures.kills["worker"] += 1

    def _kill_raylet(self) -> None:
        """Of a node that is not the head's: back is when the pool has it again, as another one for Ray."""
        node = self.rng.choice(self.pool.record().nodes[1:])
        began = time.monotonic()
        os.kill(node["processes"]["raylet"][0], signal.SIGKILL)
        self.figures.kills["raylet"] += 1

        def back() -> bool:
            with suppress(httpx.TransportError), self.pool.http("admin") as door:
                answer = door.get("/moorage/v1/status")
                nodes = answer.json()["nodes"] if answer.status_code == 200 else []
                now = next((one for one in nodes if one["name"] == node["name"]), None)
                return bool(now and now["alive"] and now["ray_node_id"] != node["ray_node_id"])
            return False

        until(back, RECOVER_S, f"{node['name']} to be back", every=0.1)
        self._recovered("raylet", time.monotonic() - began)

    def _recovered(self, name: str, seconds: float) -> None:
        self.figures.worst_recovery[name] = max(self.figures.worst_recovery.get(name, 0.0), seconds)

    # -- the end

    def _settle(self) -> None:
        """Until every acknowledged job is final."""
        self.say("no more jobs, no more kills: waiting for what is there to end")
        if self._killing is not None:
            self._killing.result(timeout=RECOVER_S)

        def over() -> bool:
            self._look()
            return not self._asking and all(self._states.get(name) in FINAL for name in self.jobs)

        try:
            until(over, SETTLE_S, "all jobs to end", every=0.5)
        except AssertionError as error:
            self.figures.complaints.append(f"lost: {error}")
        self._calls.shutdown()

    def _lost(self, door: httpx.Client, name: str) -> int:
        """Attempts that the pool says the infrastructure took, and those of the job's own failures."""
        attempts = door.get(f"/moorage/v1/jobs/{name}").raise_for_status().json()["attempts"]
        return sum(one["state"] in ("LOST", "FAILED") for one in attempts)

    def _judge(self) -> None:
        figures, written, jobs = self.figures, {}, []
        for path in self.folder.iterdir():
            written[path.name] = read(path)
        with self.pool.http("admin") as door:
            for name, asked in self.jobs.items():
                told = door.get(f"/moorage/v1/jobs/{name}/events", params={"limit": 1000}).json()
                left = sum(one["kind"] == "preemption.notice" for one in told)
                lost = self._lost(door, name) if self.plan.infra else 0
                state = self._states.get(name, "")
                figures.ended[state] += 1
                figures.ended["preempted"] += left
                jobs.append(Job(name, asked.wanted, state, max(asked.excused, lost) + left))
        figures.complaints += complaints(jobs, written)
        for name, killed in self._killed_at.items():
            for at, attempt in killed:
                again = [x.at for x in written[name] if x.word == "start" and x.attempt > attempt]
                if again:
                    self._recovered("worker (its job runs again)", min(again) - at)
