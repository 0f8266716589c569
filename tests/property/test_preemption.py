"""S2, S3: who leaves for whom over many decisions: nobody before its time, and never in a circle."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from running_pool import RunningPool, job, team

from moorage.scheduling.model import JobRequest, Plan, Policy
from moorage.scheduling.running import RunningJobs

S = 10**9


@st.composite
def pools(draw: st.DrawFn) -> tuple[RunningPool, list[JobRequest]]:
    """Teams with and without quotas, and jobs that ask for more than there is."""
    devices = draw(st.sampled_from([[4], [2, 2], [4, 2], [1, 3]]))
    quotas = draw(st.sampled_from([(None, None), (2, 2), (4, 0), (1, 2)]))
    limits = draw(st.sampled_from([(None, None), (None, 3), (2, None)]))
    teams = [team(name, q, most) for name, q, most in zip("ab", quotas, limits, strict=True)]
    jobs, keys = [], {}
    for n in range(draw(st.integers(2, 7))):
        workers = draw(st.integers(1, 4))
        jobs.append(
            job(
                f"j{n}",
                draw(st.sampled_from("ab")),
                workers,
                draw(st.sampled_from([500, 1000, 1000])),
                min_workers=draw(st.integers(1, workers)),
                priority=draw(st.integers(0, 2)),
                preemptible=draw(st.sampled_from([True, True, True, False])),
            )
        )
        keys[f"j{n}"] = draw(st.integers(0, 3))
    policy = Policy(
        least_run_ns=draw(st.sampled_from([0, 3 * S])),
        reclaim_waits=draw(st.booleans()),
        margin=draw(st.integers(0, 1)),
    )
    return RunningPool.of(devices, teams, policy=policy, keys=keys), jobs


def kept(pool: RunningPool, decided: Plan) -> None:
    """What a plan may take, by the state before it: nobody fixed, nobody young but for a reclaim."""
    ledger, policy = pool.ledger, pool.policy
    admitted = [pool.snapshot.pending.requests[row] for row in decided.admitted.tolist()]  # type: ignore[union-attr]
    for name in decided.preempted:
        request = pool.runs[name]
        assert request.preemptible
        if pool.now - pool.since[name] < policy.least_run_ns:
            row = ledger.team_row[request.team]
            assert not policy.reclaim_waits
            assert ledger.quota[:, 0].any() and ledger.used[row, 0] > ledger.quota[row, 0], "it borrowed"
            assert any(starts.team != request.team for starts in admitted), "for somebody else's own quota"


@given(pools(), st.lists(st.sampled_from([0, S, 2 * S, 3 * S]), min_size=3, max_size=12))
@settings(deadline=None, max_examples=150)
def test_nobody_leaves_before_its_time(case: tuple[RunningPool, list[JobRequest]], steps: list[int]) -> None:
    pool, jobs = case
    for after in steps:
        pool.now += after
        if jobs:
            pool.submit(jobs.pop(0))
        decided = pool.decide()
        kept(pool, decided)
        pool.apply(decided)


@given(pools(), st.sampled_from([0, S]))
@settings(deadline=None, max_examples=200)
def test_with_nothing_new_nobody_is_pushed_out_for_long(
    case: tuple[RunningPool, list[JobRequest]], after: int
) -> None:
    """A out for B, B out for A: with the orders fixed, no two jobs do that; so decisions come to rest."""
    pool, jobs = case
    for request in jobs:
        pool.submit(request)
        pool.go(S)
    out: list[tuple[str, ...]] = []
    for _ in range(40):
        out.append(pool.go(after).preempted)
    # with a least time, what is due comes late: so the last half counts, long after every start
    assert not any(out[20:]), out


@given(pools())
@settings(deadline=None, max_examples=50)
def test_a_part_of_the_running_jobs_keeps_its_columns(case: tuple[RunningPool, list[JobRequest]]) -> None:
    pool, jobs = case
    pool.submit(*jobs)
    pool.go()
    whole = pool.running()
    for v in range(len(whole)):
        part: RunningJobs = whole.take(np.arange(len(whole)) == v)
        name = whole.leases[v]
        alone = RunningJobs.of(pool.ledger, {name: pool.runs[name]})
        assert list(part.leases) == [name] and part.first.tolist() == alone.first.tolist()
        assert part.task_node.tolist() == alone.task_node.tolist()
        assert part.task_mask.tolist() == alone.task_mask.tolist()
        assert part.ran_ns is not None and whole.ran_ns is not None
        assert part.ran_ns.tolist() == [whole.ran_ns[v]]
