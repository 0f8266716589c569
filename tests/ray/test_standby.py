"""G6: a standby with a Ray driver of its own, beside one real Ray cluster, takes over and gives back.

Two homes as on two machines: one PostgreSQL, copies of the tokens, each its supervisor, agent and control plane. What
dies is the whole first machine but Ray: its supervisor is stopped, its agent and control plane are killed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import postgres
import psutil
import pytest
from pools import TEAMS, Pool, discard, free_port, moorage, short_folder, start
from waiting import until

WITHIN_S = 120.0
COPIED = ("tokens", "packages", "control.secret")


def ready(pool: Pool) -> bool:
    """Whether it leads: what a load balancer goes by."""
    try:
        with pool.http(None) as client:
            return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def job(pool: Pool, name: str) -> dict[str, object]:
    """As this front door tells it; nothing while it does not answer."""
    try:
        with pool.http("admin") as client:
            answer = client.get(f"/moorage/v1/jobs/{name}")
    except httpx.TransportError:
        return {}
    return dict(answer.json()) if answer.status_code == 200 else {}


def submit(pool: Pool, name: str, entrypoint: str) -> None:
    body = {"entrypoint": entrypoint, "submission_id": name, "metadata": {"gpus_per_worker": "1"}}

    def taken() -> bool:
        with pool.http("research") as client:
            answer = client.post("/api/jobs/", json=body)
        assert answer.status_code in (200, 503), answer.text
        return answer.status_code == 200

    until(taken, 60, f"{name} to be taken")


def until_ended(pool: Pool, *names: str) -> None:
    until(
        lambda: all(job(pool, name).get("state") == "SUCCEEDED" for name in names),
        WITHIN_S,
        f"{names} to end",
        every=0.3,
    )


@pytest.fixture(scope="module")
def settings(postgresql: postgres.Server) -> str:
    folder = Path("/standby-beside-ray")  # names the database: both homes have the same
    return f"database: {postgresql.database(folder)}\ntakeover_s: 20\n"


@pytest.fixture(scope="module")
def first(settings: str) -> Iterator[Pool]:
    pool = start({"nodes": 1, "logical_gpus": 2, "settings": settings, "options": ["--standby"]})
    yield pool
    discard(pool)


@pytest.fixture(scope="module")
def second(first: Pool, settings: str) -> Iterator[Pool]:
    """`up --standby --address`, with what the documentation says to copy."""
    pool = Pool(home=short_folder(), port=free_port())
    for name in COPIED:
        source = first.home / name
        if source.is_dir():
            shutil.copytree(source, pool.home / name)
        elif source.exists():
            shutil.copy2(source, pool.home / name)
    (pool.home / "given-teams.yaml").write_text(TEAMS, encoding="utf-8")
    (pool.home / "given-pool.yaml").write_text(settings, encoding="utf-8")
    up = moorage(
        *("up", "--json", "--standby", "--address", first.printed["ray_address"], "--port", str(pool.port)),
        *("--pool", pool.home / "given-pool.yaml", "--teams", pool.home / "given-teams.yaml"),
        home=pool.home,
        extra={"RAY_AUTH_TOKEN": first.files.ray_token.read_text(encoding="utf-8")},
    )
    assert up.returncode == 0, f"{up.stdout}{up.stderr}{pool.logs()}"
    pool.printed = json.loads(up.stdout)
    yield pool
    discard(pool)


def test_a_standby_takes_the_jobs_of_a_dead_leader_over_and_gives_them_back(
    first: Pool, second: Pool, tmp_path: Path
) -> None:
    diary, gate = tmp_path / "diary", tmp_path / "gate"

    def entrypoint(name: str) -> str:
        wait = f'until [ -e "{gate}" ]; do sleep 0.2; done; '
        return f'echo "start {name}" >> {diary}; {wait}echo "end {name}" >> {diary}'

    assert ready(first) and not ready(second)
    with second.http("admin") as client:
        refused = client.get("/moorage/v1/status")
    assert refused.status_code == 503 and refused.json()["leader"] == first.url

    for name in ("sb-runs", "sb-runs-too", "sb-waits"):
        submit(first, name, entrypoint(name))
    until(
        lambda: diary.exists() and len(diary.read_text().splitlines()) == 2,
        WITHIN_S,
        "two jobs to have begun",
    )
    begun = {
        "sb-runs": "RUNNING",
        "sb-runs-too": "RUNNING",
        "sb-waits": "PENDING",
    }  # research has a limit of 2

    def states(pool: Pool) -> dict[str, object]:
        return {name: job(pool, name).get("state") for name in begun}

    until(lambda: states(first) == begun, 60, "the pool to see them")

    supervisor = psutil.Process(first.process("supervisor").pid)
    supervisor.suspend()
    try:
        for name in ("control", "agent"):
            os.kill(first.process(name).pid, signal.SIGKILL)
        until(lambda: ready(second), 60, "the standby to lead")
        submit(second, "sb-new", entrypoint("sb-new"))
        until(lambda: states(second) == begun, 60, "it to see them too")
        gate.touch()
        until_ended(second, "sb-runs", "sb-runs-too", "sb-waits", "sb-new")
    finally:
        supervisor.resume()
    until(lambda: first.process("control").alive() and not ready(first), 60, "the first to stand by")

    os.kill(second.process("control").pid, signal.SIGKILL)
    until(lambda: ready(first) or ready(second), 60, "one of the two to lead")
    leader = first if ready(first) else second
    submit(leader, "sb-last", entrypoint("sb-last"))
    until_ended(leader, "sb-last")

    names = ("sb-runs", "sb-runs-too", "sb-waits", "sb-new", "sb-last")
    assert Counter(diary.read_text().splitlines()) == {
        f"{word} {name}": 1 for word in ("start", "end") for name in names
    }
    until(lambda: {job(leader, name).get("attempt") for name in names} == {1}, 30, "each to have one attempt")
