"""S2, X2: shares in the simulator: what a team's partition is, what runs alone on it, and what `fair` guarantees."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from small_jobs import HOUR, Job, hours, workload

from moorage import cli
from moorage.scheduling.model import NodeSpec
from moorage.scheduling.simulator import engine, partition
from moorage.scheduling.simulator.disciplines import Fair
from moorage.scheduling.simulator.disciplines import Jobs as Seen
from moorage.scheduling.simulator.model import JobsResult, NotSimulated

TWO = tuple(NodeSpec(name=f"n{i}", gpu_model="A", devices=4) for i in range(2))
FOUR = tuple(NodeSpec(name=f"n{i}", gpu_model="A", devices=4) for i in range(4))


def run(policy: str, *jobs: Job, nodes: tuple[NodeSpec, ...] = TWO) -> JobsResult:
    return engine.simulate(nodes, workload(*jobs), policy=policy)


def test_shares_are_gpu_time_rounded_up_to_whole_nodes() -> None:
    """Of 40 GPU-hours a asks for 30, b for 9 and c for 1: of four nodes that is 3, 0.9 and 0.1."""
    jobs = (Job(0, 10, 3, "a"), Job(1, 9, 1, "b"), Job(2, 1, 1, "c"))
    load = workload(*jobs)
    assert partition.shares(load, FOUR).tolist() == [12_000, 4_000, 4_000], "20 GPUs of 16: rounded up"
    assert partition.node_count(load, TWO).tolist() == [2, 1, 1]


def test_a_share_of_unequal_nodes_is_refused() -> None:
    odd = (*TWO, NodeSpec(name="n9", gpu_model="A", devices=8))
    with pytest.raises(NotSimulated, match="all nodes must be equal"):
        run("fair", Job(0, 1, 1), nodes=odd)
    assert run("las", Job(0, 1, 1), nodes=odd).finish_ns[0] == HOUR


def test_the_static_partition_lends_nothing() -> None:
    """Each team has a node. Team a's second job waits for its first, though b's node is idle."""
    jobs = (Job(0, 4, 4, "a"), Job(0, 4, 4, "a"), Job(6, 8, 4, "b"))
    alone = run("static", *jobs)
    assert sorted(hours(alone.finish_ns[:2])) != [4, 4] and hours(alone.finish_ns)[2] == 14
    assert max(hours(alone.finish_ns[:2])) >= 8
    together = run("fair", *jobs)
    assert hours(together.finish_ns) == [4, 4, 14]


def test_a_team_gets_its_share_at_once_whoever_borrows_it() -> None:
    """a runs on both nodes, a moment old; b comes and has its own node the moment it asks."""
    jobs = (Job(0, 20, 4, "a"), Job(0, 20, 4, "a"), Job(5, 40, 4, "b"))
    found = run("fair", *jobs)
    assert hours(found.start_ns) == [0, 0, 5]
    assert found.preemptions.sum() >= 1 and found.preemptions[2] == 0, "b is within its share"


@pytest.mark.parametrize(("comes", "at_once"), [(5, 1), (7, 2)])
def test_who_is_ahead_of_its_partition_by_six_hours_loses_its_claim(comes: int, at_once: int) -> None:
    """a had both nodes: after five hours it is five ahead, and keeps one; after seven it competes by service alone."""
    jobs = (Job(0, 40, 4, "a"), Job(0, 40, 4, "a"), Job(comes, 40, 4, "b"), Job(comes, 40, 4, "b"))
    found = run("fair", *jobs)
    assert (found.start_ns[2:] == comes * HOUR).sum() == at_once


def test_what_ended_between_two_decisions_counts_until_it_ended() -> None:
    """While nobody waits no decision is made. a held both nodes for 2 h, then one for 8 h: 2 h ahead, not 10."""
    jobs = (Job(0, 2, 4, "a"), Job(0, 40, 4, "a"), Job(10, 42, 4, "b"))
    load = workload(*jobs)
    seen = Seen.of(load, 8000, partition.shares(load, TWO))
    rank = Fair(seen)
    rank(seen, np.array([0, 1]), np.array([], np.int64))
    seen.started_ns[1], seen.now_ns = 0, 10 * HOUR
    seen.stopped.append((0, True))
    seen.ended_ns[0] = 2 * HOUR
    rank(seen, np.array([2]), np.array([1]))
    # the partition of 4 GPUs had 8 at hand for 2 h, and worked on at full size until it was level again
    assert rank._shadow.lead.tolist() == [2 * 3600 * 4000, 0]
    assert rank._shadow.claims.all()


def test_no_team_fares_worse_than_alone_when_the_others_are_idle() -> None:
    """Teams that never ask at the same time: each has the pool, at least."""
    jobs = tuple(Job(100 * k + i, 3, 4, "ab"[k]) for k in range(2) for i in range(6))
    load = workload(*jobs)
    shared, alone = run("fair", *jobs), run("static", *jobs)
    for team in range(2):
        rows = load.team == team
        assert shared.finish_ns[rows].sum() <= alone.finish_ns[rows].sum()


TRACE = "timestamp,duration,num_gpus,gpu_time,cluster\n" + "".join(
    f"2017-10-09 {h:02d}:00:00,{3600 * d},{g},0,{c}\n"
    for h, d, g, c in ((0, 9, 8, "a"), (0, 9, 8, "a"), (1, 9, 8, "b"), (2, 1, 16, "b"), (3, 1, 8, "c"))
)


def test_the_report_holds_every_team_against_its_partition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "philly.csv").write_text(TRACE)
    call = ["simulate", "philly", "--jobs", "philly.csv", "--gpus", "16", "--nodes", "2"]
    done = CliRunner().invoke(
        cli.cli, [*call, "--policy", "fair", "--compare", "fifo", "--json"], catch_exceptions=False
    )
    found = json.loads(done.stdout)
    assert [(one["row"], one["code"]) for one in found["left_out"]] == [(4, "fits-no-share")]
    assert "has 8" in found["left_out"][0]["text"]
    assert list(found["policies"]) == ["fair", "fifo"], "the partition runs, but was not asked for"
    for one in found["policies"].values():
        ratios = {}
        for team, of in one["by_team"].items():
            assert of["over_partition"] == pytest.approx(
                of["avg_jct_hours"] / of["partition_avg_jct_hours"], abs=1e-4
            )
            ratios[team] = of["over_partition"]
        assert one["worst_over_partition"] == max(ratios.values())
        assert ratios[one["worst_team"]] == max(ratios.values())
    assert found["by_team"]["a"]["share_gpus"] == 16 and found["by_team"]["b"]["share_gpus"] == 8
    assert found["worst_over_partition"] > 1, "b comes back to its share at the price of a restart, of a's"
    text = CliRunner().invoke(cli.cli, [*call, "--policy", "fair"], catch_exceptions=False).output
    assert "own partition" in text and f"{found['worst_over_partition']:.3f} {found['worst_team']}" in text
    plain = CliRunner().invoke(cli.cli, [*call, "--policy", "fifo", "--json"], catch_exceptions=False)
    assert json.loads(plain.stdout)["left_out"] == [], "without shares nobody is left out for them"
