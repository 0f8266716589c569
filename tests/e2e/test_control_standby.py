"""A standby takes over from a leader that dies or stalls, and the stale one neither commits nor acts (G6).

Real processes, real signals, on both databases; what was done to the cluster is read from the cluster's own journal.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from planes import Nursery, Plane, Site
from waiting import until

WITHIN_S = 60.0


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def site(request: pytest.FixtureRequest, tmp_path: Path, nursery: Nursery) -> Iterator[Site]:
    url = ""
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql").database(tmp_path)
    with Site(tmp_path, nursery, url) as made:
        yield made


def pair(site: Site, **environment: str) -> tuple[Plane, Plane]:
    """A leader, started with the environment, and its standby."""
    leader = site.plane("first").start("--standby", **environment)
    until(leader.ready, 30, "the first to lead")
    standby = site.plane("second").start("--standby")
    said = standby.get("/healthz")
    assert said is not None and said.json()["role"] == "standby" and said.json()["generation"] == 1
    return leader, standby


def takeover(standby: Plane, since: float, what: str) -> float:
    until(standby.ready, WITHIN_S, f"the standby to lead after {what}: {standby.log}", every=0.02)
    took = time.monotonic() - since
    print(f"takeover after {what}: {took:.2f} s until it takes submissions")
    return took


def ended(plane: Plane, jobs: list[str]) -> None:
    until(
        lambda: all(plane.jobs().get(job) == "SUCCEEDED" for job in jobs),
        WITHIN_S,
        f"{jobs} to end: {plane.log}",
    )


def test_a_standby_takes_over_from_a_leader_that_is_killed(site: Site) -> None:
    leader, standby = pair(site)
    refused = standby.submit("too-early")
    assert refused is not None and refused.status_code == 503
    assert refused.json()["code"] == "standby" and int(refused.headers["Retry-After"]) >= 1
    assert refused.json()["leader"] == f"http://127.0.0.1:{leader.port}"
    assert not standby.ready()
    jobs = [f"job-{n}" for n in range(12)]
    for job in jobs:
        answer = leader.submit(job, seconds=1)
        assert answer is not None and answer.status_code == 200
    leader.kill()
    takeover(standby, time.monotonic(), "SIGKILL")
    assert set(standby.known()) == set(jobs), "every acknowledged job is there, and no other"
    ended(standby, jobs)
    assert site.launches() == {f"{job}-1": 1 for job in jobs}
    back = leader.start("--standby").get("/healthz")
    assert back is not None and back.json()["role"] == "standby", "the roles are not fixed"


def test_a_leader_that_ends_is_followed_at_once(site: Site) -> None:
    leader, standby = pair(site)
    leader.signal(signal.SIGTERM)
    assert leader.wait(90) == 0, leader.log
    takeover(standby, time.monotonic(), "SIGTERM")


@pytest.mark.parametrize("where", ["launch.begun", "admit.before-commit", "stop.after-commit"])
def test_a_stalled_leader_that_wakes_up_is_fenced(site: Site, where: str) -> None:
    """Stopped inside a transaction, before a launch that it has written down, and before a stop."""
    (site.home / "pool.yaml").write_text(site.pool.replace("takeover_s: 10", "takeover_s: 3"))
    leader, standby = pair(site, MOORAGE_FAILPOINT=f"{where}:stop")
    job, other = ("long", "late") if where == "stop.after-commit" else ("short", "late")
    seconds = 300 if job == "long" else 0.5
    # It may be stopped before its answer is out: then the next leader is asked once more, as a client would.
    first = leader.submit(job, seconds, within_s=10)
    assert first is None or first.status_code == 200
    if job == "long":
        until(lambda: leader.jobs().get("long") == "RUNNING", WITHIN_S, "the job to run")
        leader.request("POST", "/api/jobs/long/stop", timeout=0.5)
    until(lambda: psutil.Process(leader.pid).status() == psutil.STATUS_STOPPED, WITHIN_S, "it to be stopped")
    takeover(standby, time.monotonic(), f"SIGSTOP at {where}")
    if first is not None:
        assert job in standby.known(), "what was acknowledged is there"
    for name in (other,) if first is not None else (job, other):
        answer = standby.submit(name, seconds if name == job else 0.3)
        assert answer is not None and answer.status_code == 200
    before = len(site.effects())
    leader.signal(signal.SIGCONT)
    status = leader.wait(90)
    in_transaction_of_a_file = where == "admit.before-commit" and not site.database
    assert status == (-signal.SIGKILL if in_transaction_of_a_file else 3), leader.log
    assert in_transaction_of_a_file or "taken over this database" in leader.log
    until(lambda: standby.jobs().get(other) == "SUCCEEDED", WITHIN_S, "the job after the takeover")
    until(lambda: standby.jobs().get(job) in ("SUCCEEDED", "STOPPED"), WITHIN_S, "the job before it")
    assert {one["by"] for one in site.effects()[before:]} <= {standby.pid}, (
        "the stale leader did nothing more"
    )
    assert site.launches() == {f"{job}-1": 1, f"{other}-1": 1}
    assert "Traceback" not in standby.log


def test_a_leader_whose_loop_hangs_ends_and_is_followed(site: Site) -> None:
    """It beats and answers all the while: only its loop does nothing any more."""
    (site.home / "pool.yaml").write_text(site.pool + "stuck_s: 2\n")
    leader = site.plane("first").start("--standby", MOORAGE_FAILPOINT="launch.begun:hang")
    until(leader.ready, 30, "the first to lead")
    (site.home / "pool.yaml").write_text(site.pool)  # the second is not in a hurry
    standby = site.plane("second").start("--standby")
    answer = leader.submit("held-up")
    assert answer is not None and answer.status_code == 200
    assert leader.wait(WITHIN_S) == 4, leader.log
    assert "has not got on for 2 s" in leader.log and "_launch (effects.py" in leader.log
    takeover(standby, time.monotonic(), "a loop that hung")
    assert set(standby.known()) == {"held-up"}
    ended(standby, ["held-up"])
    assert site.launches() == {"held-up-1": 1} and {one["by"] for one in site.effects()} == {standby.pid}


def test_a_standby_with_none_of_the_pools_tokens_is_refused(site: Site) -> None:
    """It would issue new ones at its takeover, and everybody's would be void."""
    if not site.database:
        pytest.skip("one file has one home")
    until(site.plane("first").start("--standby").ready, 30, "the first to lead")
    other = Site(site.folder / "other", site.nursery, site.database)
    with other:
        second = other.plane("second").start("--standby", wait=False)
        assert second.wait(30) == 2 and "tokens-missing" in second.log


def test_the_second_without_standby_is_refused(tmp_path: Path, nursery: Nursery) -> None:
    with Site(tmp_path, nursery) as site:
        site.plane("first").start()
        second = site.plane("second").start(wait=False)
        assert second.wait(30) == 2
        assert "already-up" in second.log and "--standby" in second.log and "Traceback" not in second.log
