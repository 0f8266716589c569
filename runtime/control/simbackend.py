"""A simulated pool behind the same `Backend` protocol: jobs with durations, an injectable clock, faults on request.

What a job does is in its metadata: `sim.seconds` (how long), `sim.exit` (exit code), `sim.poison` (no start ever
succeeds). The pool books the GPUs of the lease that the launch carries and keeps an attempt PENDING until they are
free, so over-commitment shows as a hang, as it would on Ray. With a journal file the "cluster" survives the death of
the process that drives it, and several processes may drive one: each entry says which (`by`, its process id).
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moorage.cluster import binding
from moorage.cluster.backend import (
    BackendUnavailable,
    DeviceRule,
    Launch,
    LaunchRefused,
    Observation,
    ObservedJob,
    ObservedNode,
    PackageRef,
    ScaleAsk,
    allowed,
    digest,
    seen_from,
)
from moorage.runtime.control.clock import Clock
from moorage.scheduling.guard import Holder, Holding, Part, Seen, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class SimNode:
    """A simulated machine."""

    name: str
    devices: int = 4
    gpu_model: str = "L4"
    device_mib: int = 24576
    milli_cpu: int = 8000
    mib: int = 32768
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class SimJob:
    """One attempt. Times are wall nanoseconds; `exit_code` None at the end means the infrastructure lost it."""

    submission_id: str
    content: str
    seconds: float
    exit_code: int | None
    need: dict[str, int]
    devices: list[list[Any]]
    """[node, device, milli-GPU] as the lease names them."""
    launched_ns: int
    running_ns: int | None = None
    ended_ns: int | None = None
    status: str = "PENDING"
    message: str = ""


class SimBackend:
    """Thread-safe. Faults: set `unavailable`, `refuse`, `down` (node names), call `lose` or `kill`."""

    def __init__(
        self,
        nodes: Iterable[SimNode],
        clock: Clock,
        *,
        journal: Path | None = None,
        start_s: float = 0.0,
        free_lag_s: float = 0.0,
        device_rule: DeviceRule = DeviceRule.RAYLET,
    ) -> None:
        self.nodes = tuple(nodes)
        self.permit: Callable[[], None] = allowed
        self.unavailable = False
        self.refuse: set[str] = set()
        self.down: set[str] = set()
        self.incarnation: dict[str, int] = {}
        self.jobs: dict[str, SimJob] = {}
        self.rogues: dict[str, Holding] = {}
        """What holds GPUs beside the jobs, by its id: see `intrude`."""
        self.scaled: list[ScaleAsk] = []
        """What its autoscaler was told; it does nothing by itself."""
        self.ended: list[tuple[str, str]] = []
        """What the guard ended, as (target, id), each call once."""
        self.launches: list[str] = []
        """Every accepted start, in order: the record tests judge by."""
        self._clock, self._rule = clock, device_rule
        self._start_ns, self._lag_ns = int(start_s * 1e9), int(free_lag_s * 1e9)
        self._lock = threading.Lock()
        self._journal = journal
        self._read_to = 0
        """Bytes of the journal that are known here."""

    @property
    def device_rule(self) -> DeviceRule:
        return self._rule

    # -- the protocol

    def observe(self) -> Observation:
        with self._reached():
            now = self._advance()
            busy = self._busy(now)
            return Observation(
                at_ns=now,
                nodes=tuple(self._node(node, busy.get(node.name, 0)) for node in self.nodes),
                jobs=tuple(self._job(job) for job in self.jobs.values()),
            )

    def stage(self, package: PackageRef) -> None:
        with self._reached():
            self.permit()

    def launch(self, launch: Launch) -> None:
        with self._reached():
            content = digest(launch)
            known = self.jobs.get(launch.submission_id)
            if known is not None:
                if known.content != content:
                    raise LaunchRefused(f"another job has the id {launch.submission_id}")
                return
            if launch.submission_id.rsplit("-", 1)[0] in self.refuse:
                raise LaunchRefused("the simulated pool refuses this job", why="it was told to")
            if launch.metadata.get("sim.poison"):
                raise BackendUnavailable("the agent died of this launch", why="it was told to")
            raw = launch.metadata.get("sim.exit", "0")
            job = SimJob(
                submission_id=launch.submission_id,
                content=content,
                seconds=float(launch.metadata.get("sim.seconds", "1")),
                exit_code=None if raw == "lost" else int(raw),
                need=_need(launch),
                devices=_devices(launch),
                launched_ns=self._clock.now().wall_ns,
            )
            self.permit()
            self._write({"op": "launch", **{name: getattr(job, name) for name in _KEPT}})
            self.jobs[job.submission_id] = job
            self.launches.append(job.submission_id)

    def stop(self, submission_id: str) -> None:
        with self._reached():
            now = self._advance()
            job = self.jobs.get(submission_id)
            if job is not None and job.ended_ns is None:
                self.permit()
                self._write({"op": "stop", "submission_id": submission_id, "at_ns": now})
                self._end(job, "STOPPED", now, "stopped")

    def forget(self, submission_id: str) -> None:
        with self._reached():
            self.permit()
            if self.jobs.pop(submission_id, None) is not None:
                self._write({"op": "forget", "submission_id": submission_id})

    def holdings(self, devices: bool = False) -> Seen:
        with self._reached():
            now = self._advance()
            booked = [_booked(job) for job in self.jobs.values() if job.status == "RUNNING"]
            rogues = [
                one
                for one in self.rogues.values()
                if not one.submission or self._runs(one.submission) or one.detached
            ]
            return Seen(at_ns=now, holdings=(*(one for one in booked if one.parts), *rogues))

    def end(self, target: Target, key: str, owner: str) -> None:
        with self._reached():
            self.permit()
            self._write({"op": "end", "target": str(target), "id": key})
            self._ended(target, key)

    def scale(self, ask: ScaleAsk) -> None:
        with self._reached():
            self.permit()
            self.scaled.append(ask)

    # -- faults

    def intrude(self, held: Holding) -> None:
        """Somebody takes GPUs past the front door, or a job more than it has: seen by the guard, booked nowhere."""
        with self._reached():
            self._write({"op": "intrude", "held": asdict(held)})
            self.rogues[held.id] = held

    def lose(self, submission_id: str) -> None:
        """The record of an attempt vanishes, as after a cluster was replaced."""
        with self._lock:
            self.jobs.pop(submission_id)

    def kill(self, submission_id: str, message: str = "Job supervisor actor died: the node died") -> None:
        """The infrastructure takes an attempt."""
        with self._lock:
            job, now = self.jobs[submission_id], self._advance()
            job.exit_code = None
            self._end(job, "FAILED", now, message)

    def hold(self, submission_id: str, lease: Mapping[str, Any], workers: int) -> None:
        """An attempt holds the first so many workers of this lease from now on (the JSON of MOORAGE_LEASE)."""
        view = binding.decode(json.dumps(lease))
        devices = _devices_of(view.workers[:workers])
        with self._reached():
            self._write({"op": "hold", "submission_id": submission_id, "devices": devices})
            self._held(self.jobs[submission_id], devices)

    def leave(self, submission_id: str, exit_code: int = 75) -> None:
        """An attempt ends by itself with this exit code, as on notice; nothing if it has ended."""
        with self._lock:
            job, now = self.jobs[submission_id], self._advance()
            if job.ended_ns is None:
                job.exit_code = exit_code
                text = f"Job entrypoint command failed with exit code {exit_code}" if exit_code else "done"
                self._end(job, "FAILED" if exit_code else "SUCCEEDED", now, text)

    # -- inside

    @staticmethod
    def _held(job: SimJob, devices: list[list[Any]]) -> None:
        job.devices, job.need = devices, {}
        for node, _, milli in devices:
            job.need[node] = job.need.get(node, 0) + milli

    def _ended(self, target: str, key: str) -> None:
        self.ended.append((str(target), key))
        self.rogues = {
            name: one
            for name, one in self.rogues.items()
            if not (
                (target == Target.APP and one.app == key)
                or (target == Target.DRIVER and one.owner == key and not one.detached)
                or (target in (Target.ACTOR, Target.GROUP) and one.id == key)
            )
        }

    def _runs(self, submission_id: str) -> bool:
        job = self.jobs.get(submission_id)
        return job is not None and job.status == "RUNNING"

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """One at a time, also among processes, and up to date with what the others did."""
        with self._lock:
            if self.unavailable:
                raise BackendUnavailable("the simulated pool does not answer", why="it was told not to")
            if self._journal is None:
                yield
                return
            with self._journal.open("a+b") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                held.seek(self._read_to)
                self._replay(held.read().decode())
                self._read_to = held.tell()
                yield

    def _advance(self) -> int:
        """Run the simulated time forward to now, attempt by attempt in start order."""
        now = self._clock.now().wall_ns
        for job in self.jobs.values():
            if job.status == "PENDING" and now >= job.launched_ns + self._start_ns and self._fits(job, now):
                job.status, job.running_ns = "RUNNING", max(job.launched_ns + self._start_ns, 0)
            if job.status == "RUNNING" and job.running_ns is not None:
                end = job.running_ns + int(job.seconds * 1e9)
                if now >= end:
                    code = job.exit_code
                    text = f"Job entrypoint command failed with exit code {code}" if code else "done"
                    if code is None:
                        text = "Job supervisor actor died"
                    self._end(job, "SUCCEEDED" if code == 0 else "FAILED", end, text)
        return now

    def _end(self, job: SimJob, status: str, at_ns: int, message: str) -> None:
        job.status, job.ended_ns, job.message = status, at_ns, message

    def _busy(self, now: int) -> dict[str, int]:
        """Milli-GPU taken per node: of running attempts, and of ended ones for `free_lag_s`."""
        taken: dict[str, int] = {}
        for job in self.jobs.values():
            lagging = (
                job.ended_ns is not None and job.running_ns is not None and now < job.ended_ns + self._lag_ns
            )
            if job.status == "RUNNING" or lagging:
                for node, amount in job.need.items():
                    taken[node] = taken.get(node, 0) + amount
        return taken

    def _fits(self, job: SimJob, now: int) -> bool:
        busy = self._busy(now)
        total = {node.name: node.devices * 1000 for node in self.nodes if node.name not in self.down}
        return all(busy.get(name, 0) + amount <= total.get(name, -1) for name, amount in job.need.items())

    def _node(self, node: SimNode, busy: int) -> ObservedNode:
        return ObservedNode(
            name=node.name,
            ray_node_id=f"ray-{node.name}-{self.incarnation.get(node.name, 0)}",
            address="127.0.0.1",
            alive=node.name not in self.down,
            is_head=node is self.nodes[0],
            gpu_model=node.gpu_model,
            devices=node.devices,
            device_mib=node.device_mib,
            milli_cpu=node.milli_cpu,
            mib=node.mib,
            labels={binding.NODE_LABEL: node.name, **dict(node.labels)},
            free_milli_gpu=max(0, node.devices * 1000 - busy),
            free_milli_cpu=node.milli_cpu,
        )

    @staticmethod
    def _job(job: SimJob) -> ObservedJob:
        return ObservedJob(
            submission_id=job.submission_id,
            status=job.status,
            message=job.message,
            start_ms=job.launched_ns // 10**6,
            end_ms=None if job.ended_ns is None else job.ended_ns // 10**6,
            driver_exit_code=job.exit_code if job.status in ("SUCCEEDED", "FAILED") else None,
        )

    def _write(self, entry: dict[str, object]) -> None:
        if self._journal is None:
            return
        line = json.dumps(entry | {"by": os.getpid()}) + "\n"
        with self._journal.open("ab") as out:
            out.write(line.encode())
            out.flush()
            os.fsync(out.fileno())
            self._read_to = out.tell()

    def _replay(self, text: str) -> None:
        for line in text.splitlines():
            entry = json.loads(line)
            op = entry.pop("op")
            entry.pop("by", None)
            if op == "launch":
                job = SimJob(**entry)
                self.jobs[job.submission_id] = job
                self.launches.append(job.submission_id)
            elif op == "intrude":
                held = seen_from(
                    {"at_ns": 0, "holdings": [entry["held"]], "complete": True, "unexplained": {}}
                )
                self.rogues[held.holdings[0].id] = held.holdings[0]
            elif op == "end":
                self._ended(entry["target"], entry["id"])
            elif op == "forget":
                self.jobs.pop(entry["submission_id"], None)
            elif (job_ := self.jobs.get(entry["submission_id"])) is not None and op == "hold":
                self._held(job_, entry["devices"])
            elif job_ is not None:
                self._end(job_, "STOPPED", entry["at_ns"], "stopped")


_KEPT = ("submission_id", "content", "seconds", "exit_code", "need", "devices", "launched_ns")


def _booked(job: SimJob) -> Holding:
    """A running attempt holds what it leased when it was launched."""
    parts = tuple(Part(node=node, device=device, milli_gpu=amount) for node, device, amount in job.devices)
    return Holding(
        holder=Holder.ACTOR,
        id=f"actor-of-{job.submission_id}",
        parts=parts,
        owner=f"ray-{job.submission_id}",
        submission=job.submission_id,
    )


def _devices(launch: Launch) -> list[list[Any]]:
    return _devices_of(binding.decode(launch.runtime_env["env_vars"][binding.LEASE_VARIABLE]).workers)


def _devices_of(workers: Iterable[binding.WorkerView]) -> list[list[Any]]:
    return [[worker.node, device, worker.milli_gpu] for worker in workers for device in worker.devices]


def _need(launch: Launch) -> dict[str, int]:
    """Milli-GPU per node that the attempt takes: its workers' devices and its entrypoint's."""
    text = launch.runtime_env["env_vars"][binding.LEASE_VARIABLE]
    view = binding.decode(text)
    need: dict[str, int] = {}
    for worker in view.workers:
        need[worker.node] = need.get(worker.node, 0) + worker.milli_gpu * len(worker.devices)
    if view.head is not None and launch.entrypoint_num_gpus:
        need[view.head.node] = need.get(view.head.node, 0) + int(launch.entrypoint_num_gpus * 1000)
    return need
