"""`moorage events`: the newest, the oldest, and each as it comes, over HTTP from the real control plane (G2)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from door_world import Door, door

from moorage.errors import InvalidRequest, Unavailable
from moorage.runtime.client import Client
from moorage.runtime.commands import events as command


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Door]:
    with door(tmp_path) as made:
        yield made


class Stop(Exception):
    pass


def test_the_tail_is_the_newest_in_order(ours: Door) -> None:
    for i in range(5):
        ours.pool.submit("ops", job=f"j{i}", seconds="1")
    ours.pool.run(3)
    everything = ours.json("events", "--limit", "1000")
    assert len(everything) > 20 and [e["seq"] for e in everything] == sorted(e["seq"] for e in everything)
    assert ours.json("events", "--tail", "7") == everything[-7:]
    assert ours.json("events", "--limit", "7") == everything[:7]
    assert ours.json("events", "--tail", "0") == []
    after = everything[-3]["seq"]
    assert ours.json("events", "--tail", "7", "--after", str(after)) == everything[-2:]
    own = ours.json("events", "--job", "j1", "--tail", "2")
    assert len(own) == 2 and {e["job_id"] for e in own} == {"j1"}
    assert own == [e for e in everything if e["job_id"] == "j1"][-2:]
    assert ours.run("events", "--tail", "3").stdout.count("\n") == 4, "a heading and three lines"


def test_a_team_follows_its_own_only(ours: Door) -> None:
    ours.pool.submit("ops", job="theirs")
    ours.pool.submit("research", job="mine")
    ours.pool.run(1)
    assert {e["team"] for e in ours.json("events", "--tail", "50", who="research")} == {"research"}


def test_following_misses_nothing_and_says_nothing_twice(ours: Door) -> None:
    """What was there is told from its last three on; then jobs come while it is watched."""
    ours.pool.submit("ops", job="first")
    ours.pool.run(1)
    before, rounds, told = ours.json("events", "--limit", "1000"), iter(range(3)), []

    def pause(seconds: float) -> None:
        assert seconds == 0.5
        i = next(rounds, None)
        if i is None:
            raise Stop
        ours.pool.submit("ops", job=f"more{i}", seconds="1")
        ours.pool.run(3)

    with ours.client() as client, pytest.raises(Stop):
        for event in command.following(client, None, 0, 3, 0.5, pause):
            told.append(event)
    everything = ours.json("events", "--limit", "1000")
    assert len(everything) > len(before)
    assert told == everything[len(before) - 3 :]


def test_following_a_page_that_is_full_asks_again_at_once(
    ours: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours.pool.submit("ops", job="one", seconds="1")
    ours.pool.run(3)
    everything = ours.json("events", "--limit", "1000")
    monkeypatch.setattr(command, "PAGE", 2)
    told, pauses = [], []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        raise Stop

    with ours.client() as client, pytest.raises(Stop):
        for event in command.following(client, None, 0, None, 1.0, pause):
            told.append(event)
    assert told == everything and len(pauses) == 1


def test_following_outlives_a_front_door_that_restarts(capsys: pytest.CaptureFixture[str]) -> None:
    """It says once that it waits, and goes on where it was."""

    class Door:
        answers = iter(
            [[{"seq": 4}], Unavailable("gone"), Unavailable("gone"), [{"seq": 5}], Unavailable("again"), []]
        )

        def events(self, job: None, after: int, limit: int = 0, last: int = 0) -> list[dict[str, int]]:
            asked.append(after)
            found = next(self.answers, None)
            if isinstance(found, Exception):
                raise found
            if found is None:
                raise Stop
            return found

    asked: list[int] = []
    told = []
    with pytest.raises(Stop):
        for event in command.following(Door(), None, 0, 1, 1.0, lambda _: None):  # type: ignore[arg-type]
            told.append(event["seq"])
    assert told == [4, 5] and asked == [0, 4, 4, 4, 5, 5, 5]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "gone" in said[0] and "again" in said[1]


def test_followed_events_are_lines(ours: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """For people and, with --json, one document a line."""
    ours.pool.submit("ops", job="one")

    def twice(*_: object) -> Iterator[dict[str, object]]:
        with Client(ours.url, ours.token("admin")) as client:
            yield from client.events(last=2)

    monkeypatch.setattr(command, "following", twice)
    lines = ours.run("events", "--follow").stdout.splitlines()
    assert len(lines) == 2 and "one" in lines[-1] and "ops" in lines[-1]
    found = [json.loads(text) for text in ours.run("events", "-f", "--json").stdout.splitlines()]
    assert [e["seq"] for e in found] == [int(text.split()[0]) for text in lines]


@pytest.mark.parametrize("more", [["--tail", "5"], ["--follow"]])
def test_the_oldest_and_the_newest_are_not_asked_for_at_once(ours: Door, more: list[str]) -> None:
    refused = ours.run("events", "--limit", "5", *more, ok=False).exception
    assert isinstance(refused, InvalidRequest) and refused.code == "bad-option"
