"""What a death or a stall of the control plane costs: seconds until submissions are taken, jobs lost, started twice.

Real processes and signals, over a simulated pool whose own journal says what was started. Twelve jobs are submitted,
the leader is killed or stopped amid them, clients go on trying, and every job must end. The faults of disk, database
and clock are tests: `pytest tests/e2e/test_control_faults.py -s` prints their figures.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from _frame import Figure, main

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import postgres  # noqa: E402
from planes import Nursery, Plane, Site  # noqa: E402
from waiting import until  # noqa: E402

JOBS = 12
WITHIN_S = 60.0
SETTINGS = "tick_ms: 500\n"
"""As a pool has them that says nothing: `takeover_s` is 6."""


def insist(planes: list[Plane], job: str) -> None:
    """As a client that never gives up, and asks whoever answers."""

    def taken() -> bool:
        return any(
            (answer := one.submit(job, seconds=1)) is not None and answer.status_code == 200 for one in planes
        )

    until(taken, WITHIN_S, f"{job} to be acknowledged")


def fault(site: Site, planes: list[Plane], stop: signal.Signals, again: bool) -> tuple[float, int, int, int]:
    """Seconds until submissions are taken, acknowledged jobs lost, started twice, acts of the old leader afterwards."""
    leader, other = planes[0], planes[-1]
    jobs = [f"job-{n}" for n in range(JOBS)]
    for job in jobs[: JOBS // 2]:
        insist([leader], job)
    leader.signal(stop)
    began = time.monotonic()
    old = leader.pid
    if again:
        leader.kill()
        leader.start(wait=False)
    until(other.ready, WITHIN_S, "submissions to be taken", every=0.02)
    took, before = time.monotonic() - began, len(site.effects())
    for job in jobs[JOBS // 2 :]:
        insist([other], job)
    if stop is signal.SIGSTOP:
        with contextlib.suppress(ProcessLookupError):
            leader.signal(signal.SIGCONT)
        leader.wait(30)
    until(lambda: set(other.jobs().values()) <= {"SUCCEEDED"}, WITHIN_S, "every job to end")
    launches = site.launches()
    lost = len(set(jobs) - set(other.jobs())) + len(
        set(jobs) - {name.rpartition("-")[0] for name in launches}
    )
    acts = sum(one["by"] == old for one in site.effects()[before:])
    return took, lost, sum(count > 1 for count in launches.values()), acts


@contextlib.contextmanager
def site(nursery: Nursery, server: postgres.Server | None) -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="mrl-") as name:
        url = server.database(Path(name)) if server else ""
        with Site(Path(name), nursery, url, SETTINGS) as made:
            yield made


def measure(quick: bool) -> list[Figure]:
    rounds, found, totals = 1 if quick else 5, list[Figure](), [0, 0, 0]
    server = postgres.Server() if postgres.BINARIES and not quick else None
    nursery = Nursery()
    cases = [("killed, started again", signal.SIGKILL, False), ("killed, standby", signal.SIGKILL, True)]
    cases += [("stalls, standby", signal.SIGSTOP, True)]
    try:
        for database, where in [("SQLite", None), *([("PostgreSQL", server)] if server else [])]:
            for name, stop, standby in cases:
                times = []
                for _ in range(rounds):
                    with site(nursery, where) as made:
                        planes = [made.plane("first").start("--standby")]
                        until(planes[0].ready, WITHIN_S, "the first to lead")
                        if standby:
                            planes.append(made.plane("second").start("--standby"))
                        took, *counts = fault(made, planes, stop, again=not standby)
                        times.append(took)
                        totals = [a + b for a, b in zip(totals, counts, strict=True)]
                told = f"no peer: of {rounds}, the longest"
                metric = f"{database}, leader {name}: s until it takes submissions"
                found.append(
                    Figure(metric=metric, ours=max(times), better="lower", peer_name=told, target=10.0)
                )
    finally:
        nursery.close()
        if server is not None:
            server.remove()
    names = ("acknowledged jobs lost", "attempts started twice", "acts of a replaced leader")
    for metric, total in zip(names, totals, strict=True):
        found.append(
            Figure(metric=metric, ours=float(total), better="lower", peer_name="in all of them", target=0.0)
        )
    return found


if __name__ == "__main__":
    raise SystemExit(main(measure, "what a death or a stall of the control plane costs"))
