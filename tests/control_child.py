"""A control plane that may be killed at a failpoint: one script over a simulated cluster that outlives it.

`python tests/control_child.py FOLDER` forks one child per failpoint, which dies there, then a second one that
finishes the work. It prints what it found as JSON; the launches come from the cluster's own journal, not from the
store.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from control_world import TEAMS, database_url, sound

from moorage.configs.pool import PoolSettings, PreemptionSettings
from moorage.configs.teams import parse_teams
from moorage.errors import Conflict, MoorageError
from moorage.runtime.control import failpoints
from moorage.runtime.control.api import Caller, GrowAsk, Submission
from moorage.runtime.control.clock import SystemClock
from moorage.runtime.control.launching import LaunchSettings
from moorage.runtime.control.service import Service
from moorage.runtime.control.simbackend import SimBackend, SimNode
from moorage.scheduling.guard import Holder, Holding, Part

ADMIN = Caller(principal="admin", kind="admin", team="", teams=frozenset())
JOBS = {"short": "0.3", "stopped": "60", "grower": "60", "gang": "0.3"}
PREEMPTING = ("preempt.", "promise.")
"""Failpoints of these begin another scene: `own` takes back the quota that `lent` borrows."""
LENDING = "teams: {ops: {quota: 2}, research: {quota: 2}}"
GUARD = {"confirm_s": 0, "grace_s": 0, "interval_ms": 100}
ROGUE = Holding(
    holder=Holder.ACTOR,
    id="rogue",
    parts=(Part(node="node-1", device=3, milli_gpu=1000),),
    owner="0a000000",
)
"""Comes with the first life: the cluster's journal knows it in the second."""
DEADLINE_S = 20.0


def opened(folder: Path, teams: str = TEAMS, nodes: int = 2, rogue: bool = False) -> Service:
    clock = SystemClock()
    first = not (folder / "journal.jsonl").exists()
    backend = SimBackend(
        [SimNode(name=f"node-{n}") for n in range(nodes)], clock, journal=folder / "journal.jsonl"
    )
    if rogue and first:
        backend.intrude(ROGUE)
    return Service(
        url=database_url(folder),
        teams=parse_teams(teams),
        backend=backend,
        token_folder=folder / "tokens",
        where=LaunchSettings(url="http://127.0.0.1:1", data="/d", secret=b"s"),
        settings=PoolSettings.model_validate(
            {"tick_ms": 10, "preemption": PreemptionSettings(grace_s=1, least_run_s=0), "guard": GUARD}
        ),
        clock=clock,
    )


def wait(condition: Any, what: str) -> None:
    deadline, idle = time.monotonic() + DEADLINE_S, threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited for {what}")
        idle.wait(0.01)


def work(folder: Path) -> dict[str, Any]:
    """Submit (again), grow, stop, wait for the end; what the control plane says of the jobs."""
    service = opened(folder)
    survived = sorted(view.job_id for view in service.jobs(ADMIN))
    service.start()

    def state(job: str) -> str:
        return service.job(ADMIN, job).state

    for job, seconds in JOBS.items():
        metadata = {"team": "ops", "gpus_per_worker": "1", "sim.seconds": seconds}
        if job == "gang":
            metadata["workers"] = "2"
        assert service.submit(ADMIN, Submission(entrypoint="x", submission_id=job, metadata=metadata)) == job
    wait(lambda: state("grower") not in ("PENDING", "ADMITTED", "STARTING"), "grower to run")
    with contextlib.suppress(Conflict):  # the stop of the first life may have been remembered
        grown = service.grow(ADMIN, GrowAsk(job_id="grower", milli_gpu=1000, timeout_s=15, name="more"))
        service.release_sublease(ADMIN, grown.lease_id)
    for job in ("grower", "stopped"):
        service.stop(ADMIN, job)
    wait(lambda: all(view.final for view in service.jobs(ADMIN)), "every job to end")
    service.loop.stop()
    sound(service, service.store.clock)
    said = {job: state(job) for job in JOBS}
    held = len(service.core.book.ledger.leases)
    service.close()
    return {"survived": survived, "states": said, "held": held}


