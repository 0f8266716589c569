"""S4, G6: what Ray's own book says, and what becomes of a pool whose Ray dies."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from pathlib import Path

import psutil
import pytest
from waiting import until

from moorage.cluster.backend import Launch
from moorage.cluster.client import RayBackend

POOL = {"nodes": 2, "logical_gpus": 2}
SCRIPT = Path(__file__).parent / "scripts" / "books.py"


@pytest.fixture()
def backend(pool):
    found = RayBackend(pool.home)
    yield found
    found.close()


def test_the_raylets_book_is_read_not_the_environment(pool, backend) -> None:
    """S4: device indexes and amounts come from the raylet, fractions, groups and a forged environment
    included."""
    out = pool.home / "books.json"
    entrypoint = shlex.join([sys.executable, str(SCRIPT), str(out)])
    backend.launch(Launch(submission_id="books-1", entrypoint=entrypoint))
    until(lambda: [j for j in backend.observe().jobs if j.ended], 120, "the job to end")
    (job,) = until(lambda: backend.observe().jobs, 30, "Ray to answer")
    said = list(pool.files.ray_temp.glob("session_latest/logs/job-driver-books-1.log"))
    assert job.status == "SUCCEEDED", f"{job.message}\n{[path.read_text() for path in said]}"
    books = json.loads(out.read_text(encoding="utf-8"))
    (fraction,) = books["fraction"]["GPU"].items()
    assert fraction[0] in ("0", "1") and fraction[1] == 0.25
    assert sum(books["fraction"]["CPU"].values()) == 2
    (lying,) = books["lying"]["GPU"].items()
    assert lying[0] in ("0", "1") and lying[1] == 1, "the environment said 77"
    for member in ("group", "anywhere in the group"):
        assert set(books[member]) == {"CPU", "GPU"}
        assert list(books[member]["GPU"].values()) == [1] and list(books[member]["CPU"].values()) == [1]


def test_a_lost_raylet_is_replaced(pool, backend) -> None:
    """G6: SIGKILL of a raylet: its node comes back under its name, as another one for Ray."""
    nodes = until(lambda: backend.observe().nodes, 30, "Ray to answer")
    node = next(n for n in nodes if not n.is_head)
    (raylet,) = next(n for n in pool.record().nodes if n["ray_node_id"] == node.ray_node_id)["processes"][
        "raylet"
    ]
    os.kill(raylet, signal.SIGKILL)

    def back() -> bool:
        now = next(n for n in backend.observe().nodes if n.name == node.name)
        return now.alive and now.ray_node_id != node.ray_node_id

    until(back, 60, "the node to be back")

    def said() -> bool:
        record = pool.record()
        known = {n["ray_node_id"] for n in record.nodes}
        return record.state == "up" and node.ray_node_id not in known and len(known) == 2

    until(said, 60, "the supervisor to say so")


def test_a_lost_cluster_is_replaced_and_that_is_said(pool, backend) -> None:
    """G6: with the whole of Ray gone the front door stays and says so; a new cluster takes its place."""
    ray, agent, control = (pool.process(name) for name in ("ray", "agent", "control"))
    before = psutil.Process(ray.pid).children(recursive=True)
    os.kill(ray.pid, signal.SIGKILL)
    until(lambda: pool.record().state == "degraded", 60, "the supervisor to notice")
    assert "ray ended" in pool.record().error
    until(lambda: pool.record().state == "up", 90, "a new cluster to be up")
    assert pool.record().error == "" and pool.record().restarts["ray"] == 1
    assert pool.process("ray") != ray and pool.process("agent") != agent
    assert not [process for process in before if process.is_running()], "of the old cluster something lives"
    until(lambda: sum(node.alive for node in backend.observe().nodes) == 2, 60, "both nodes to be there")
    assert pool.process("control") == control and control.alive()
