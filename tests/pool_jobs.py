"""Jobs of a real pool as tests see them: by the front door's own routes, and by their own files."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import httpx
from pools import Pool
from waiting import until

from moorage.train.steplog import read_steps

FINAL = ("SUCCEEDED", "FAILED", "STOPPED", "QUARANTINED")


def submit(pool: Pool, team: str, job: str, command: list[str], **metadata: str) -> None:
    body = {"entrypoint": shlex.join(command), "submission_id": job, "metadata": metadata}
    with pool.http(team) as door:
        answer = door.post("/api/jobs/", json=body)
        assert answer.status_code == 200, answer.text


def told(pool: Pool, path: str, **asked: Any) -> Any:
    """What the front door answers to an administrator, once it does."""

    def answer() -> httpx.Response:
        with pool.http("admin") as door:
            return door.get(path, params=asked, timeout=60).raise_for_status()

    return until(answer, 60, f"an answer to {path}").json()


def job(pool: Pool, name: str) -> dict[str, Any]:
    found: dict[str, Any] = told(pool, f"/moorage/v1/jobs/{name}")
    return found


def workers(pool: Pool, name: str) -> int:
    """That its lease has now."""
    lease = job(pool, name)["lease"]
    return len(lease["workers"]) if lease else 0


def events(pool: Pool, name: str, *prefixes: str) -> list[dict[str, Any]]:
    found = told(pool, f"/moorage/v1/jobs/{name}/events", limit=1000)
    return [one for one in found if one["kind"].startswith(prefixes)]


def logs(pool: Pool, name: str) -> str:
    with pool.http("admin") as door:
        return str(door.get(f"/api/jobs/{name}/logs", timeout=60).json().get("logs"))[-4000:]


def ended(pool: Pool, name: str, timeout: float) -> dict[str, Any]:
    return until(
        lambda: (now := job(pool, name))["state"] in FINAL and now, timeout, f"{name} to end", every=0.3
    )


def steps(path: Path) -> list[dict[str, Any]]:
    return list(read_steps(path)) if path.exists() else []
