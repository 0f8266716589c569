"""S3: backfill: the planner against plain counting, and that no reservation gets later by what is started before it."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

from backfill_reference import FOREVER, Held, Wants, backfill
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.scheduling.ledger import LeaseGranted, LeaseReleased, Ledger, NodeUp, TeamSet, step
from moorage.scheduling.model import (
    UNLIMITED,
    DeviceRule,
    JobRequest,
    Lease,
    NodeSpec,
    Plan,
    Policy,
    ReasonCode,
    Shape,
    Snapshot,
    TeamSpec,
)
from moorage.scheduling.planner import plan
from moorage.scheduling.queue import Queue
from moorage.scheduling.running import RunningJobs
from moorage.scheduling.validate import check

NOW = 1000
DEVICES = 6
jobs = st.lists(
    st.tuples(st.integers(1, DEVICES), st.integers(0, 12)).map(lambda x: Wants(*x)), min_size=1, max_size=8
)
helds = st.lists(
    st.tuples(st.integers(1, 3), st.one_of(st.integers(NOW - 3, NOW + 12), st.just(FOREVER))).map(
        lambda x: Held(*x)
    ),
    max_size=4,
)


def request(name: str, gpus: int, runs: int, at: int, each: int = 0) -> JobRequest:
    """One task, or tasks of `each` GPUs."""
    workers = gpus // each if each else 1
    return JobRequest(
        job=name,
        team="a",
        submitted_ns=at,
        worker=Shape(milli_gpu=(each or gpus) * 1000),
        workers=workers,
        min_workers=workers,
        max_runtime_ns=runs,
    )


class Pool:
    """Nodes, who runs there until when, and who waits."""

    def __init__(
        self, nodes: int, devices: int, rule: DeviceRule = DeviceRule.FREE, quotas: tuple[int, ...] = ()
    ) -> None:
        self.ledger, self.rule, self.now = Ledger(), rule, NOW
        self.ends: dict[str, int] = {}
        self.waiting: list[JobRequest] = []
        for team, gpus in zip("ab", quotas or (0,), strict=False):
            quota = (("*", gpus * 1000),) if quotas else ()
            step(self.ledger, TeamSet(TeamSpec(name=team, quota=quota, limit=quota)))
        for n in range(nodes):
            step(self.ledger, NodeUp(NodeSpec(name=f"n{n}", gpu_model="A", devices=devices)))

    def decide(self, waiting: list[JobRequest], reservations: int) -> Plan:
        self.snapshot = Snapshot(
            version=self.ledger.version,
            ledger=self.ledger,
            pending=Queue.of(waiting),
            device_rule=self.rule,
            running=RunningJobs.holding(self.ledger, self.ends),
        )
        policy = Policy(hold_after_ns=UNLIMITED, reservations=reservations, window_ns=UNLIMITED)
        return plan(self.snapshot, policy, self.now)

    def start(self, made: Plan) -> set[str]:
        begun = set()
        for job, tasks in made.admissions(self.snapshot):
            epoch = self.ledger.last_epoch + 1
            step(
                self.ledger,
                LeaseGranted(Lease(lease=job.job, job=job.job, team=job.team, epoch=epoch, tasks=tasks)),
            )
            if job.max_runtime_ns:
                self.ends[job.job] = self.now + job.max_runtime_ns
            begun.add(job.job)
        check(self.ledger)
        return begun

    def release(self, name: str) -> None:
        step(self.ledger, LeaseReleased(name, self.ledger.leases[name].epoch))
        self.ends.pop(name, None)


@settings(max_examples=300, deadline=None)
@given(held=helds, waiting=jobs, reservations=st.sampled_from([0, 1]))
def test_the_planner_does_what_counting_says(
    held: list[Held], waiting: list[Wants], reservations: int
) -> None:
    """No backfill rule, and EASY. Under conservative backfill devices matter too: each reservation has its own."""
    pool = Pool(1, DEVICES)
    taken: list[Held] = []
    for i, one in enumerate(held):
        pool.now = NOW - 100
        if pool.start(pool.decide([request(f"h{i}", one.gpus, 0, 0)], 0)):
            taken.append(one)
            if one.ends < FOREVER:
                pool.ends[f"h{i}"] = one.ends
    pool.now = NOW
    made = pool.decide([request(f"j{i}", w.gpus, w.runs, i) for i, w in enumerate(waiting)], reservations)
    starts, reserved = backfill(DEVICES, taken, waiting, NOW, reservations)
    assert sorted(made.admitted.tolist()) == starts
    assert {one.row: one.start_ns for one in made.reserved} == reserved
    assert [reason.code for reason in made.reasons].count("reserved") == len(reserved)


gangs = st.tuples(
    st.sampled_from([(1, 0), (2, 0), (4, 0), (8, 4), (4, 2), (3, 1)]), st.integers(0, 9), st.integers(0, 5)
)


def mixed(shapes: list[tuple[tuple[int, int], int, int]]) -> list[JobRequest]:
    return [request(f"j{i:02d}", gpus, runs, i, each) for i, ((gpus, each), runs, _) in enumerate(shapes)]


@settings(max_examples=150, deadline=None)
@given(
    shapes=st.lists(gangs, min_size=2, max_size=9),
    first=st.integers(1, 4),
    reservations=st.sampled_from([1, 99]),
    rule=st.sampled_from(list(DeviceRule)),
)
def test_who_comes_later_delays_no_reservation(
    shapes: list[tuple[tuple[int, int], int, int]], first: int, reservations: int, rule: DeviceRule
) -> None:
    """On three nodes of four: each reservation is at the time it has when nobody after its job is there."""
    pool = Pool(3, 4, rule)
    waiting = mixed(shapes)
    pool.start(pool.decide(waiting[:first], 0))
    rest = [job for job in waiting if job.job not in pool.ledger.leases]
    if not rest:
        return
    pool.now += 1
    made = pool.decide(rest, reservations)
    for one in made.reserved:
        alone = pool.decide(rest[: one.row + 1], reservations)
        assert [r.start_ns for r in alone.reserved if r.row == one.row] == [one.start_ns]


@settings(max_examples=100, deadline=None)
@given(
    shapes=st.lists(gangs, min_size=2, max_size=10),
    early=st.lists(st.integers(0, 3), min_size=10, max_size=10),
    reservations=st.sampled_from([1, 99]),
    rule=st.sampled_from(list(DeviceRule)),
    quotas=st.sampled_from([(), (8, 3), (5, 4)]),
)
def test_a_promised_time_is_kept_or_beaten(
    shapes: list[tuple[tuple[int, int], int, int]],
    early: list[int],
    reservations: int,
    rule: DeviceRule,
    quotas: tuple[int, ...],
) -> None:
    """Jobs come one by one, run for their limit or less, and are planned at every change: the first in line, who was
    promised a time under EASY, never starts later; nor does anybody under conservative backfill where all run for
    their limit; but for who had somebody before it that only its team's limit or quota held back."""
    if reservations > 1:
        early = [0] * len(early)
    pool = Pool(2, 4, rule, quotas)
    come = [replace(job, max_runtime_ns=max(1, job.max_runtime_ns)) for job in mixed(shapes)]
    if quotas:  # of two teams in turn, as far as the second may ever hold them
        come = [
            replace(job, team="b" if i % 2 and job.milli_gpu() <= quotas[1] * 1000 else "a")
            for i, job in enumerate(come)
        ]
        come = [job for job in come if job.milli_gpu() <= quotas["ab".index(job.team)] * 1000]
    gaps = accumulate(shape[2] for shape in shapes)
    arrive = {job.job: NOW + at for job, at in zip(mixed(shapes), gaps, strict=True)}
    over: dict[str, int] = {}
    promised: dict[str, int] = {}
    for now in range(NOW, NOW + 400):
        pool.now = now
        for name in [name for name, at in over.items() if at <= now]:
            pool.release(name)
            del over[name]
        gone = {*over, *(job.job for job in come if job.job in promised and promised[job.job] < 0)}
        waiting = [job for job in come if arrive[job.job] <= now and job.job not in gone]
        if not waiting:
            continue
        made = pool.decide(waiting, reservations)
        held_by_team = [
            int(row)
            for row, reason in zip(made.deferred, made.reasons, strict=True)
            if reason.code in (ReasonCode.TEAM_LIMIT, ReasonCode.TEAM_QUOTA)
        ]
        for one in made.reserved:
            name = waiting[one.row].job
            assert one.start_ns <= promised.get(name, FOREVER), "later than was promised"
            # who is before it, and is held by its team's figures alone, may go first once they allow
            promised[name] = FOREVER if any(row < one.row for row in held_by_team) else one.start_ns
        for name in pool.start(made):
            assert now <= promised.get(name, FOREVER), "starts later than was promised"
            promised[name] = -1
            limit = next(job.max_runtime_ns for job in come if job.job == name)
            over[name] = now + max(1, limit - early[int(name[1:])])
    assert all(promised.get(job.job) == -1 for job in come), "everybody runs in the end"
