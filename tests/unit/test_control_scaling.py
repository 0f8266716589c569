"""S6: how the pool asks for nodes, and how it gives them back."""

from __future__ import annotations

from pathlib import Path

import pytest
from control_world import NODES, World, world

from moorage.cluster.backend import BackendUnavailable, NodeAsk, ScaleAsk
from moorage.configs.pool import parse_pool
from moorage.errors import Infeasible
from moorage.runtime.control.simbackend import SimNode

AUTO = """
autoscaling:
  idle_s: 60
  node_types:
    big: {devices: 8, gpu_model: L4, device_mib: 24576, cpus: 16, max_nodes: 2}
"""
BIG = SimNode(name="node-2", devices=8, milli_cpu=16000)


def asked(w: World) -> list[int]:
    """Milli-GPU of each node of the last wish."""
    return sorted(node.milli_gpu for node in w.backend.scaled[-1].nodes)


def test_a_gang_that_no_node_can_hold_waits_for_one_that_is_asked_for(tmp_path: Path) -> None:
    teams = "teams: {ops: {limit: 30}}"
    with world(tmp_path, teams=teams, settings=parse_pool(AUTO)) as w:
        w.run(3)
        assert asked(w) == [4000, 4000], "the nodes that are there, and no more"
        w.submit("ops", job="eight", gpus=8, seconds="20")
        w.run(3)
        assert w.backend.scaled[-1].nodes[-1] == NodeAsk(milli_gpu=8000, milli_cpu=16000)
        assert asked(w) == [4000, 4000, 8000]
        waits = w.job("eight")
        assert waits.reason is not None and waits.reason["code"] == "node-asked"
        assert "1 node of type big" in waits.reason["text"]
        w.backend.nodes = (*NODES, BIG)
        w.run(4)
        assert w.states("eight") == ["RUNNING"]
        assert asked(w) == [4000, 4000, 8000], "it stays"


def test_a_wish_is_withdrawn_with_the_job(tmp_path: Path) -> None:
    with world(tmp_path, teams="teams: {ops: {limit: 30}}", settings=parse_pool(AUTO)) as w:
        w.submit("ops", job="eight", gpus=8)
        w.run(3)
        assert asked(w) == [4000, 4000, 8000]
        w.service.stop(w.caller("ops"), "eight")
        w.run(3)
        assert asked(w) == [4000, 4000]


def test_what_not_even_the_grown_pool_could_hold_is_refused(tmp_path: Path) -> None:
    with world(tmp_path, teams="teams: {ops: {limit: 99}}", settings=parse_pool(AUTO)) as w:
        w.submit("ops", job="two-bigs", gpus=8, workers=2)
        with pytest.raises(Infeasible):
            w.submit("ops", job="three-bigs", gpus=8, workers=3)


def test_an_idle_node_is_drained_before_it_goes(tmp_path: Path) -> None:
    nodes = (*NODES, BIG)
    with world(tmp_path, teams="teams: {ops: {limit: 30}}", nodes=nodes, settings=parse_pool(AUTO)) as w:
        w.submit("ops", job="eight", gpus=8, seconds="20")
        w.run(50)
        assert asked(w) == [4000, 4000, 8000] and not w.backend.scaled[-1].release
        w.run(40)
        last = w.backend.scaled[-1]
        assert asked(w) == [4000, 4000] and last.release == ("ray-node-2-0",)
        w.submit("ops", job="late", gpus=8)
        w.run(3)
        assert w.states("late") == ["PENDING"], "it takes nothing more"
        w.backend.nodes = NODES
        w.run(4)
        assert not w.service.core.book.drained, "another node of that name may come"
        assert asked(w) == [4000, 4000, 8000], "for the one who waits"


def test_a_node_that_ray_does_not_let_go_is_used_again(tmp_path: Path) -> None:
    with world(
        tmp_path, teams="teams: {ops: {limit: 30}}", nodes=(*NODES, BIG), settings=parse_pool(AUTO)
    ) as w:
        w.run(70)
        assert w.backend.scaled[-1].release == ("ray-node-2-0",)
        w.submit("ops", job="late", gpus=8, seconds="5")
        w.run(130)
        assert w.states("late") == ["SUCCEEDED"]


def test_an_autoscaler_that_does_not_answer_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world(tmp_path, teams="teams: {ops: {limit: 30}}", settings=parse_pool(AUTO)) as w:

        def away(ask: ScaleAsk) -> None:
            raise BackendUnavailable("no autoscaler", todo="wait")

        monkeypatch.setattr(w.backend, "scale", away)
        w.submit("ops", job="one", seconds="5")
        w.submit("ops", job="eight", gpus=8)
        w.run(10)
        assert w.states("one") == ["SUCCEEDED"] and not w.service.loop.unreachable
        monkeypatch.undo()
        w.run(3)
        assert asked(w) == [4000, 4000, 8000], "it is said again"
