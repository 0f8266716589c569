"""From a job and its lease to what Ray is asked to start. Pure but for the settings it is given."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Row

from moorage.cluster import binding, following
from moorage.cluster.backend import Launch, PackageRef
from moorage.configs.job import JobAsk
from moorage.runtime.control.tokens import job_token
from moorage.scheduling.ledger import task_milli_per_device
from moorage.scheduling.model import Lease, Role

TOKEN_VARIABLE = "MOORAGE_TOKEN"


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSettings:
    """Where jobs find Moorage (`url`) and shared files (`data`); `secret` signs job tokens."""

    url: str
    data: str
    secret: bytes
    inject: str = ""
    """The folder that binds a job's plain Ray code to its lease (`moorage/cluster/inject`), where jobs run."""


def lease_view(lease: Lease, ray_ids: Mapping[str, str]) -> binding.LeaseView:
    """The lease as its job sees it; nodes by name and by Ray's id of their present incarnation."""
    head = next((task for task in lease.tasks if task.role is Role.HEAD), None)
    return binding.LeaseView(
        lease_id=lease.lease,
        epoch=lease.epoch,
        head=None if head is None else binding.Place(node=head.node, ray_node_id=ray_ids.get(head.node, "")),
        workers=tuple(
            binding.WorkerView(
                node=task.node,
                ray_node_id=ray_ids.get(task.node, ""),
                devices=task.devices,
                milli_gpu=task_milli_per_device(task),
                gpu_mib=task.gpu_mib,
                milli_cpu=task.milli_cpu,
            )
            for task in lease.tasks
            if task.role is Role.WORKER
        ),
    )


def prepare(
    job: Row[Any], number: int, lease: Lease, ray_ids: Mapping[str, str], where: LaunchSettings
) -> dict[str, Any]:
    """The launch as JSON for the outbox, without the token. Repeating it after a crash is the same content."""
    ask, submission = JobAsk.model_validate(job.ask), job.submission
    view = lease_view(lease, ray_ids)
    environment = dict(submission["runtime_env"] or {})
    theirs = environment.get("env_vars") or {}
    environment["env_vars"] = {
        **theirs,
        **_injected(ask, theirs, where),
        "MOORAGE_URL": where.url,
        "MOORAGE_JOB_ID": job.id,
        "MOORAGE_ATTEMPT": str(number),
        "MOORAGE_TEAM": job.team,
        "MOORAGE_DATA": where.data,
        binding.LEASE_VARIABLE: binding.encode(view),
    }
    if ask.min_workers < ask.workers:
        environment["env_vars"][following.ELASTIC_VARIABLE] = f"{ask.min_workers},{ask.workers}"
    head = ask.head
    return {
        "submission_id": f"{job.id}-{number}",
        "entrypoint": submission["entrypoint"],
        "runtime_env": environment,
        "metadata": {str(key): str(value) for key, value in submission["metadata"].items()},
        "entrypoint_num_cpus": head.milli_cpu / 1000 if head.milli_cpu else None,
        "entrypoint_num_gpus": head.milli_gpu / 1000 if head.milli_gpu else None,
        "entrypoint_memory": submission["entrypoint_memory"] or None,
        "entrypoint_resources": submission["entrypoint_resources"] or None,
        "entrypoint_label_selector": binding.head_selector(view),
        "packages": [[uri, path] for uri, path in sorted(submission["packages"].items())],
    }


def packages_of(job: Row[Any]) -> tuple[PackageRef, ...]:
    """What a launch of the job brings with it."""
    return tuple(
        PackageRef(uri=uri, path=Path(path)) for uri, path in sorted(job.submission["packages"].items())
    )


def _injected(ask: JobAsk, theirs: Mapping[str, str], where: LaunchSettings) -> dict[str, str]:
    if not (ask.bind and where.inject):
        return {"MOORAGE_BIND": "off"}
    # Ray puts in what the node's own processes have, if anything.
    path = [where.inject, theirs.get("PYTHONPATH") or "${PYTHONPATH}"]
    return {"MOORAGE_BIND": "on", "PYTHONPATH": os.pathsep.join(path)}


def complete(prepared: Mapping[str, Any], where: LaunchSettings) -> Launch:
    """The launch itself, with the attempt's token."""
    values = dict(prepared)
    environment = dict(values["runtime_env"])
    token = job_token(where.secret, values["submission_id"])
    environment["env_vars"] = {**environment["env_vars"], TOKEN_VARIABLE: token}
    values["runtime_env"] = environment
    values["packages"] = tuple(PackageRef(uri=uri, path=Path(path)) for uri, path in values["packages"])
    return Launch(**values)


def view_json(view: binding.LeaseView) -> dict[str, Any]:
    """The JSON value of a lease view, as in `MOORAGE_LEASE`."""
    return asdict(view)
