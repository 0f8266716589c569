"""The control plane over real raylets: SIGKILL and quota, judged by the files that jobs wrote (S2 S9 G6)."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from pools import Pool
from waiting import until

WITHIN_S = 120.0


@pytest.fixture
def diary(tmp_path: Path) -> Iterator[Path]:
    """Where jobs write `<word> <job> <time>` lines, each in one append."""
    yield tmp_path / "diary"


def entrypoint(diary: Path, seconds: float) -> str:
    line = f'echo "%s $MOORAGE_JOB_ID $(date +%%s.%%N)" >> {diary}'
    return f"{line % 'start'}; sleep {seconds}; {line % 'end'}"


def submit(pool: Pool, team: str, job: str, command: str, **metadata: str) -> None:
    """As a client that never gives up: the same id until it is acknowledged."""
    body = {"entrypoint": command, "submission_id": job, "metadata": metadata}

    def accepted() -> bool:
        try:
            with pool.http(team) as client:
                answer = client.post("/api/jobs/", json=body)
        except httpx.TransportError:
            return False
        if answer.status_code >= 500:
            return False
        assert answer.status_code == 200, answer.text
        return True

    until(accepted, 60, f"{job} to be acknowledged")


def kill_control(pool: Pool) -> None:
    """SIGKILL by pid, then wait until its successor answers."""
    before = pool.process("control")
    os.kill(before.pid, signal.SIGKILL)
    until(lambda: not before.alive(), 10, "the control plane to be dead")
    until(lambda: pool.process("control").pid != before.pid and answers(pool), 60, "its successor to answer")


def answers(pool: Pool) -> bool:
    try:
        with pool.http(None) as client:
            return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


def job_states(pool: Pool, prefix: str) -> dict[str, str]:
    try:
        with pool.http("admin") as client:
            answer = client.get("/api/jobs/")
    except httpx.TransportError:
        return {}
    jobs = answer.json() if answer.status_code == 200 else []
    return {job["submission_id"]: job["status"] for job in jobs if job["submission_id"].startswith(prefix)}


def ended(pool: Pool, prefix: str, count: int) -> bool:
    seen = job_states(pool, prefix)
    return len(seen) == count and all(state == "SUCCEEDED" for state in seen.values())


def test_jobs_survive_kills_of_the_control_plane_and_run_exactly_once(pool: Pool, diary: Path) -> None:
    """G6: killed while jobs are submitted, start, run and end; none lost, none started twice."""
    jobs = [f"kill-{n}" for n in range(6)]
    for number, job in enumerate(jobs):
        submit(pool, "ops", job, entrypoint(diary, 4), gpus_per_worker="1")
        if number in (1, 3):
            kill_control(pool)
    kill_control(pool)
    until(lambda: diary.exists(), WITHIN_S, "a job to start")
    kill_control(pool)
    until(lambda: ended(pool, "kill-", len(jobs)), WITHIN_S, "all jobs to succeed", every=0.5)
    said = Counter(tuple(line.split()[:2]) for line in diary.read_text().splitlines())
    assert said == Counter({(word, job): 1 for word in ("start", "end") for job in jobs})


def test_quota_holds_on_the_pool_and_the_reason_is_told(pool: Pool, diary: Path) -> None:
    """S2, S8: four jobs of one GPU for a team of two, while six GPUs are free."""
    jobs = [f"quota-{n}" for n in range(4)]
    for job in jobs:
        submit(pool, "research", job, entrypoint(diary, 5), gpus_per_worker="1")
    with pool.http("research") as client:

        def reason() -> str:
            seen = [client.get(f"/api/jobs/{job}").json() for job in jobs]
            waiting = [
                one["message"] for one in seen if one["status"] == "PENDING" and "limit" in one["message"]
            ]
            return waiting[0] if waiting else ""

        text = until(reason, WITHIN_S, "a job to be held back")
    assert "research holds 2 of its limit of 2" in text
    until(lambda: ended(pool, "quota-", len(jobs)), WITHIN_S, "all jobs to succeed", every=0.5)
    moments = sorted(
        (float(when), 1 if word == "start" else -1)
        for word, _, when in map(str.split, diary.read_text().splitlines())
    )
    together = most = 0
    for _, change in moments:
        together += change
        most = max(most, together)
    assert len(moments) == 8 and most <= 2, f"{most} jobs of one GPU ran at once, the limit is 2"


def test_stop_ends_the_job_and_frees_its_devices(pool: Pool, diary: Path) -> None:
    submit(pool, "ops", "stop-1", entrypoint(diary, 600), gpus_per_worker="1", workers="4")
    until(lambda: job_states(pool, "stop-1").get("stop-1") == "RUNNING", WITHIN_S, "the job to run")
    until(lambda: diary.exists(), WITHIN_S, "the entrypoint to write")
    with pool.http("ops") as client:
        assert client.post("/api/jobs/stop-1/stop").json() == {"stopped": True}
        until(lambda: job_states(pool, "stop-1").get("stop-1") == "STOPPED", WITHIN_S, "the job to stop")
        status = client.get("/moorage/v1/status").json()
    assert all(not device["holders"] for device in status["devices"])
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if str(diary) in " ".join(p.info["cmdline"] or [])
    ]


def test_a_lease_grows_and_shrinks_from_inside_a_job(pool: Pool, diary: Path) -> None:
    """S2: more room for a running job, granted within quota or refused with nothing held."""
    submit(pool, "research", "grow-1", entrypoint(diary, 600), gpus_per_worker="1")
    until(lambda: job_states(pool, "grow-1").get("grow-1") == "RUNNING", WITHIN_S, "the job to run")
    with pool.http("research") as client:
        ask = {"job_id": "grow-1", "workers": 1, "milli_gpu": 1000, "timeout_s": 20}
        granted = client.post("/moorage/v1/leases", json=ask)
        assert granted.status_code in (200, 201), granted.text
        refused = client.post("/moorage/v1/leases", json={**ask, "timeout_s": 2})
        assert refused.status_code in (408, 422) and "limit" in refused.text
        status = client.get("/moorage/v1/status").json()
        held = {row["team"]: row["used_milli_gpu"] for row in status["teams"]}
        assert held["research"] == 2000
        lease = granted.json()["lease_id"]
        assert client.delete(f"/moorage/v1/leases/{lease}").status_code in (200, 204)
        assert job_states(pool, "grow-1")["grow-1"] == "RUNNING", "it all happened inside the job's life"
        client.post("/api/jobs/grow-1/stop")
    until(lambda: job_states(pool, "grow-1").get("grow-1") == "STOPPED", WITHIN_S, "the job to stop")
