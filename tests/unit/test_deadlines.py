"""S3: deadlines: who goes first, who is too late, and what a submission may ask."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from control_world import world
from small_jobs import Job, hours, workload

from moorage.configs.job import parse_job
from moorage.configs.pool import parse_pool
from moorage.errors import InvalidRequest
from moorage.runtime.control.simbackend import SimNode
from moorage.scheduling.ledger import Ledger, NodeUp, TeamSet, step
from moorage.scheduling.model import JobRequest, NodeSpec, Policy, Reason, Shape, Snapshot, TeamSpec
from moorage.scheduling.planner import plan
from moorage.scheduling.queue import Queue
from moorage.scheduling.simulator import engine

MINUTE = 60 * 10**9
HOUR = 60 * MINUTE
NOW = 100 * HOUR


def job(name: str, due: float = 0, limit: float = 0, priority: int = 0, owner: str = "a") -> JobRequest:
    """Hours from now, 0 = none; submitted in the order of the names."""
    return JobRequest(
        job=name,
        team=owner,
        submitted_ns=ord(name[0]),
        priority=priority,
        worker=Shape(milli_gpu=1000),
        workers=1,
        min_workers=1,
        max_runtime_ns=round(limit * HOUR),
        deadline_ns=NOW + round(due * HOUR) if due else 0,
    )


def starts(
    *jobs: JobRequest, devices: int = 1, teams: int = 1, **policy: int
) -> tuple[list[str], dict[str, Reason]]:
    """On so many devices: who starts, in order, and why the others wait."""
    ledger = Ledger()
    for name in "ab"[:teams]:
        step(ledger, TeamSet(TeamSpec(name=name)))
    step(ledger, NodeUp(NodeSpec(name="n", gpu_model="A", devices=devices)))
    snapshot = Snapshot(version=ledger.version, ledger=ledger, pending=Queue.of(jobs))
    made = plan(snapshot, Policy(**policy), NOW)
    names = snapshot.pending.names
    reasons = {names[row]: reason for row, reason in zip(made.deferred, made.reasons, strict=True)}
    return [names[row] for row in made.admitted], reasons


@pytest.mark.parametrize(
    ("jobs", "first"),
    [
        ((job("a"), job("b", due=2, limit=1.5)), "b"),
        ((job("a"), job("b", due=2, limit=0.5)), "a"),
        ((job("a"), job("b", due=2, limit=1)), "b"),
        ((job("a", due=1.5, limit=1), job("b", due=2.2, limit=2)), "b"),
        ((job("a", due=1, limit=0.9), job("b", due=0.5)), "a"),
        ((job("a"), job("b", due=1, limit=1.1)), "a"),
        ((job("a"), job("b", due=1, limit=1)), "b"),
        ((job("a", priority=1), job("b", due=1, limit=1)), "a"),
        ((job("a"), job("b", due=0.9)), "b"),
    ],
    ids=[
        "half an hour is left: before who came first",
        "ninety minutes are left: not yet",
        "an hour is left: now",
        "the least time left first, not the first deadline",
        "six minutes before thirty",
        "it is too late: in its own turn",
        "at the last moment: first",
        "priority first",
        "nobody knows how long it runs: the deadline counts",
    ],
)
def test_who_goes_first(jobs: tuple[JobRequest, ...], first: str) -> None:
    assert starts(*jobs)[0] == [first]


def test_how_short_is_urgent_is_the_policys() -> None:
    jobs = (job("a"), job("b", due=4, limit=1))
    assert starts(*jobs)[0] == ["a"]
    assert starts(*jobs, urgent_ns=3 * HOUR)[0] == ["b"]


def test_within_a_team_that_shares_the_pool_too() -> None:
    """Two teams without quotas: each one's turn is its own, and within it the urgent goes first."""
    jobs = (job("a"), job("b", due=1, limit=1), job("c", owner="b"))
    assert sorted(starts(*jobs, devices=2, teams=2)[0]) == ["b", "c"]


def test_a_plan_says_who_is_too_late_and_by_how_much() -> None:
    _, reasons = starts(job("a"), job("b", due=1, limit=1.5), job("c", due=9, limit=1))
    assert reasons["b"].late_ns == HOUR // 2 and reasons["c"].late_ns == 0
    assert (
        reasons["b"]
        .text()
        .endswith("; its deadline can no longer be met if it runs as long as it may: 30 min late")
    )
    assert "deadline" not in reasons["c"].text()


