"""S2 S3: random teams, jobs, ends, kills, restarts and lost nodes over the simulated pool, with preemption on.

After every round: the ledger is sound, nobody is told to leave or to shrink who may not be, no attempt is told twice,
who was promised a place keeps it or gets it, and a job that follows its lease holds what it was asked to keep or
more. At the end every job has ended.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from control_world import World, world
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moorage.configs.pool import PoolSettings
from moorage.runtime.control.api import FINAL, PENDING, PREEMPTING
from moorage.runtime.control.simbackend import SimNode
from moorage.scheduling.validate import check

TEAMS = st.sampled_from(
    (
        "teams: {a: {quota: 3}, b: {quota: 1}}",
        "teams: {a: {quota: 1}, b: {quota: 3}, c: {}}",
        "teams: {a: {}, b: {}}",
        "teams: {a: {quota: 3}, b: {quota: 0}, c: {weight: 3}}",
    )
)
JOBS = st.lists(
    st.tuples(
        st.integers(0, 16),  # in which round it comes
        st.integers(0, 2),  # whose
        st.integers(1, 3),  # workers
        st.sampled_from((0.5, 1, 1, 1, 2)),  # GPUs of each
        st.sampled_from((100, 500, 900)),  # priority
        st.sampled_from((True, True, True, False)),  # preemptible
        st.integers(4, 15),  # seconds it needs in one piece
        st.integers(0, 8),  # how long it takes to leave, or to give workers up; above the grace: it is killed
        st.sampled_from((None, None, False, True)),  # elastic, and whether it follows its lease
    ),
    min_size=5,
    max_size=12,
)
FAULTS = st.lists(st.tuples(st.integers(1, 25), st.sampled_from(("restart", "kill", "node"))), max_size=3)
GRACE_S = 4


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(teams=TEAMS, jobs=JOBS, faults=FAULTS, nodes=st.sampled_from(((4,), (2, 2), (2, 1, 2))))
def test_every_preempted_job_ends_and_nobody_is_told_in_vain(teams, jobs, faults, nodes) -> None:
    config = PoolSettings.model_validate(
        {
            "preemption": {"least_run_s": 2, "grace_s": GRACE_S},
            "elastic": {"settle_s": 1},
            "infra_attempts": 100,
            "start_deadline_ms": 1000,
        }
    )
    machines = [SimNode(name=f"n{n}", devices=count) for n, count in enumerate(nodes)]
    with (
        tempfile.TemporaryDirectory() as folder,
        world(Path(folder), teams=teams, nodes=machines, settings=config) as w,
    ):
        play = Play(w)
        for at in range(400):
            for come, owner, workers, gpus, priority, preemptible, seconds, leaves_s, follows in jobs:
                names = w.service.teams.teams
                if come == at and workers * gpus <= 3 and gpus <= min(nodes):
                    job = w.submit(
                        list(names)[owner % len(names)],
                        workers=workers,
                        gpus=gpus,
                        priority=str(priority),
                        preemptible=str(preemptible).lower(),
                        seconds=str(seconds),
                        **({} if follows is None else {"min_workers": "1"}),
                    )
                    play.jobs[job] = (preemptible, leaves_s, bool(follows))
            for when, what in faults:
                play.fault(what, when, at)
            play.round()
            if at > 30 and all(w.job(job).state in FINAL for job in play.jobs):
                break
        states = {job: w.job(job).state for job in play.jobs}
        assert set(states.values()) <= {"SUCCEEDED"}, states
        book = w.service.core.book
        assert not book.leaving and not book.promises and not book.shrinking


class Play:
    def __init__(self, w: World) -> None:
        self.w = w
        self.jobs: dict[str, tuple[bool, int, bool]] = {}
        self.leaves_at: dict[str, int] = {}
        self.told: dict[str, int] = {}
        """Attempt -> notices."""
        self.asked: dict[str, int] = {}
        """Job -> since when it is asked to give workers up."""
        self.seen = 0
        self.promised: dict[str, int] = {}

    def fault(self, what: str, when: int, at: int) -> None:
        w = self.w
        if what == "node" and at in (when, when + 6):
            w.backend.down = {"n0"} if at == when else set()
        elif at == when and what == "restart":
            w.restart()
        elif at == when:
            for job in self.jobs:
                if w.job(job).state == "RUNNING":
                    w.backend.kill(f"{job}-{w.job(job).attempt}")
                    break

    def round(self) -> None:
        w, now = self.w, self.w.clock.now().control_ns
        for attempt, at in list(self.leaves_at.items()):
            if now >= at:
                w.backend.leave(attempt)
                del self.leaves_at[attempt]
        self._follow(now)
        before = set(w.service.core.book.promises)
        w.run(0.5)
        check(w.service.core.book.ledger)
        events = w.service.events(w.caller("admin"), after=self.seen, limit=1000)
        self.seen = events[-1]["seq"] if events else self.seen
        dropped = {one["job_id"] for one in events if one["kind"] == "preemption.dropped"}
        for one in events:
            if one["kind"] == "preemption.notice":
                self._told(one, now)
        for job in before - set(w.service.core.book.promises) - dropped:
            assert w.job(job).state != PENDING, f"{job} lost its promise without a word"
        pending = [job for job in w.service.core.book.promises if w.job(job).state != PENDING]
        assert not pending, f"promised and not waiting: {pending}"
        for job, one in w.service.core.book.leaving.items():
            assert w.job(job).state == PREEMPTING and w.job(job).attempt == one.attempt

    def _follow(self, now: int) -> None:
        """Who follows its lease says so when it runs, gives up what it is asked for, and takes what it is given."""
        w, admin = self.w, self.w.caller("admin")
        for job, (preemptible, gives_s, follows) in self.jobs.items():
            view = w.job(job)
            if view.state != "RUNNING" or not follows or f"{job}-{view.attempt}" not in w.backend.jobs:
                continue
            w.service.follow_lease(admin, job, follows=True)
            held = w.service.lease_now(admin, job)
            if held is None or view.lease is None:
                continue
            if held["asked"] is None:
                self.asked.pop(job, None)
                w.backend.hold(f"{job}-{view.attempt}", view.lease, held["workers"])
                continue
            assert preemptible and 1 <= held["workers"] < len(view.lease["workers"])
            if now - self.asked.setdefault(job, now) >= gives_s * 10**9:
                w.backend.hold(f"{job}-{view.attempt}", view.lease, held["workers"])
                assert w.service.follow_lease(admin, job, workers=held["workers"])

    def _told(self, event, now: int) -> None:
        job = event["job_id"]
        attempt = f"{job}-{event['payload']['attempt']}"
        preemptible, leaves_s, _ = self.jobs[job]
        assert preemptible, f"{job} may not be told to leave"
        assert attempt not in self.told, f"{attempt} was told twice"
        self.told[attempt] = now
        if leaves_s <= GRACE_S:
            self.leaves_at[attempt] = now + leaves_s * 10**9
