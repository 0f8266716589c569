"""S8: `moorage why` over the real control plane on a simulated pool: the rule, what would start the job, the time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from control_world import World, world
from waiting import until

from moorage.cli import cli
from moorage.configs.teams import parse_teams
from moorage.errors import NotFound
from moorage.runtime import answers
from moorage.runtime.commands import shared
from moorage.runtime.commands.why import told
from moorage.runtime.control import explaining
from moorage.runtime.control.api import WhyView
from moorage.runtime.control.explaining import Busy
from moorage.runtime.frontdoor.ownapi import why_json

SECOND = 10**9


def why(w: World, job: str, team: str = "admin") -> WhyView:
    return w.service.why(w.caller(team), job)


def explained(w: World, job: str) -> dict[str, Any]:
    found = why(w, job).explanation
    assert found is not None
    return dict(found)


def changes(found: dict[str, Any]) -> list[str]:
    return [one["change"] for one in found["suggestions"]]


@pytest.fixture
def over(tmp_path: Path) -> Iterator[World]:
    """Research may hold 2: `hog` holds them, `waits` asks for 2 more."""
    with world(tmp_path) as w:
        w.submit("research", job="hog", workers=2, seconds="1000")
        w.run(2)
        w.submit("research", job="waits", workers=2, seconds="5")
        w.run(1)
        yield w


def test_the_rule_with_its_figures(over: World) -> None:
    found = explained(over, "waits")
    reason = found["reason"]
    assert (reason["code"], reason["team"]) == ("team-limit", "research")
    assert (reason["asked"], reason["held"], reason["allowed"]) == (2000, 2000, 2000)
    assert reason["holders"] == ["hog"] and found["complete"]


def test_stopping_what_is_named_starts_it(over: World) -> None:
    ends = next(one for one in explained(over, "waits")["suggestions"] if one["change"] == "ends")
    assert ends["jobs"] == ["hog"]
    over.service.stop(over.caller("admin"), "hog")
    over.run(2)
    assert over.states("waits") == ["RUNNING"]


def test_raising_what_is_named_starts_it(over: World) -> None:
    """And a pool restored from the store explains the same before its first round."""
    before = explained(over, "waits")
    over.service.close()
    restored = type(over.service)(backend=over.backend, clock=over.clock, **over.options)
    over.service = restored
    after = explained(over, "waits")
    assert after["suggestions"] == before["suggestions"] and after["reason"] == before["reason"]
    raised = next(one for one in after["suggestions"] if "raise" in one["text"])
    assert "limit of team research by 2 GPUs" in raised["text"]
    less, enough = (
        parse_teams(f"teams: {{ops: {{quota: 4, limit: 6}}, research: {{quota: 2, limit: {n}}}}}")
        for n in (3, 4)
    )
    for teams, state in ((less, "PENDING"), (enough, "RUNNING")):
        over.options["teams"] = teams
        over.restart()
        over.run(2)
        assert over.states("waits") == [state]


def test_a_smaller_gang_starts(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        w.submit("research", job="hog", seconds="1000")
        w.run(2)
        w.submit("research", job="waits", workers=2)
        w.run(1)
        fewer = explained(w, "waits")["suggestions"][0]
        assert (fewer["change"], fewer["workers"]) == ("fewer-workers", 1)
        w.submit("research", job="smaller", workers=fewer["workers"], seconds="1000")
        w.run(2)
        assert w.states("waits", "smaller") == ["PENDING", "RUNNING"]


def test_when_it_starts(tmp_path: Path) -> None:
    """Start plus max_runtime of what holds the room; unknown when that said none."""
    with world(tmp_path) as w:
        w.submit("research", job="hog", workers=2, seconds="1000", max_runtime="10m")
        w.run(2)
        w.submit("research", job="waits", workers=2)
        w.run(1)
        found, hog = explained(w, "waits"), why(w, "hog")
        [held] = hog.holds
        assert found["earliest_ns"] == held["ends_ns"] == hog.job.started_ns + 600 * SECOND
        assert (found["ends_known"], found["ends_unknown"]) == (1, 0)
        w.clock.tick(400)
        assert explained(w, "waits")["earliest_text"].endswith("it starts in 3 min 18 s.")


def test_a_time_that_is_not_known_is_said_so(over: World) -> None:
    found = explained(over, "waits")
    assert found["earliest_ns"] is None and (found["ends_known"], found["ends_unknown"]) == (0, 1)
    text = "\n".join(told(why_json(why(over, "waits"), [])))
    assert "not known" in text and "1 of 1 leases have no known end" in text


def test_jobs_that_do_not_wait(over: World) -> None:
    running = why(over, "hog")
    assert running.explanation is None and [one["milli_gpu"] for one in running.holds] == [2000]
    over.service.stop(over.caller("admin"), "waits")
    ended = why(over, "waits")
    assert ended.job.state == "STOPPED" and ended.explanation is None and ended.holds == []
    text = "\n".join(told(why_json(running, [])))
    assert "hog (research) is RUNNING: it does not wait" in text and "holds l-" in text and "2 GPU" in text
    assert "holds nothing" in "\n".join(told(why_json(ended, [])))


def test_about_to_start(tmp_path: Path) -> None:
    """Submitted since the last round: nothing holds it."""
    with world(tmp_path) as w:
        w.submit("ops", job="soon")
        found = why(w, "soon")
        assert found.explanation is None and found.job.state == "PENDING"
        assert "next scheduling round" in "\n".join(told(why_json(found, [])))


def test_while_ray_is_away_the_answer_says_that_too(over: World) -> None:
    over.backend.unavailable = True
    over.run(1)
    text = "\n".join(told(why_json(why(over, "waits"), [])))
    assert "rule     team-limit" in text and "  now      Ray cannot be reached" in text
    over.backend.unavailable = False
    over.run(1)
    assert "  now " not in "\n".join(told(why_json(why(over, "waits"), [])))


def test_only_the_own_teams_jobs(over: World) -> None:
    assert why(over, "waits", "research").explanation is not None
    for team, job in (("ops", "waits"), ("admin", "nothing")):
        with pytest.raises(NotFound) as caught:
            why(over, job, team)
        assert caught.value.code == "job-not-found"


def test_asking_changes_nothing(over: World) -> None:
    book = over.service.core.book
    version, pending = book.ledger.version, dict(book.pending)
    free = book.ledger.milli_free.copy()
    explained(over, "waits")
    assert book.ledger.version == version and book.pending == pending
    assert (book.ledger.milli_free == free).all()


def test_the_search_is_bounded(over: World, monkeypatch: pytest.MonkeyPatch) -> None:
    most = explained(over, "waits")["plans"]
    over.clock.tick(3)
    monkeypatch.setattr(explaining, "MOST_PLANS", 3)
    found = explained(over, "waits")
    assert most > 3 and found["plans"] == 3 and not found["complete"]
    assert "stopped after 3 plans" in "\n".join(told(why_json(why(over, "waits"), [])))


def test_an_answer_is_given_again_until_something_changes(
    over: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = explained(over, "waits")
    monkeypatch.setattr(explaining, "MOST_PLANS", 1)
    assert explained(over, "waits") == first
    over.submit("ops", job="other", seconds="100")
    over.run(0.5, step=0.25)
    assert not explained(over, "waits")["complete"], "a lease was granted in between"


def test_few_may_ask_at_once(over: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is answered at a time; who finds the line full, or waits too long in it, is told to come again."""
    entered, go = threading.Event(), threading.Event()
    real = explaining.explain

    def slow(*arguments: Any) -> Any:
        entered.set()
        assert go.wait(20)
        return real(*arguments)

    monkeypatch.setattr(explaining, "explain", slow)
    monkeypatch.setattr(explaining, "PATIENCE_S", 0.01)
    first: list[WhyView] = []
    thread = threading.Thread(target=lambda: first.append(why(over, "waits")))
    thread.start()
    assert entered.wait(20)
    over.service.jobs(over.caller("admin"))  # who explains holds no lock that others need
    with pytest.raises(Busy) as caught:
        why(over, "waits")
    assert (caught.value.code, caught.value.http_status) == ("why-busy", 429)
    go.set()
    thread.join(20)
    assert first[0].explanation is not None
    assert why(over, "waits").explanation is not None


