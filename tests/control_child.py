"""A control plane that may be killed at a failpoint: one script over a simulated cluster that outlives it.

`python tests/control_child.py FOLDER NAME...` forks one child per failpoint, which dies there, then a second one that
finishes the work; with `--every SCENE...` instead, one for each commit that a scene makes. It prints what it found as
JSON; the launches come from the cluster's own journal, not from the store.
"""

from __future__ import annotations

import contextlib
import itertools
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
from moorage.errors import Conflict, MoorageError, NotFound
from moorage.runtime import answers
from moorage.runtime.control import failpoints
from moorage.runtime.control.api import Caller, GrowAsk, ReplicaReport, Submission
from moorage.runtime.control.clock import SystemClock
from moorage.runtime.control.launching import LaunchSettings
from moorage.runtime.control.service import Service
from moorage.runtime.control.simbackend import SimBackend, SimNode
from moorage.scheduling.guard import Holder, Holding, Part

ADMIN = Caller(principal="admin", kind="admin", team="", teams=frozenset())
JOBS = {"short": "0.3", "stopped": "60", "grower": "60", "gang": "0.3"}
PREEMPTING = ("preempt.", "promise.")
"""Failpoints of these begin another scene: `own` takes back the quota that `lent` borrows."""
KEPT = "teams: {ops: {quota: 2, limit: 5}, research: {quota: 2, limit: 2}}"
KEEPING = ("quota.", "drain.", "delete.")
LENDING = "teams: {ops: {quota: 2}, research: {quota: 2}}"
GUARD = {"confirm_s": 0, "grace_s": 0, "interval_ms": 100}
ROGUE = Holding(
    holder=Holder.ACTOR,
    id="rogue",
    parts=(Part(node="node-1", device=3, milli_gpu=1000),),
    owner="0a000000",
)
"""Comes with the first life: the cluster's journal knows it in the second."""
DEADLINE_S = 60.0


def opened(
    folder: Path, teams: str = TEAMS, nodes: int = 2, rogue: bool = False, grace_s: int = 1
) -> Service:
    clock = SystemClock()
    first = not (folder / "journal.jsonl").exists()
    backend = SimBackend(
        [SimNode(name=f"node-{n}") for n in range(nodes)], clock, journal=folder / "journal.jsonl"
    )
    if rogue and first:
        backend.intrude(ROGUE)
    service = Service(
        url=database_url(folder),
        teams=parse_teams(teams),
        backend=backend,
        token_folder=folder / "tokens",
        where=LaunchSettings(url="http://127.0.0.1:1", data="/d", secret=b"s"),
        settings=PoolSettings.model_validate(
            {
                "tick_ms": 10,
                "preemption": PreemptionSettings(grace_s=grace_s, least_run_s=0),
                "elastic": {"settle_s": 0},
                "guard": GUARD,
            }
        ),
        clock=clock,
    )
    (folder / "back").write_text(repr(time.monotonic()))
    return service


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
        service.release_sublease(ADMIN, grown["lease_id"])
    with contextlib.suppress(Conflict):
        service.publish_endpoint(ADMIN, "name", "app", "/route", "grower")
        lease = next((one.lease for one in service.core.book.ledger.held_by("grower")), "")
        place = answers.Replica(
            app="app", route="/route", lease_id=lease, node="", devices=[], state="SERVING"
        )
        service.report_replicas(
            ADMIN, "name", ReplicaReport(min_replicas=1, max_replicas=2, wanted=1, replicas=[place])
        )
    for job in ("grower", "stopped"):
        service.stop(ADMIN, job)
    wait(lambda: all(view.final for view in service.jobs(ADMIN)), "every job to end")
    service.loop.stop()
    sound(service, service.store.clock)
    said = {job: state(job) for job in JOBS}
    held = len(service.core.book.ledger.leases)
    service.close()
    return {"survived": survived, "states": said, "held": held}


def keep(folder: Path) -> dict[str, Any]:
    """What an admin changes: quotas, a drained node, a job deleted (again); what the store had of it at the start."""
    service = opened(folder)
    found = {"version": service.quotas(ADMIN)["version"], "drained": sorted(service.core.book.drained)}
    service.start()
    metadata = {"team": "ops", "gpus_per_worker": "1", "sim.seconds": "0.1"}
    with contextlib.suppress(Conflict):  # the first life may have deleted it: its id is not used again
        service.submit(ADMIN, Submission(entrypoint="x", submission_id="short", metadata=metadata))

    def over() -> bool:
        try:
            return service.job(ADMIN, "short").final
        except NotFound:
            return True

    wait(over, "the job to end")
    service.put_quotas(ADMIN, KEPT)
    service.drain(ADMIN, "node-1", True, "new fan")
    with contextlib.suppress(NotFound):
        service.delete(ADMIN, "short")
    journal = folder / "journal.jsonl"
    wait(lambda: '"forget"' in journal.read_text(), "the attempt to be forgotten")
    service.loop.stop()
    sound(service, service.store.clock)
    kinds = [one["kind"] for one in service.events(ADMIN, limit=1000)]
    kept = [kinds.count(kind) for kind in ("quota.applied", "node.drained", "job.deleted")]
    drained, held = sorted(service.core.book.drained), len(service.core.book.ledger.leases)
    service.close()
    return {"found": found, "kept": kept, "drained": drained, "held": held}


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
        lambda: (now := service.job(ADMIN, "lent")).final or (now.state == "RUNNING" and now.attempt == 2),
        "the borrower's turn, unless it was stopped before",
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


