"""`moorage top`: what is held, by whom, and what waits for which rule, over HTTP from the real control plane (S8)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from door_world import Door, door
from rich.console import Console

from moorage.errors import Unavailable
from moorage.runtime.commands import top


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Door]:
    """Two nodes of four GPUs, quotas 4 and 2, limits 6 and 2: ops holds its 6, one job waits for the limit."""
    with door(tmp_path) as made:
        for i in range(6):
            made.pool.submit("ops", job=f"run{i}", seconds="1000")
        for i in range(30):
            made.pool.submit("ops", job=f"wait{i:02}")
        made.pool.run(2)
        yield made


def lines(found: dict[str, Any], height: int | None = None) -> list[str]:
    screen = Console(width=120, highlight=False, markup=False)
    with screen.capture() as caught:
        screen.print(top.drawn(found, height))
    return [text.rstrip() for text in caught.get().splitlines()]


def test_once_into_a_pipe_all_of_it(busy: Door) -> None:
    shown = busy.run("top").stdout.splitlines()
    assert "2 of 2 nodes up, 6 of 8 GPUs held, 6 running, 30 waiting" in shown[0]
    ops = next(text.split() for text in shown if text.startswith("ops"))
    assert ops == ["ops", "[####################]", "6", "4", "6", "2"]
    research = next(text.split() for text in shown if text.startswith("research"))
    assert research == ["research", "[....................]", "0", "2", "2", "0"]
    nodes = [text for text in shown if text.startswith("node-")]
    assert [text.count("[########]") for text in nodes] == [4, 2] and nodes[1].count("[........]") == 2
    waits = [text for text in shown if text.startswith("wait")]
    assert len(waits) == 30 and all("team-limit" in text and "team ops holds 6" in text for text in waits)
    assert sum(text.startswith("run") for text in shown) == 6
    assert busy.run("top", "--once").stdout.splitlines()[1:] == shown[1:]


def test_as_data(busy: Door) -> None:
    found = busy.json("top")
    assert found["pool"] == {
        "nodes_up": 2,
        "nodes": 2,
        "devices": 8,
        "held_milli_gpu": 6000,
        "running": 6,
        "waiting": 30,
        "ray_reachable": True,
    }
    assert found["waiting"][0]["reason"]["code"] == "team-limit"
    assert {team["team"] for team in found["teams"]} == {"ops", "research"}


@pytest.mark.parametrize("height", [18, 24, 30, 60])
def test_it_fits_the_terminal_and_counts_what_does_not(busy: Door, height: int) -> None:
    with busy.client() as client:
        found = client.status()
    shown = lines(found, height)
    assert len(shown) <= height
    assert {"Teams (GPUs)", "Nodes", "Running", "Waiting"} <= set(shown)
    waits = sum(text.startswith("wait") for text in shown)
    hidden = next((int(text.split()[1]) for text in shown[::-1] if text.startswith("and ")), 0)
    assert waits + hidden == 30
    if height == 60:
        assert hidden == 0


def test_an_idle_pool_has_no_empty_tables(tmp_path: Path) -> None:
    with door(tmp_path) as made:
        shown = made.run("top").stdout
    assert "0 of 8 GPUs held, 0 running, 0 waiting" in shown
    assert "Teams (GPUs)" in shown and "Running" not in shown and "Waiting" not in shown


def test_while_nobody_answers_the_last_state_stays(busy: Door) -> None:
    class Stop(Exception):
        pass

    with busy.client() as client:
        found = client.status()
    answers, shown, pauses = iter([Unavailable("gone for now"), found]), [], []

    class Client:
        def status(self) -> dict[str, Any]:
            one = next(answers, None)
            if one is None:
                raise Stop
            if isinstance(one, Exception):
                raise one
            return one

    with pytest.raises(Stop):
        top.watch(Client(), found, 3.0, shown.append, pauses.append)  # type: ignore[arg-type]
    assert pauses == [3.0] * 3
    first, second = lines(shown[0]), lines(shown[1])
    assert "as it was last read: gone for now" in " ".join(first[:2]) and second == lines(found)
    assert any("6 of 8 GPUs held" in text for text in first)


def test_a_device_bar_is_as_long_as_it_is_said() -> None:
    held = [{"team": "a", "milli_gpu": 500}, {"team": "b", "milli_gpu": 1}]
    assert top.bar(held, {}, 8).plain == "[####=...]"
