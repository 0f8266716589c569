"""The soak's observer can fail: books that break the rules are called so. (G6 S2)"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
from raybooks import Books, Held, judge, team_of, watch, where

LIMITS = {"ops": 3000, "lab": 1000}


def books(*held: tuple[str, str, dict[int, int]], **reserved: int) -> Books:
    found = tuple(Held(node, 100 + n, job, devices) for n, (node, job, devices) in enumerate(held))
    return Books("gcs", 0.0, found, {name.replace("_", "-"): milli for name, milli in reserved.items()})


def rules(given: Books) -> list[tuple[str, str]]:
    return [(found.rule, found.who) for found in judge(given, LIMITS)]


def test_what_is_allowed_is_no_violation() -> None:
    full = books(
        ("n1", "ops-1-1", {0: 500}),
        ("n1", "ops-2-1", {0: 500}),
        ("n1", "ops-3-1", {1: 1000, 2: 1000}),
        ("n2", "lab-1-1", {0: 1000}),
    )
    assert rules(full) == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (books(("n1", "lab-1-1", {0: 1000}), ("n2", "lab-2-1", {0: 1})), [("team-above-limit", "lab")]),
        (books(("n1", "lab-1-1", {0: 1}), lab_2_1=1000), [("team-above-limit", "lab")]),
        (books(("n1", "", {0: 1})), [("team-above-limit", "(nobody)")]),
        (books(("n1", "evil-1-1", {0: 1})), [("team-above-limit", "evil")]),
        (books(("n1", "ops-1-1", {0: 1000}), ("n1", "lab-1-1", {0: 1})), [("two-owners", "n1/0")]),
        (books(("n1", "ops-1-1", {0: 501}), ("n1", "ops-2-1", {0: 500})), [("over-committed", "n1/0")]),
    ],
    ids=["limit", "group", "no name", "no limit", "two owners", "fractions"],
)
def test_what_breaks_a_rule_is_found(given: Books, expected: Sequence[tuple[str, str]]) -> None:
    assert rules(given) == expected


def test_one_device_index_on_two_nodes_is_two_devices() -> None:
    assert rules(books(("n1", "ops-1-1", {0: 1000}), ("n2", "ops-2-1", {0: 1000}))) == []


def test_a_team_is_what_stands_before_the_first_dash() -> None:
    assert (team_of("ops-12-1"), team_of("ops"), team_of("")) == ("ops", "(nobody)", "(nobody)")


class Away(grpc.RpcError):
    pass


class Cluster:
    """Answers once, is away once, then ends the watch."""

    def __init__(self, ended: threading.Event) -> None:
        self.asked, self.ended = 0, ended

    def gcs_books(self) -> Books:
        self.asked += 1
        if self.asked == 2:
            raise Away
        if self.asked == 3:
            self.ended.set()
        return books(("n1", "lab-1-1", {0: 1000}), ("n1", "lab-2-1", {1: 500}))

    def follow(self) -> None:
        self.followed = True

    def raylets(self) -> dict[str, str]:
        return {"n1": "there"}

    def raylet_books(self, node: str, address: str) -> Books:
        return books(("n1", "ops-1-1", {0: 1000}))


def test_what_was_seen_is_written_and_counted_and_what_was_not_seen_too() -> None:
    ended, out = threading.Event(), io.StringIO()
    cluster = Cluster(ended)
    counted = watch(cluster, LIMITS, ended, out)  # type: ignore[arg-type]
    assert cluster.followed, "after a look without an answer the cluster may be another one"
    assert counted == {
        "samples": 4,
        "raylet_samples": 0,
        "blind": 1,
        "violations": 2,
        "busiest": 1500,
        "most": {"lab": 1500, "ops": 1000},
    }
    assert [json.loads(line)["rule"] for line in out.getvalue().splitlines()] == ["team-above-limit"] * 2


def test_where_the_cluster_is_now(tmp_path: Path) -> None:
    told = tmp_path / "ray.json"
    assert (where("127.0.0.1:1"), where(str(told))) == ("127.0.0.1:1", "")
    told.write_text('{"ray_address": "127.0.0.1:2"}')
    assert where(str(told)) == "127.0.0.1:2"
