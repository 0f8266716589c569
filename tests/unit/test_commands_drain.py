"""`moorage drain`: a node that takes nothing new, over HTTP on the real control plane and a simulated pool (S1, S8)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from door_world import Door, door

from moorage.errors import Forbidden, MoorageError, NotFound


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Door]:
    """Two nodes of four GPUs; ops has a quota of 4 and a limit of 6."""
    with door(tmp_path) as made:
        yield made


def where(ours: Door, job: str) -> set[str]:
    ledger = ours.pool.service.core.book.ledger
    return {task.node for lease in ledger.held_by(job) for task in lease.tasks}


def test_nothing_new_goes_there_and_what_runs_goes_on(ours: Door) -> None:
    for i in range(6):
        ours.pool.submit("ops", job=f"j{i}", seconds="60" if i < 5 else "1000")
    ours.pool.run(3)
    there = sorted(job for job in (f"j{i}" for i in range(6)) if where(ours, job) == {"node-1"})
    assert there, "both nodes are in use"
    said = ours.run("drain", "node-1", "--why", "new fan").stdout
    assert said == f"node-1 is drained: it takes nothing new\nstill there: {', '.join(there)}\n"
    ours.pool.run(3)
    assert ours.pool.states(*there) == ["RUNNING"] * len(there)
    for i in range(8):
        ours.pool.submit("ops", job=f"new{i}", seconds="20")
    for _ in range(30):
        ours.pool.run(5)
        assert all(where(ours, f"new{i}") <= {"node-0"} for i in range(8))
    assert all(state == "SUCCEEDED" for state in ours.pool.states(*(f"new{i}" for i in range(8))))
    assert ours.run("undrain", "node-1").stdout == "node-1 is in use again\n"
    for i in range(6):
        ours.pool.submit("ops", job=f"again{i}", seconds="1000")
    ours.pool.run(5)
    assert any(where(ours, f"again{i}") == {"node-1"} for i in range(6))


def test_it_outlives_a_restart_and_the_nodes_own(ours: Door) -> None:
    pool = ours.pool
    ours.run("drain", "node-1")
    pool.restart()
    book = pool.service.core.book
    assert not book.ledger.up[book.ledger.node_row["node-1"]]
    pool.backend.down.add("node-1")
    pool.run(2)
    pool.backend.down.clear()
    pool.run(2)
    pool.submit("ops", job="big", workers=4, seconds="1000")
    pool.submit("ops", job="waits", workers=2)
    pool.run(3)
    assert where(ours, "big") == {"node-0"} and pool.states("waits") == ["PENDING"]


def test_why_says_that_it_is_drained_and_that_undraining_helps(ours: Door) -> None:
    ours.run("drain", "node-1")
    ours.pool.submit("ops", job="holds", workers=4, seconds="1000")
    ours.pool.submit("research", job="waits", workers=2, seconds="1000")
    ours.pool.run(3)
    found = ours.json("why", "waits")
    assert "0 are free in the pool (node-1 is drained)" in found["explanation"]["reason"]["text"]
    assert {"change": "undrain", "nodes": ["node-1"], "text": "undrain node-1"} in found["explanation"][
        "suggestions"
    ]
    assert "node-1 is drained" in ours.json("status")["queue"][0]["message"]
    ours.run("undrain", "node-1")
    ours.pool.run(3)
    assert ours.pool.states("waits") == ["RUNNING"]


def test_a_node_that_is_gone_too_is_not_said_to_help(ours: Door) -> None:
    ours.run("drain", "node-1")
    ours.pool.submit("ops", job="holds", workers=4, seconds="1000")
    ours.pool.submit("research", job="waits", workers=2)
    ours.pool.service.core.book.alive.discard("node-1")
    ours.pool.service.core.book.dirty = True
    ours.pool.run(3)
    text = str(ours.json("why", "waits"))
    assert "drained" not in text and "undrain" not in text


def test_it_is_recorded_shown_and_done_once(ours: Door) -> None:
    ours.run("drain", "node-1", "--why", "new fan")
    assert ours.json("drain", "node-1") == {"node": "node-1", "drained": True, "changed": False, "jobs": []}
    assert ours.run("drain", "node-1").stdout.startswith("node-1 was drained")
    shown = {node["name"]: node["drained"] for node in ours.json("status")["nodes"]}
    assert shown["node-0"] is None and shown["node-1"]["why"] == "new fan"
    assert shown["node-1"]["principal"] == "admin"
    for command in ("status", "top"):
        lines = [line.split() for line in ours.run(command).stdout.splitlines() if line.startswith("node-1 ")]
        assert lines[0][1] == "drained", command
    ours.run("undrain", "node-1")
    assert ours.json("undrain", "node-1")["changed"] is False
    kinds = [
        (e["kind"], e["principal"], e["payload"]["node"])
        for e in ours.json("events", "--tail", "1000")
        if e["kind"].endswith("drained")
    ]
    assert kinds == [("node.drained", "admin", "node-1"), ("node.undrained", "admin", "node-1")]


@pytest.mark.parametrize(
    ("who", "node", "kind", "code"),
    [("ops", "node-1", Forbidden, "admin-only"), ("admin", "node-9", NotFound, "node-not-found")],
)
def test_refused_with_a_code(ours: Door, who: str, node: str, kind: type[MoorageError], code: str) -> None:
    for command in ("drain", "undrain"):
        error = ours.run(command, node, who=who, ok=False).exception
        assert isinstance(error, kind) and error.code == code
    assert not [e for e in ours.json("events", "--limit", "1000") if e["kind"].endswith("drained")]


def test_a_change_of_labels_does_not_undrain(ours: Door) -> None:
    ours.run("drain", "node-1")
    backend = ours.pool.backend
    backend.nodes = tuple(replace(node, labels=(("x", "y"),)) for node in backend.nodes)
    ours.pool.run(2)
    ledger = ours.pool.service.core.book.ledger
    row = ledger.node_row["node-1"]
    assert ledger.traits[int(ledger.trait[row])].value("x") == "y", "the change was seen"
    assert not ledger.up[row]