def test_deadlines_of_a_trace_count_in_the_simulator() -> None:
    """Both wait for a device that is busy till ten; the second is due at twelve and takes nobody's priority away."""
    load = workload(Job(0, 10, 4), Job(1, 5, 4), Job(2, 1, 4))
    due = dataclasses.replace(load, deadline_ns=np.array([0, 0, 11 * HOUR + HOUR // 2], np.int64))
    node = (NodeSpec(name="n0", gpu_model="A", devices=4),)
    plain = engine.simulate(node, load, policy="easy-oracle")
    urgent = engine.simulate(node, due, policy="easy-oracle")
    assert hours(plain.start_ns) == [0, 10, 15] and hours(urgent.start_ns) == [0, 11, 10]


def test_a_submission_names_its_deadline_from_then_on() -> None:
    ask = parse_job({"workers": "1", "gpus_per_worker": "1", "deadline": "2h", "max_runtime": "30m"})
    assert (ask.deadline_ns, ask.max_runtime_ns) == (2 * HOUR, HOUR // 2)
    assert parse_job({"workers": "1", "gpus_per_worker": "1"}).deadline_ns is None
    with pytest.raises(InvalidRequest, match="too late from the start"):
        parse_job({"workers": "1", "gpus_per_worker": "1", "deadline": "1h", "max_runtime": "2h"})
    with pytest.raises(InvalidRequest, match="more than zero"):
        parse_job({"workers": "1", "gpus_per_worker": "1", "deadline": "0"})


def test_a_live_pool_serves_the_urgent_first(tmp_path: Path) -> None:
    """Both of research's devices end in ten minutes at the latest."""
    with world(tmp_path) as w:
        w.submit("research", job="hog", workers=2, seconds="300", max_runtime="10m")
        w.run(2)
        w.submit("research", job="first", workers=2, seconds="300", max_runtime="10m")
        w.submit("research", job="second", workers=2, seconds="60", max_runtime="30m", deadline="1h")
        w.run(1)
        assert w.states("first", "second") == ["PENDING", "PENDING"]
        w.run(310)
        assert w.states("hog", "first", "second") == ["SUCCEEDED", "PENDING", "RUNNING"]


def test_a_live_pool_reserves_by_max_runtime(tmp_path: Path) -> None:
    """Four devices: two are free again in ten minutes. Who needs them is told so, and of the others, only the short one
    passes, and none of the same quota."""
    with world(tmp_path, nodes=(SimNode(name="node-0"),)) as w:
        w.submit("ops", job="hog", gpus=2, seconds="1000", max_runtime="10m")
        w.submit("research", job="stays", seconds="9000")
        w.run(2)
        w.submit("ops", job="big", gpus=2, seconds="60")
        w.submit("ops", job="long", seconds="60")
        w.run(2)
        big, long = w.job("big").reason, w.job("long").reason
        assert big is not None and long is not None
        assert big["code"] == "reserved" and "starts in 9 min" in big["text"] and "node-0" in big["text"]
        assert long["code"] == "delays" and long["holders"] == ["big"]
        w.submit("research", job="short", seconds="60", max_runtime="5m")
        w.run(2)
        assert w.states("big", "long", "short") == ["PENDING", "PENDING", "RUNNING"]
        w.run(700)
        assert w.states("big", "long") == ["SUCCEEDED", "SUCCEEDED"]


@pytest.mark.parametrize(
    ("text", "starts"), [("backfill: none", 2), ("{}", 1), ("backfill: conservative", 0)]
)
def test_a_pool_says_whom_a_job_out_of_turn_may_not_delay(tmp_path: Path, text: str, starts: int) -> None:
    """Two nodes of four, three devices of each busy: of one for 10 minutes, of the other for 20. Two jobs want a node
    for themselves, the first one for two hours; two that run for long want a device. On the node that is free first
    such a one delays the first in line, on the other the second."""
    with world(tmp_path, teams="teams: {a: {}}", settings=parse_pool(text)) as w:
        w.submit("a", job="ten", gpus=3, seconds="590", max_runtime="10m")
        w.submit("a", job="twenty", gpus=3, seconds="1190", max_runtime="20m")
        w.run(2)
        w.submit("a", job="first", gpus=4, seconds="7000", max_runtime="2h")
        w.submit("a", job="second", gpus=4, seconds="60", max_runtime="1h")
        long = [w.submit("a", job=f"long-{i}", gpus=1, seconds="9000", max_runtime="3h") for i in range(2)]
        w.run(2)
        assert w.states(*long).count("RUNNING") == starts
        codes = [reason["code"] for reason in (w.job(name).reason for name in ("first", "second")) if reason]
        assert codes.count("reserved") == {2: 0, 1: 1, 0: 2}[starts]
        w.run(1300, step=10)
        assert (
            w.states("first", "second").count("RUNNING") + w.states("second").count("SUCCEEDED") == 2 - starts
        )


def test_what_backfill_is_not_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="backfill"):
        parse_pool("backfill: eager")