def test_a_running_job_that_asked_for_more(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        job = w.submit("research", workers=2, seconds="1000")
        w.run(2)
        caught: list[Exception] = []

        def ask() -> None:
            try:
                w.service.grow(w.caller("research"), explaining_ask(job))
            except Exception as error:
                caught.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: w.service.core.book.pending, 60, "the ask to be written")
        w.run(1)
        found = explained(w, job)
        assert found["job"].startswith("s-") and found["reason"]["code"] == "team-limit"
        assert changes(found) == ["raise-limit"], "its own lease need not end"
        text = "\n".join(told(why_json(why(w, job), [])))
        assert "has asked for more room" in text and "holds l-" in text
        w.service.stop(w.caller("research"), job)
        until(lambda: w.run(1) or caught, 60, "the ask to end with its job")
        thread.join(20)


def explaining_ask(job: str) -> Any:
    from moorage.runtime.control.api import GrowAsk

    return GrowAsk(job_id=job, milli_gpu=1000, timeout_s=600)


class Asked:
    """What the command talks to."""

    def __init__(self, view: WhyView) -> None:
        self.view = view

    def __enter__(self) -> Asked:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def why(self, job: str) -> answers.Why:
        return why_json(self.view, [])


def test_the_command_prints_lines_and_json(over: World, monkeypatch: pytest.MonkeyPatch) -> None:
    view = why(over, "waits")
    monkeypatch.setattr(shared, "connect", lambda *_: Asked(view))
    shown = CliRunner().invoke(cli, ["why", "waits"]).output.splitlines()
    assert shown[0].startswith("waits (research) is PENDING: team research holds 2 of its limit of 2 GPUs")
    assert "  rule     team-limit" in shown and "- end hog, or wait for it" in shown
    as_json = CliRunner().invoke(cli, ["why", "waits", "--json"]).output
    assert '"change": "ends"' in as_json and '"earliest_ns": null' in as_json
