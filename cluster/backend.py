"""What the control plane asks of a cluster, and what a cluster answers: one protocol, no Ray import.

Two implementations: `moorage.cluster.client.RayBackend` (real raylets) and the simulated pool beside the
control plane. Both are synchronous and may be called from any one thread at a time. Capacity is in integers:
milli-GPU, milli-CPU, MiB; times of jobs are wall-clock milliseconds, as Ray reports them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from moorage.errors import InvalidRequest, Unavailable
from moorage.scheduling.guard import Holder, Holding, Part, Seen, Target
from moorage.scheduling.model import DeviceRule

__all__ = [
    "DIGEST_KEY",
    "Backend",
    "BackendUnavailable",
    "DeviceRule",
    "Launch",
    "LaunchRefused",
    "NodeAsk",
    "Observation",
    "ObservedJob",
    "ObservedNode",
    "PackageRef",
    "ScaleAsk",
    "digest",
    "seen_from",
]

TOKEN_VARIABLE = "MOORAGE_TOKEN"
DIGEST_KEY = "moorage_digest"
"""Metadata key of the digest of what was launched: "already exists" is success only when it matches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedNode:
    """One node as the cluster reports it. `devices` counts whole devices; `device_mib` is memory per device
    (0: unknown).

    `free_milli_gpu` is the sum over the node's devices that Ray has not booked, `free_milli_cpu` likewise.
    """

    name: str
    ray_node_id: str
    address: str
    alive: bool
    is_head: bool
    gpu_model: str
    devices: int
    device_mib: int
    milli_cpu: int
    mib: int
    labels: Mapping[str, str]
    free_milli_gpu: int
    free_milli_cpu: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedJob:
    """One Ray job. `status` is Ray's own: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""

    submission_id: str
    status: str
    message: str
    start_ms: int | None
    end_ms: int | None
    driver_exit_code: int | None

    @property
    def ended(self) -> bool:
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Nodes and jobs as seen at `at_ns` (wall time). Jobs are only those submitted, not every driver."""

    at_ns: int
    nodes: tuple[ObservedNode, ...]
    jobs: tuple[ObservedJob, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageRef:
    """A package of a runtime_env (`uri` as in `gcs://_ray_pkg_<hash>.zip`) and the spooled file that holds
    its bytes."""

    uri: str
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One attempt to be started on Ray under `submission_id`. Entrypoint resources are in Ray's own units."""

    submission_id: str
    entrypoint: str
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    entrypoint_num_cpus: float | None = None
    entrypoint_num_gpus: float | None = None
    entrypoint_memory: int | None = None
    entrypoint_resources: Mapping[str, float] | None = None
    entrypoint_label_selector: Mapping[str, str] | None = None
    packages: tuple[PackageRef, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAsk:
    """One node that the cluster should have, by what it has in all."""

    milli_gpu: int
    milli_cpu: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleAsk:
    """What the cluster should be: its `nodes`, those it has among them; `release` are Ray's ids of idle ones to end."""

    nodes: tuple[NodeAsk, ...] = ()
    release: tuple[str, ...] = ()


def digest(launch: Launch) -> str:
    """What makes two launches the same content, as hex SHA-256. The job's own token is left out: a control
    plane that was restarted may issue a new one for the attempt it is launching again."""
    content = asdict(launch)
    environment = dict(launch.runtime_env)
    environment["env_vars"] = {
        name: value for name, value in environment.get("env_vars", {}).items() if name != TOKEN_VARIABLE
    }
    content["runtime_env"] = environment
    content["metadata"] = {key: value for key, value in launch.metadata.items() if key != DIGEST_KEY}
    content["packages"] = sorted(package.uri for package in launch.packages)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def seen_from(raw: Mapping[str, Any]) -> Seen:
    """The `Seen` behind its JSON."""
    return Seen(
        at_ns=int(raw["at_ns"]),
        holdings=tuple(
            Holding(
                **{
                    **one,
                    "holder": Holder(one["holder"]),
                    "parts": tuple(Part(**part) for part in one["parts"]),
                }
            )
            for one in raw["holdings"]
        ),
        complete=bool(raw["complete"]),
        unexplained=dict(raw["unexplained"]),
    )


class BackendUnavailable(Unavailable):
    """The cluster (or the agent that talks to it) does not answer now. Nothing is known about effects in
    flight."""

    code = "backend-unavailable"


class LaunchRefused(InvalidRequest):
    """The cluster will not take this launch however often it is tried: bad environment, an id used for other
    content."""

    code = "launch-refused"


def allowed() -> None:
    """The `permit` of a backend that nobody else may use."""


@runtime_checkable
class Backend(Protocol):
    """Effects are idempotent: the control plane repeats them after a crash until observation shows them
    done."""

    permit: Callable[[], None]
    """Called directly before each effect; raises when this control plane may have none any more. Ray itself checks no
    fencing token."""

    @property
    def device_rule(self) -> DeviceRule:
        """Who picks the device within a node."""

    def observe(self) -> Observation:
        """The cluster now. Raises `BackendUnavailable`; never answers with part of the truth."""

    def stage(self, package: PackageRef) -> None:
        """Bring a package, unless the cluster has it: a head start for `launch`, which does it too. May take minutes,
        and may be called by any thread beside all else. Raises `LaunchRefused`, `BackendUnavailable`."""

    def launch(self, launch: Launch) -> None:
        """Start one attempt. The same id with the same content is success; raises `LaunchRefused`,
        `BackendUnavailable`."""

    def stop(self, submission_id: str) -> None:
        """Ask that the attempt ends; an unknown or ended one is fine. Observation tells when it has ended."""

    def forget(self, submission_id: str) -> None:
        """Delete the record of an ended attempt; an unknown one is fine."""

    def holdings(self, devices: bool = False) -> Seen:
        """Who holds GPUs now, as the cluster itself books them; with `devices` also the processes that the devices'
        driver names. Raises `BackendUnavailable`."""

    def scale(self, ask: ScaleAsk) -> None:
        """Tell the cluster's autoscaler what is wanted now, instead of what was wanted before. A node that turns out to
        be in use is not ended. Raises `BackendUnavailable`."""

    def end(self, target: Target, key: str, owner: str) -> None:
        """End exactly the thing of that id, made by Ray job `owner`; one that is gone is fine. Not for our own jobs:
        those are stopped. Raises `BackendUnavailable`."""
