"""S4, S9: plain Ray code under a lease. Fractions that hang in Ray alone all run; nothing takes more than the lease."""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from pools import Pool
from waiting import until

from moorage.runtime.client import Client
from moorage.runtime.control.api import FINAL

POOL = {"nodes": 2, "logical_gpus": 4, "teams": "teams: {ops: {quota: 8}}"}
SCRIPT = Path(__file__).parent / "scripts" / "pieces.py"


def ran(
    pool: Pool, job: str, count: int, gpus: float, within_s: float = 120, **metadata: str
) -> dict[str, Any]:
    """What the script wrote, run as a job with a lease of `count` pieces of `gpus`."""
    out = pool.home / f"{job}.json"
    with Client(pool.url, pool.token("ops")) as client:
        client.submit(
            {
                "entrypoint": shlex.join([sys.executable, *map(str, (SCRIPT, out, count, gpus, within_s))]),
                "submission_id": job,
                "metadata": {
                    "workers": str(count), "gpus_per_worker": str(gpus), "cpus_per_worker": "0.1", **metadata
                },
            }
        )  # fmt: skip
        found = until(
            lambda: [one for one in [client.job(job)] if one["state"] in FINAL],
            within_s + 100,
            "the job to end",
            every=0.5,
        )
    assert found[0]["state"] == "SUCCEEDED", found[0]["message"]
    said: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return said


def test_six_of_sixty_percent_run_where_the_plan_says(pool: Pool) -> None:
    """Ray alone starts 4 of them on 2 nodes x 4 GPUs. The lease names nodes and devices, the raylet's book agrees."""
    said = ran(pool, "six", 6, 0.6)
    assert said["hanging"] == 0 and len(said["running"]) == 6
    devices = Counter((node, device) for node, book in said["running"] for device in book["GPU"])
    assert set(devices.values()) == {1} and all(
        list(book["GPU"].values()) == [0.6] for _, book in said["running"]
    )
    with Client(pool.url, pool.token("ops")) as client:
        nodes = client.status()["nodes"]
        granted = next(one for one in client.events("six") if one["kind"] == "lease.granted")
    names = {node["ray_node_id"]: node["name"] for node in nodes}
    planned = {(task["node"], device) for task in granted["payload"]["tasks"] for device in task["devices"]}
    assert {(names[node], int(device)) for node, device in devices} == planned
    assert said["beyond the lease"] == 0, "a seventh piece ran beside the six"
    assert said["task"][0] in names, "the task got the room of the actor that was stopped"
    assert "lease-too-small" in said["too large"]


def test_the_binding_can_be_turned_off(pool: Pool) -> None:
    """`bind: off` is plain Ray: what is larger than any worker of the lease is not refused."""
    said = ran(pool, "plain", 2, 0.6, bind="off")
    assert said["task"] and "too large" not in said
