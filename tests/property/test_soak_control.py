"""S2 S3 G6 L5: long random lives of the control plane over a simulated pool, on both databases.

Users submit, stop and grow; jobs fail, are lost, overrun; nodes leave and return; the control plane is restarted and
its database server dies. A slice of it in every test run, the rest in `make soak`.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from control_world import World, sound, world
from postgres import Server
from sqlalchemy import select
from waiting import until

from moorage.configs.pool import PoolSettings
from moorage.errors import Infeasible, LeaseTimeout, MoorageError, Unavailable
from moorage.runtime.control.api import GrowAsk, Submission
from moorage.runtime.control.outcome import judge
from moorage.runtime.control.simbackend import SimJob, SimNode
from moorage.runtime.control.store import sqlite_url
from moorage.runtime.control.tables import attempts, events, jobs, leases

NODES = tuple(SimNode(name=f"node-{n}", gpu_model="L4" if n % 2 else "A10") for n in range(4))
TEAMS = "teams: {ops: {quota: 8, limit: 12}, research: {quota: 3, limit: 5, lend: 2}}"
CHECK_EVERY = 15
MAX_WAITING = 30
TICK_S = 1.0


class Churn:
    """One life. `step` does one random thing and lets a second pass; `finish` lets all end and judges the whole."""

    def __init__(self, w: World, seed: int, server: Server | None) -> None:
        self.w, self.rng, self.server = w, random.Random(seed), server
        self.acknowledged: dict[str, str] = {}
        """Job -> the team that it was charged to."""
        self.past: dict[str, SimJob] = {}
        """What the cluster had to say of attempts that it has since forgotten, as Ray does in time."""
        self.done: Counter[str] = Counter()

    def step(self) -> None:
        rng = self.rng
        if len(self.w.service.core.book.pending) < MAX_WAITING:
            for _ in range(rng.choice((0, 1, 1, 2))):
                self.submit()
        for act, chance in (
            (self.stop, 0.15),
            (self.grow, 0.10),
            (self.give_back, 0.08),
            (self.kill, 0.05),
            (self.node, 0.06),
            (self.blind, 0.02),
            (self.restart, 0.02),
            (self.database_dies, 0.003),
        ):
            if rng.random() < chance:
                act()
        self.w.run(TICK_S, step=TICK_S)

    def submit(self) -> None:
        rng, team = self.rng, self.rng.choice(("ops", "ops", "research"))
        job, workers = f"j{self.done['asked']}", rng.choice((1, 1, 1, 2, 3, 7))
        self.done["asked"] += 1
        options = {
            "priority": str(rng.randrange(0, 1000)),
            "min_workers": str(rng.randrange(1, workers + 1)),
            "seconds": f"{rng.choice((0.2, 2, 5, 9, 20))}",
            "exit": rng.choice(("0",) * 7 + ("1", "3", "lost")),
            "max_attempts": rng.choice(("1", "1", "3")),
        }
        if rng.random() < 0.1:
            options["max_runtime"] = "4s"
        try:
            made = self.w.submit(
                team, job=job, gpus=rng.choice((0.2, 0.5, 1, 1, 2)), workers=workers, **options
            )
        except Infeasible:
            self.done["refused"] += 1
            return
        assert made == job
        self.acknowledged[job] = team
        if rng.random() < 0.1:  # the answer was lost: asked again, it is the same job
            row = self.w.job(job).submission
            again = Submission(entrypoint=row.entrypoint, submission_id=job, metadata=row.metadata)
            assert self.w.service.submit(self.w.caller(team), again) == job

    def pick(self, *states: str) -> str | None:
        with self.w.service.store.read() as db:
            found = db.execute(
                select(jobs.c.id).where(jobs.c.state.in_(states)).order_by(jobs.c.created_ns)
            ).scalars()
            known = list(found)
        return self.rng.choice(known) if known else None

    def stop(self) -> None:
        job = self.pick("PENDING", "ADMITTED", "STARTING", "RUNNING")
        if job is not None:
            assert self.w.service.stop(self.w.caller(self.acknowledged[job]), job)
            self.done["stopped"] += 1

    def grow(self) -> None:
        """As the front door does, in a thread: some get it, some give up with the reason."""
        job = self.pick("RUNNING")
        if job is None:
            return
        ask = GrowAsk(
            job_id=job,
            workers=self.rng.choice((1, 2, 4)),
            milli_gpu=self.rng.choice((500, 1000)),
            timeout_s=0.05,
        )
        caller, answers = self.w.caller(self.acknowledged[job]), []

        def asking() -> None:
            try:
                answers.append(self.w.service.grow(caller, ask)["lease_id"])
            except MoorageError as error:
                answers.append(error)

        thread = threading.Thread(target=asking)
        thread.start()
        until(lambda: self.w.service.loop.tick() or answers, 20, "the answer", every=0.005)
        thread.join()
        answer = answers[0]
        assert isinstance(answer, str | LeaseTimeout | Infeasible) or answer.code == "job-not-running", answer
        self.done["grown" if isinstance(answer, str) else "not grown"] += 1

    def give_back(self) -> None:
        with self.w.service.store.read() as db:
            rows = db.execute(
                select(leases)
                .where(leases.c.kind == "sublease", leases.c.held.is_(True))
                .order_by(leases.c.epoch)
            ).all()
        if rows:
            row = self.rng.choice(rows)
            assert self.w.service.release_sublease(self.w.caller(row.team), row.id)
            self.done["given back"] += 1

    def kill(self) -> None:
        alive = [job for job in self.w.backend.jobs.values() if job.ended_ns is None]
        if alive:
            victim = self.rng.choice(alive).submission_id
            (self.w.backend.kill if self.rng.random() < 0.7 else self.w.backend.lose)(victim)
            self.done["killed"] += 1

    def node(self) -> None:
        """A node leaves with all that ran on it, or returns as a new incarnation."""
        backend, name = self.w.backend, self.rng.choice(NODES).name
        if name in backend.down:
            backend.down.discard(name)
            backend.incarnation[name] = backend.incarnation.get(name, 0) + 1
            self.done["node returned"] += 1
            return
        backend.down.add(name)
        for job in [j for j in backend.jobs.values() if j.ended_ns is None and name in j.need]:
            backend.kill(job.submission_id)
        self.done["node lost"] += 1

    def blind(self) -> None:
        self.w.backend.unavailable = True
        self.w.run(3 * TICK_S, step=TICK_S)
        self.w.backend.unavailable = False
        self.done["blind"] += 1

    def restart(self) -> None:
        self.w.restart()
        self.done["restarted"] += 1

    def database_dies(self) -> None:
        """Without a word, as in a power cut; what is asked meanwhile is refused, not acknowledged."""
        if self.server is None:
            return
        self.server.stop(signal.SIGQUIT)
        with pytest.raises(Unavailable):
            self.submit()
        with pytest.raises(Unavailable):
            self.w.service.loop.tick()
        self.server.start()
        self.done["database crashed"] += 1

    def check(self) -> None:
        sound(self.w.service, self.w.clock)
        for team, limit in (("ops", 12_000), ("research", 5_000)):
            assert self.w.held(team) <= limit, f"{team} is over its limit"
        self.forget()
        queue = self.w.service.status(self.w.caller("admin"))["queue"]
        assert all(row["message"] for row in queue), "a job that waits without a reason"

    def forget(self) -> None:
        with self.w.service.store.read() as db:
            ended = db.execute(select(attempts.c.submission_id).where(attempts.c.ended_ns.is_not(None)))
            for name in set(ended.scalars()) & set(self.w.backend.jobs):
                if self.w.backend.jobs[name].ended_ns is not None:
                    self.past[name] = self.w.backend.jobs.pop(name)

    def finish(self) -> None:
        """Everything comes back, nobody asks for more: every job must end."""
        self.w.backend.down.clear()
        for _ in range(2000):
            if self.pick("PENDING", "ADMITTED", "STARTING", "RUNNING", "PREEMPTING") is None:
                break
            self.w.run(TICK_S, step=TICK_S)
        self.w.restart()
        self.check()
        admin = self.w.caller("admin")
        views = {view.job_id: view for view in self.w.service.jobs(admin)}
        assert set(views) == set(self.acknowledged), "acknowledged is durable, refused leaves nothing"
        assert not [view for view in views.values() if not view.final]
        assert {job: view.team for job, view in views.items()} == self.acknowledged
        assert not self.w.service.core.book.ledger.leases, "every lease ends"
        self.as_the_cluster_says()
        self.done.update(view.state for view in views.values())

    def as_the_cluster_says(self) -> None:
        """Each attempt was launched once, and its end in the store is the one that the cluster wrote down."""
        launches, past = Counter(self.w.backend.launches), self.past | self.w.backend.jobs
        assert max(launches.values()) == 1, "an attempt was started twice"
        with self.w.service.store.read() as db:
            rows = db.execute(select(attempts, jobs.c.state.label("final")).join(jobs)).all()
            asked = {row.id: row.stop_reason for row in db.execute(select(jobs.c.id, jobs.c.stop_reason))}
            released = Counter(
                db.execute(select(events.c.lease_id).where(events.c.kind == "lease.released")).scalars()
            )
            granted = set(db.execute(select(leases.c.id)).scalars())
            last = {row.id: row.attempt for row in db.execute(select(jobs.c.id, jobs.c.attempt))}
        assert set(released) == granted and set(released.values()) <= {1}, "a lease is released exactly once"
        assert {row.submission_id for row in rows if row.launched_ns is not None} == set(launches)
        for row in rows:
            seen = past.get(row.submission_id)
            if row.launched_ns is None or seen is None:  # never asked of the cluster, or its record was lost
                assert row.state != "SUCCEEDED", row
                continue
            assert seen.ended_ns is not None, f"{row.submission_id} still runs on the cluster"
            if row.number != last[row.job_id] or row.state == "LOST":
                assert row.state in ("LOST", "FAILED") and seen.status != "SUCCEEDED", f"{row} against {seen}"
                continue
            code = seen.exit_code if seen.status in ("SUCCEEDED", "FAILED") else None
            verdict = judge(seen.status, seen.message, code, asked[row.job_id]).kind
            assert row.state == verdict.upper(), f"{row} against {seen}"
            assert row.final == row.state or (row.final, row.state) == ("STOPPED", "FAILED"), row


def live(folder: Path, server: Server | None, *, wanted: int, seconds: float, seed: int) -> Counter[str]:
    """One life: until `wanted` jobs are acknowledged, or `seconds` of this machine's time are over."""
    url = sqlite_url(folder / "control.db") if server is None else server.database(folder)
    settings = PoolSettings(start_deadline_ms=3000, lost_after_ms=2000, infra_attempts=3)
    end, steps = time.monotonic() + seconds, 0
    try:
        with world(
            folder, teams=TEAMS, nodes=NODES, settings=settings, url=url, start_s=0.5, free_lag_s=0.5
        ) as w:
            churn = Churn(w, seed, server)
            while len(churn.acknowledged) < wanted and time.monotonic() < end:
                churn.step()
                steps += 1
                if steps % CHECK_EVERY == 0:
                    churn.check()
            churn.database_dies()
            churn.finish()
            print(f"seed {seed}: {steps} steps, {len(churn.acknowledged)} jobs, {dict(churn.done)}")
            return churn.done
    except BaseException:
        print(f"failed with seed {seed} at step {steps}")
        raise


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest) -> Server | None:
    """None: SQLite."""
    return request.getfixturevalue("postgresql") if request.param == "postgresql" else None


def test_a_life_slice(tmp_path: Path, server: Server | None) -> None:
    done = live(tmp_path, server, wanted=100, seconds=90, seed=1)
    assert done["SUCCEEDED"] and done["FAILED"] and done["STOPPED"] and done["killed"] and done["node lost"]


@pytest.mark.soak
@pytest.mark.parametrize("seed", [2, 3])
def test_a_long_life(tmp_path: Path, server: Server | None, seed: int) -> None:
    done = live(tmp_path, server, wanted=2_000, seconds=1_200, seed=seed)
    assert all(done[kind] for kind in ("SUCCEEDED", "FAILED", "STOPPED", "QUARANTINED", "grown", "restarted"))
    assert server is None or done["database crashed"] > 1