def intrude(folder: Path) -> dict[str, Any]:
    """A rogue beside a job (submitted again): wait until the one was stopped and the other has succeeded."""
    service = opened(folder, rogue=True)
    service.start()
    metadata = {"team": "ops", "gpus_per_worker": "1", "sim.seconds": "0.3"}
    service.submit(ADMIN, Submission(entrypoint="x", submission_id="short", metadata=metadata))

    def judged() -> list[tuple[str, str]]:
        return [(one["target_id"], one["state"]) for one in service.guard(ADMIN)["findings"]]

    wait(lambda: judged() == [("rogue", "STOPPED")], "the rogue to be stopped")
    wait(lambda: service.job(ADMIN, "short").state == "SUCCEEDED", "the job beside it")
    service.loop.stop()
    sound(service, service.store.clock)
    told = [one["kind"] for one in service.events(ADMIN, limit=1000) if one["kind"].startswith("guard.")]
    held = len(service.core.book.ledger.leases)
    service.close()
    return {"guard": told, "held": held}


def lend(folder: Path) -> dict[str, Any]:
    """Lend (again), take back from a job that ignores its notice, wait until both had their turn."""
    service = opened(folder, LENDING, nodes=1)
    survived = sorted(view.job_id for view in service.jobs(ADMIN))
    service.start()

    def state(job: str) -> str:
        return service.job(ADMIN, job).state

    for job, team, gpus, seconds in (("lent", "ops", "4", "60"), ("own", "research", "2", "0.3")):
        metadata = {"team": team, "gpus_per_worker": gpus, "sim.seconds": seconds, "preemptible": "true"}
        assert service.submit(ADMIN, Submission(entrypoint="x", submission_id=job, metadata=metadata)) == job
        if job == "lent":
            wait(lambda: service.job(ADMIN, "lent").started_ns is not None, "the borrower to run")
    wait(lambda: state("own") == "SUCCEEDED", "the owner to have run")
    wait(
        lambda: state("lent") == "RUNNING" and service.job(ADMIN, "lent").attempt == 2, "the borrower's turn"
    )
    service.stop(ADMIN, "lent")
    wait(lambda: state("lent") == "STOPPED", "the borrower to end")
    service.loop.stop()
    sound(service, service.store.clock)
    said = {job: state(job) for job in ("lent", "own")}
    notices = [one["kind"] for one in service.events(ADMIN, limit=1000, job_id="lent")]
    held = len(service.core.book.ledger.leases)
    service.close()
    return {
        "survived": survived,
        "states": said,
        "held": held,
        "notices": notices.count("preemption.notice"),
    }


def forked(folder: Path, failpoint: str) -> int:
    """Run `work` in a child with the failpoint armed; its wait status."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            failpoints.arm(failpoint)
            scene = lend if folder.name.startswith(PREEMPTING) else work
            scene = intrude if folder.name.startswith("guard.") else scene
            (folder / "said.json").write_text(json.dumps(scene(folder)))
            code = 0
        except (MoorageError, AssertionError) as error:
            (folder / "error.txt").write_text(repr(error))
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def main() -> None:
    root = Path(sys.argv[1])
    found = {}
    for name in sys.argv[2:]:
        folder = root / name
        folder.mkdir(parents=True)
        killed = forked(folder, f"{name}:kill")
        after = forked(folder, "")
        error = folder / "error.txt"
        journal = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
        found[name] = {
            "killed_by": os.WTERMSIG(killed) if os.WIFSIGNALED(killed) else None,
            "second": os.waitstatus_to_exitcode(after),
            "error": error.read_text() if error.exists() else "",
            "stops": sorted(entry["submission_id"] for entry in journal if entry["op"] == "stop"),
            "launches": sorted(entry["submission_id"] for entry in journal if entry["op"] == "launch"),
            "ended": [entry["id"] for entry in journal if entry["op"] == "end"],
            **(json.loads((folder / "said.json").read_text()) if (folder / "said.json").exists() else {}),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
