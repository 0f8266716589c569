"""S3: elastic gangs give up workers before any job leaves: who runs, who waits -> starts, leaves, gives."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from running_pool import RunningPool, job, team

from moorage.scheduling.ledger import TeamSet, step
from moorage.scheduling.model import JobRequest, Policy, Shape, TeamSpec

S = 10**9


def elastic(name: str, owner: str, least: int, workers: int, **more: object) -> JobRequest:
    return job(name, owner, workers, min_workers=least, **more)  # type: ignore[arg-type]


ONE = (team("ops", 8),)
TWO = (team("ops", 4), team("research", 4))


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    devices: tuple[int, ...] = (4, 4)
    teams: tuple[TeamSpec, ...] = ONE
    runs: tuple[JobRequest, ...] = ()
    waits: tuple[JobRequest, ...] = ()
    keys: dict[str, int] = field(default_factory=dict)
    margin: int = 0
    starts: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ()
    shrinks: dict[str, int] = field(default_factory=dict)
    """Gang -> the workers it keeps."""


CASES = [
    Case(
        name="a gang gives up what is above its minimum, and nobody leaves",
        runs=(elastic("e", "ops", 2, 8),),
        waits=(job("high", "ops", 3, priority=5),),
        starts=("high",),
        shrinks={"e": 5},
    ),
    Case(
        name="workers of one gang before a whole job of lower priority",
        runs=(job("low", "ops", 4), elastic("e", "ops", 1, 4, priority=1)),
        waits=(job("high", "ops", 2, priority=5),),
        starts=("high",),
        shrinks={"e": 2},
    ),
    Case(
        name="the lowest priority gives first",
        runs=(elastic("mid", "ops", 1, 4, priority=3), elastic("low", "ops", 1, 4, priority=1)),
        waits=(job("high", "ops", 2, priority=5),),
        starts=("high",),
        shrinks={"low": 2},
    ),
    Case(
        name="one gang gives all it can before the next gives any",
        runs=(elastic("a", "ops", 1, 4), elastic("b", "ops", 1, 4)),
        waits=(job("high", "ops", 4, priority=5),),
        starts=("high",),
        shrinks={"a": 1, "b": 3},
    ),
    Case(
        name="where workers are not enough a job leaves, and workers that were not needed stay",
        runs=(elastic("e", "ops", 3, 4, priority=1), job("low", "ops", 4)),
        waits=(job("high", "ops", 1, 4000, priority=5),),
        starts=("high",),
        leaves=("low",),
    ),
    Case(
        name="the gang itself leaves when its minimum is in the way",
        devices=(4,),
        runs=(elastic("e", "ops", 2, 4),),
        waits=(job("high", "ops", 3, priority=5),),
        starts=("high",),
        leaves=("e",),
    ),
    Case(
        name="a gang keeps its minimum where another can leave as a whole",
        devices=(4, 2),
        runs=(elastic("e", "ops", 3, 4), job("low", "ops", 2)),
        waits=(job("high", "ops", 3, priority=5),),
        starts=("high",),
        leaves=("low",),
        shrinks={"e": 3},
    ),
    Case(
        name="equal priority asks nobody for workers",
        runs=(elastic("e", "ops", 1, 8),),
        waits=(job("same", "ops", 1),),
    ),
    Case(
        name="not preemptible gives nothing",
        runs=(elastic("e", "ops", 1, 8, preemptible=False),),
        waits=(job("high", "ops", 1, priority=5),),
    ),
    Case(
        name="reclaim: the borrower gives back what it borrowed and runs on",
        teams=(team("ops", 1), team("research", 7)),
        runs=(elastic("e", "ops", 2, 8),),
        waits=(job("own", "research", 4),),
        starts=("own",),
        shrinks={"e": 4},
    ),
    Case(
        name="reclaim ends where the other holds no more than its quota",
        teams=TWO,
        runs=(elastic("e", "ops", 1, 4), job("borrows", "ops", 1), job("f", "research", 3)),
        waits=(job("own1", "research", 1), job("own2", "research", 1)),
        starts=("own1",),
        shrinks={"e": 3},
    ),
    Case(
        name="index: ahead by more than the margin",
        teams=(team("ops"),),
        runs=(elastic("behind", "ops", 1, 8),),
        waits=(job("ahead", "ops", 2),),
        keys={"behind": 3000, "ahead": 0},
        margin=1024,
        starts=("ahead",),
        shrinks={"behind": 6},
    ),
    Case(
        name="index: within the margin nobody gives",
        teams=(team("ops"),),
        runs=(elastic("behind", "ops", 1, 8),),
        waits=(job("ahead", "ops", 2),),
        keys={"behind": 1000, "ahead": 0},
        margin=1024,
    ),
    Case(
        name="the last workers go though others stand where room is needed: then the whole gang stays or goes",
        runs=(elastic("e", "ops", 2, 8),),
        waits=(job("high", "ops", 1, 4000, priority=5),),
        starts=("high",),
        shrinks={"e": 4},
    ),
    Case(
        name="shares of a device are given up one by one",
        devices=(1,),
        runs=(elastic("e", "ops", 1, 4, milli=250),),
        waits=(job("high", "ops", 1, 500, priority=5),),
        starts=("high",),
        shrinks={"e": 2},
    ),
    Case(
        name="two that wait take from one gang in turn",
        runs=(elastic("e", "ops", 1, 8),),
        waits=(job("h1", "ops", 2, priority=6), job("h2", "ops", 2, priority=5)),
        starts=("h1", "h2"),
        shrinks={"e": 4},
    ),
    Case(
        name="a gang at its minimum has nothing to give",
        runs=(elastic("e", "ops", 4, 4, priority=3), job("low", "ops", 4)),
        waits=(job("high", "ops", 2, priority=5),),
        starts=("high",),
        leaves=("low",),
    ),
    Case(
        name="who asks for much gets its minimum by pushing, no more",
        runs=(elastic("e", "ops", 1, 8),),
        waits=(elastic("high", "ops", 2, 7, priority=5),),
        starts=("high",),
        shrinks={"e": 6},
    ),
    Case(
        name="a worker that makes no room uses up nothing of what may be taken back",
        teams=TWO,
        runs=(
            job("a1", "ops", 1, 500),
            elastic("e", "research", 1, 3),
            elastic("useless", "research", 4, 5, milli=500),
            job("a2", "ops", 1, 500),
        ),
        waits=(job("own", "ops", 3, priority=1),),
        starts=("own",),
        shrinks={"e": 1},
    ),
    Case(
        name="a gang of a team that borrows gives what its own quota would cover, for what the asker's quota covers",
        devices=(8,),
        teams=TWO,
        runs=(elastic("e", "ops", 1, 5, milli=500), job("f", "ops", 4, 500)),
        waits=(job("own", "research", 4),),
        starts=("own",),
        shrinks={"e": 2},
    ),
    Case(
        name="but not for an asker that borrows",
        devices=(8,),
        teams=(team("ops", 4), team("research", 3)),
        runs=(elastic("e", "ops", 1, 5, milli=500), job("f", "ops", 4, 500)),
        waits=(job("more", "research", 4, priority=1),),
    ),
    Case(
        name="as a last resort quota is taken back gang by gang, as from gangs that are not elastic",
        teams=TWO,
        runs=(
            job("a1", "ops", 1, 500),
            elastic("e", "research", 2, 5, milli=500),
            job("a2", "ops", 1, 500),
            elastic("in the way", "research", 2, 3, milli=500),
            job("f", "research", 3, 500),
        ),
        waits=(job("own", "ops", 1, 2000, priority=1),),
        starts=("own",),
        leaves=("in the way",),
    ),
]


def build(case: Case) -> RunningPool:
    pool = RunningPool.of(case.devices, case.teams, policy=Policy(margin=case.margin), keys=case.keys)
    for request in case.runs:
        pool.submit(request)
        assert pool.go().admitted.tolist() == [0]
    pool.submit(*case.waits)
    return pool


def given(pool: RunningPool, before: dict[str, int]) -> dict[str, int]:
    after = pool.workers()
    return {name: after[name] for name in before if name in after and after[name] != before[name]}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_scenario(case: Case) -> None:
    pool = build(case)
    before = pool.workers()
    decided = pool.go()
    assert tuple(r.job for r, _ in decided.admissions(pool.snapshot)) == case.starts  # type: ignore[arg-type]
    assert decided.preempted == case.leaves
    assert given(pool, before) == case.shrinks
    assert decided.shrunk == tuple(case.shrinks)
    assert all(row in decided.admitted for rows in decided.shrunk_for for row in rows)
    assert len(decided.shrunk_for) == len(decided.shrunk_by) == len(case.shrinks)
    again = pool.go()
    assert (again.preempted, again.shrunk) == ((), ()), "what was decided stands"


def test_the_head_is_no_worker_and_stays() -> None:
    pool = RunningPool.of([8], ONE)
    pool.submit(replace(elastic("e", "ops", 0, 4), head=Shape(milli_gpu=4000)))
    pool.go()
    pool.submit(job("high", "ops", 4, priority=5))
    assert pool.go().shrunk_tasks.tolist() == [1]
    assert [task.role for task in pool.ledger.leases["e"].tasks] == ["head"]


def test_workers_without_gpus_make_no_room_and_stay_with_their_gang() -> None:
    pool = RunningPool.of([4], ONE)
    gang = JobRequest(
        job="e",
        team="ops",
        submitted_ns=0,
        head=Shape(milli_gpu=4000),
        worker=Shape(mib=0, milli_cpu=0),
        workers=3,
        preemptible=True,
    )
    pool.submit(gang)
    pool.go()
    pool.submit(job("high", "ops", 4, priority=5))
    decided = pool.go()
    assert (decided.preempted, decided.shrunk) == (("e",), ())


def test_a_young_gang_gives_nothing_but_what_is_lent() -> None:
    for teams, gives in ((ONE, {}), ((team("ops", 0), team("research", 8)), {"e": 6})):
        pool = RunningPool.of([8], teams, policy=Policy(least_run_ns=10 * S))
        pool.submit(elastic("e", "ops", 1, 8))
        pool.go()
        pool.submit(job("asks", teams[-1].name, 2, priority=5))
        before = pool.workers()
        pool.go(9 * S)
        assert given(pool, before) == gives
        pool.go(S)
        assert pool.workers()["e"] == 6


def test_the_workers_of_one_gang_alone_where_those_of_several_may_not_all_be_taken() -> None:
    """e1 and e2 are asked first and make room together; but research is in its quota once one of them gave."""
    pool = RunningPool.of([1, 4, 4], (team("ops", 2), team("research", 7)))
    pool.submit(job("ends", "ops", 1))
    pool.go()
    gangs = [elastic(f"e{n}", "research", 1, workers) for n, workers in ((1, 2), (2, 2), (3, 3))]
    for request in (*gangs, job("stays", "ops", 1, preemptible=False)):
        pool.submit(request)
        pool.go()
    pool.end("ends")
    step(pool.ledger, TeamSet(team("research", 6)))
    step(pool.ledger, TeamSet(team("ops", 3)))
    pool.submit(job("own", "ops", 1, 2000))
    decided = pool.decide()
    assert (decided.preempted, decided.shrunk, decided.shrunk_tasks.tolist()) == ((), ("e3",), [1])


def test_workers_just_taken_are_left_alone_for_a_while() -> None:
    pool = RunningPool.of([8], ONE, policy=Policy(settle_ns=10 * S))
    pool.submit(elastic("e", "ops", 1, 8))
    pool.go()
    pool.submit(job("high", "ops", 1, priority=5))
    for since, shrunk in ((10 * S - 1, ()), (10 * S, ("e",))):
        decided = pool.decide(grown_ns=np.array([since], np.int64))
        assert (decided.preempted, decided.shrunk) == ((), shrunk)
