"""G6: what becomes of jobs whose node is lost."""

from __future__ import annotations

from pathlib import Path

from control_world import NODES, World, world


def lost_and_back(w: World, node: str) -> None:
    """A raylet that was killed and started again: Ray has another id for it."""
    w.backend.incarnation[node] = w.backend.incarnation.get(node, 0) + 1


def test_a_running_gang_that_lost_a_node_is_stopped_and_starts_again(tmp_path: Path) -> None:
    """Also when the node was back before anybody looked: its workers are pinned to one that is no more."""
    with world(tmp_path) as w:
        w.submit("ops", job="gang", workers=6, seconds="30")
        w.submit("research", job="other", seconds="30")
        w.run(3)
        assert w.states("gang", "other") == ["RUNNING", "RUNNING"]
        lost_and_back(w, "node-0")
        w.run(6)
        assert "gang-2" in w.backend.launches
        assert w.backend.jobs["gang-1"].status == "STOPPED"
        w.run(60)
        assert w.states("gang", "other") == ["SUCCEEDED", "SUCCEEDED"]
        assert w.backend.launches.count("gang-2") == 1


def test_who_fails_beside_a_lost_node_is_tried_again(tmp_path: Path) -> None:
    """A gang's driver elsewhere sees its actors die and exits with an error of its own: not its user's fault."""
    with world(tmp_path) as w:
        w.submit("ops", job="gang", workers=6, seconds="30")
        w.submit("research", job="alone", seconds="30", exit="3")
        w.run(3)
        lost_and_back(w, "node-0")
        w.backend.leave("gang-1", exit_code=1)
        w.run(10)
        assert "gang-2" in w.backend.launches
        w.run(60)
        assert w.states("gang") == ["SUCCEEDED"]


def test_who_fails_with_all_its_nodes_there_has_failed(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        w.submit("ops", job="gang", workers=4, seconds="30")
        w.run(3)
        (node,) = {task["node"] for task in w.job("gang").lease["workers"]}
        lost_and_back(w, next(other.name for other in NODES if other.name != node))
        w.backend.leave("gang-1", exit_code=1)
        w.run(10)
        assert w.states("gang") == ["FAILED"]


def test_a_cluster_that_was_replaced_has_lost_its_jobs_at_once(tmp_path: Path) -> None:
    """Not after `lost_after_ms`: none of the nodes that the job was started for is there any more."""
    with world(tmp_path) as w:
        w.submit("ops", job="one", seconds="30")
        w.run(3)
        w.backend.lose("one-1")
        for node in NODES:
            lost_and_back(w, node.name)
        w.run(0.5)
        assert w.states("one") == ["PENDING"]
        w.run(5)
        assert w.states("one") == ["RUNNING"] and "one-2" in w.backend.launches