def resize(folder: Path) -> dict[str, Any]:
    """An elastic job gives two of four workers up for another team's, and gets them back: the same job all along."""
    service = opened(folder, LENDING, nodes=1, grace_s=60)
    service.start()
    backend = service.loop.backend
    assert isinstance(backend, SimBackend)

    def workers() -> int:
        lease = service.job(ADMIN, "lent").lease
        return len(lease["workers"]) if lease else 0

    def over() -> bool:
        return service.job(ADMIN, "lent").final

    shape = {"workers": "4", "min_workers": "1", "gpus_per_worker": "1", "preemptible": "true"}
    lent = {"team": "ops", "sim.seconds": "60", **shape}
    service.submit(ADMIN, Submission(entrypoint="x", submission_id="lent", metadata=lent))
    wait(lambda: over() or service.job(ADMIN, "lent").state == "RUNNING", "the borrower to run")
    with contextlib.suppress(Conflict):  # it was stopped before
        service.follow_lease(ADMIN, "lent", follows=True)
    own = {"team": "research", "sim.seconds": "0.3", "workers": "2", "gpus_per_worker": "1"}
    service.submit(ADMIN, Submission(entrypoint="x", submission_id="own", metadata=own))

    def asked() -> bool:
        now = service.lease_now(ADMIN, "lent")
        return now is not None and now["asked"] is not None

    wait(lambda: asked() or service.job(ADMIN, "own").started_ns is not None, "the ask, or the room")
    if asked():
        lease = service.job(ADMIN, "lent").lease
        assert lease is not None
        backend.hold("lent-1", lease, 2)
        service.follow_lease(ADMIN, "lent", workers=2)
    wait(lambda: service.job(ADMIN, "own").state == "SUCCEEDED", "the owner to have run")
    wait(lambda: over() or workers() == 4, "the borrower to grow again")
    service.stop(ADMIN, "lent")
    wait(lambda: service.job(ADMIN, "lent").state == "STOPPED", "the borrower to end")
    service.loop.stop()
    sound(service, service.store.clock)
    told = [one["kind"] for one in service.events(ADMIN, limit=1000, job_id="lent")]
    held = len(service.core.book.ledger.leases)
    service.close()
    return {"asks": told.count("resize.asked"), "resizes": told.count("lease.resized"), "held": held}


SCENES = {"work": work, "lend": lend, "intrude": intrude, "keep": keep, "resize": resize}


def scene_of(failpoint: str) -> str:
    """Where a named failpoint is come by."""
    if failpoint.startswith(PREEMPTING):
        return "lend"
    if failpoint.startswith(KEEPING):
        return "keep"
    return {"guard": "intrude", "resize": "resize"}.get(failpoint.partition(".")[0], "work")


def forked(folder: Path, scene: str, failpoint: str) -> int:
    """Run a scene in a child with the failpoint armed; its wait status."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            failpoints.arm(failpoint)
            (folder / "said.json").write_text(json.dumps(SCENES[scene](folder)))
            code = 0
        except (MoorageError, AssertionError) as error:
            (folder / "error.txt").write_text(repr(error))
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def killed_at(folder: Path, scene: str, failpoint: str) -> dict[str, Any]:
    """Two lives: the first one dies at the failpoint if it comes there, the second one finishes the scene."""
    folder.mkdir(parents=True)
    killed = forked(folder, scene, failpoint)
    if not os.WIFSIGNALED(killed):
        return {"killed_by": None, "error": (folder / "error.txt").read_text() if killed else ""}
    died = time.monotonic()
    after = forked(folder, scene, "")
    error = folder / "error.txt"
    journal = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    return {
        "killed_by": os.WTERMSIG(killed),
        "second": os.waitstatus_to_exitcode(after),
        "back_s": float((folder / "back").read_text()) - died if (folder / "back").exists() else None,
        "error": error.read_text() if error.exists() else "",
        "stops": sorted(entry["submission_id"] for entry in journal if entry["op"] == "stop"),
        "launches": sorted(entry["submission_id"] for entry in journal if entry["op"] == "launch"),
        "ended": [entry["id"] for entry in journal if entry["op"] == "end"],
        **(json.loads((folder / "said.json").read_text()) if (folder / "said.json").exists() else {}),
    }


def main() -> None:
    """FOLDER NAME...: each failpoint once. FOLDER --every SCENE...: before and after each commit of a scene."""
    root, names = Path(sys.argv[1]), sys.argv[2:]
    found = {}
    if names[0] == "--every":
        for scene in names[1:]:
            for where in failpoints.EVERY:
                for at in itertools.count(1):
                    seen = killed_at(root / scene / where / str(at), scene, f"{where}:kill:{at}")
                    found[f"{scene}/{where}/{at}"] = seen
                    if seen["killed_by"] is None:
                        break
    else:
        for name in names:
            # of the resizes the third: after what it starts with, and that it follows, what it gives up
            count = ":3" if name.startswith("resize.") else ""
            found[name] = killed_at(root / name, scene_of(name), f"{name}:kill{count}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
