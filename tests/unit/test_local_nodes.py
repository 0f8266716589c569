"""G6: which of a cluster's processes are started again, and when the cluster is over. Ray is a stand-in here."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

import moorage.cluster
from moorage.cluster import local
from moorage.cluster.binding import NODE_LABEL


@dataclass(eq=False)
class Node:
    name: str
    dead: list[str] = field(default_factory=list)
    node_id: str = "id"


class Cluster:
    """A head and two more nodes; `refuses` is how often a node cannot be added."""

    def __init__(self) -> None:
        self.head_node = Node("node-0")
        self.worker_nodes = {Node("node-2"), Node("node-1")}
        self.refuses = 0

    def remove_node(self, node: Node, allow_graceful: bool) -> None:
        self.worker_nodes.remove(node)

    def add_node(self, wait: bool, labels: dict[str, str], **_: Any) -> Node:
        if self.refuses:
            self.refuses -= 1
            raise RuntimeError("the node timed out during startup")
        node = Node(labels[NODE_LABEL])
        self.worker_nodes.add(node)
        return node


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was restarted in place."""
    said: list[str] = []

    def restarted(kind: str) -> Any:
        def act(node: Node) -> None:
            node.dead.remove(kind)
            said.append(kind)

        return act

    fake = SimpleNamespace(
        dead_kinds=lambda node: node.dead,
        node_labels=lambda node: {NODE_LABEL: node.name},
        restart_gcs=restarted("gcs_server"),
        restart_dashboard=restarted("dashboard"),
    )
    monkeypatch.setitem(sys.modules, "moorage.cluster.rayapi", fake)
    monkeypatch.setattr(moorage.cluster, "rayapi", fake, raising=False)
    return said


def options(storage: str = local.MEMORY) -> argparse.Namespace:
    return local.parse(["--home", "/x", "--dashboard-port", "1", "--gcs-storage", storage])


def names(cluster: Cluster) -> list[str]:
    return sorted(node.name for node in cluster.worker_nodes)


def test_a_lost_raylet_is_started_again_under_its_name(done: list[str]) -> None:
    cluster = Cluster()
    nodes = local.Nodes(cluster, options())
    lost = next(node for node in cluster.worker_nodes if node.name == "node-2")
    lost.dead.append("raylet")
    assert nodes.repair() and names(cluster) == ["node-1", "node-2"]
    assert lost not in cluster.worker_nodes and nodes.missing == [] and done == []


def test_a_node_that_does_not_start_is_tried_again_and_ends_nothing(
    done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster()
    nodes, cluster.refuses = local.Nodes(cluster, options()), 1
    next(node for node in cluster.worker_nodes if node.name == "node-1").dead.append("raylet")
    assert nodes.repair() and names(cluster) == ["node-2"]
    assert nodes.missing == ["node-1/raylet"]
    assert nodes.repair() and names(cluster) == ["node-2"], "not before its time"
    monkeypatch.setattr(local.time, "monotonic", lambda: float("inf"))
    assert nodes.repair() and names(cluster) == ["node-1", "node-2"] and nodes.missing == []


@pytest.mark.parametrize(
    ("dead", "storage", "goes_on"),
    [
        ("gcs_server", local.MEMORY, False),
        ("gcs_server", local.ROCKSDB, True),
        ("gcs_server", "127.0.0.1:6379", True),
        ("raylet", local.ROCKSDB, False),
        ("dashboard", local.MEMORY, True),
    ],
)
def test_the_head(done: list[str], dead: str, storage: str, goes_on: bool) -> None:
    cluster = Cluster()
    cluster.head_node.dead.append(dead)
    assert local.Nodes(cluster, options(storage)).repair() is goes_on
    assert done == ([dead] if goes_on else [])


def test_where_the_gcs_keeps_its_tables() -> None:
    assert local.storage_environment(options()) == {}
    assert local.storage_environment(options(local.ROCKSDB)) == {
        "RAY_gcs_storage": "rocksdb",
        "RAY_gcs_storage_path": "/x/gcs",
    }
    redis = local.storage_environment(options("127.0.0.1:6379"))
    assert redis["RAY_REDIS_ADDRESS"] == "127.0.0.1:6379"
    assert redis == local.storage_environment(options("127.0.0.1:6379")), "the same keys at each start"


def test_what_stays_dead_is_told_once(
    done: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ray's log monitor is not replaced: it used to be a line in the log twice a second from then on."""
    cluster, written, rounds = Cluster(), list[list[str]](), iter([False, False, False, True])
    cluster.list_all_nodes = lambda: [cluster.head_node, *cluster.worker_nodes]  # type: ignore[attr-defined]
    cluster.head_node.dead += ["dashboard", "log_monitor"]
    monkeypatch.setattr(local, "describe", lambda cluster, options, dead: list(dead))
    monkeypatch.setattr(local, "write_json", lambda path, value: written.append(value))
    ended = SimpleNamespace(wait=lambda seconds: next(rounds))
    assert local.watch(cluster, options(), ended) == 0  # type: ignore[arg-type]
    assert written == [["id/dashboard", "id/log_monitor"], ["id/log_monitor"]]
    assert [text for text in caplog.messages if "have ended" in text] == [
        "Ray processes that have ended: ['id/dashboard', 'id/log_monitor']"
    ]
