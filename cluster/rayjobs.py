"""Ends an attempt that Ray has taken and not begun. Not Ray's public API: read in Ray 2.60, behind the version check.

Ray's own stop asks the attempt's supervisor, an actor. One that is not there yet, or whose creation Ray has lost, hears
nothing, and Ray leaves the attempt PENDING, also beyond RAY_JOB_START_TIMEOUT_SECONDS where the call that creates the
actor is the one that does not return (seen with RAY_testing_rpc_failure).
"""

from __future__ import annotations

import json
import time
from contextlib import suppress

import ray
from ray._private import ray_constants
from ray.dashboard.modules.job.common import (
    JOB_ACTOR_NAME_TEMPLATE,
    SUPERVISOR_ACTOR_RAY_NAMESPACE,
    JobInfo,
    JobInfoStorageClient,
    JobStatus,
)
from ray.experimental import internal_kv

from moorage.cluster.rayapi import check_version

MESSAGE = "stopped before Ray had begun it"


def end_unbegun(submission_id: str) -> bool:
    """Write that a PENDING attempt is STOPPED, and end its supervisor if it has one; whether it was PENDING.

    A supervisor that comes later runs nothing: it begins by reading its status and refuses any but PENDING. One that
    has read it just before is ended here, and its driver with it.
    """
    check_version()
    key = JobInfoStorageClient.JOB_DATA_KEY.format(job_id=submission_id).encode()
    space = ray_constants.KV_NAMESPACE_JOB
    found = internal_kv._internal_kv_get(key, namespace=space)
    if found is None:
        return False
    info = JobInfo.from_json(json.loads(found))
    if info.status != JobStatus.PENDING:
        return False
    info.status, info.message, info.end_time = JobStatus.STOPPED, MESSAGE, time.time_ns() // 10**6
    internal_kv._internal_kv_put(key, json.dumps(info.to_json()).encode(), overwrite=True, namespace=space)
    with suppress(ValueError):  # no actor of that name
        name = JOB_ACTOR_NAME_TEMPLATE.format(job_id=submission_id)
        ray.kill(ray.get_actor(name, namespace=SUPERVISOR_ACTOR_RAY_NAMESPACE), no_restart=True)
    return True
