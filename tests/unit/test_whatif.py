"""S7: `moorage plan`: what other quotas would have done to the waits of a pool's own history; worked out by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from control_world import world

from moorage import cli
from moorage.configs.teams import Teams, parse_teams, stored_teams
from moorage.errors import DataError, InvalidRequest, MoorageError
from moorage.runtime.commands import plan as command
from moorage.runtime.control.simbackend import SimNode
from moorage.runtime.history import whatif
from moorage.runtime.history.own import OwnHistory, read_own
from moorage.runtime.history.trace import Trace
from moorage.runtime.history.whatif import changes, what_if
from moorage.scheduling.model import NodeSpec
from moorage.scheduling.simulator.model import Kind, LeftOut, Workload

HOUR = 3600 * 10**9
NODE = NodeSpec(name="n0", gpu_model="A", devices=4, device_mib=1000, milli_cpu=64000, mib=64000)


@dataclass(frozen=True)
class Job:
    team: str
    gpus: int = 1
    hours: int = 2
    at: int = 0
    waited: int = 0


def history(*jobs: Job, nodes: tuple[NodeSpec, ...] = (NODE,)) -> OwnHistory:
    teams = tuple(sorted({job.team for job in jobs}))

    def column(values: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.array(values, np.int64)

    none = np.zeros(len(jobs), np.int64)
    load = Workload(
        submit_ns=column([job.at * HOUR for job in jobs]),
        duration_ns=column([job.hours * HOUR for job in jobs]),
        team=column([teams.index(job.team) for job in jobs]),
        workers=none + 1,
        min_workers=none + 1,
        milli_gpu=column([job.gpus * 1000 for job in jobs]),
        gpu_mib=none,
        milli_cpu=none,
        mib=none,
        models=none,
        deadline_ns=none,
        priority=none,
        names=tuple(f"j{row}" for row in range(len(jobs))),
        teams=teams,
        model_sets=((),),
        kind=Kind.JOBS,
    )
    left = (LeftOut(row=9, name="still", code="not-ended", text="it runs"),)
    trace = Trace(source="own", workload=load, rows=np.arange(1, len(jobs) + 1), left_out=left)
    waited = column([job.waited * HOUR for job in jobs])
    return OwnHistory(trace=trace, waited_ns=waited, begun_ns=7 * HOUR, nodes=nodes, teams={})


def teams(**said: str) -> Teams:
    return parse_teams(f"teams: {{{', '.join(f'{name}: {{{text}}}' for name, text in said.items())}}}")


def hours(figures: dict[str, Any]) -> list[float]:
    return [round(figures[f"wait_{name}_s"] / 3600, 3) for name in ("mean", "p95", "longest")]


def test_a_raised_limit_ends_a_wait() -> None:
    """b may hold one: its second job waited two hours. With two it would not have."""
    own = history(Job("b"), Job("b", waited=2))
    found = what_if(own, teams(b="limit: 1"), teams(b="limit: 2"))
    assert hours(found["before"]) == [1, 1.9, 2] and hours(found["after"]) == [0, 0, 0]
    assert hours(found["as_it_was"]) == hours(found["before"]), "the replay does what the pool did"
    assert found["window_hours"] == 4 and found["begun_ns"] == 7 * HOUR
    assert [found[side]["gpu_hours"] for side in ("before", "after")] == [4, 4]
    assert [found[side]["utilisation_percent"] for side in ("before", "after")] == [25, 25]
    assert found["jobs_by_change"] == {"longer": 0, "shorter": 1, "same": 1, "refused": 0}
    assert found["worst_hit"] == [] and found["left_out_by_code"] == {"not-ended": 1}
    [one] = found["changes"]
    assert one == {"team": "b", "figure": "limit", "gpu_model": "gpus", "before": 1000, "after": 2000}


def test_a_lowered_limit_names_who_is_hit() -> None:
    """And the GPU time that no longer falls within the window."""
    own = history(Job("a"), Job("b"), Job("b", hours=1))
    found = what_if(own, teams(a="", b="limit: 2"), teams(a="", b="limit: 1"))
    [worst] = found["worst_hit"]
    assert (worst["job"], worst["team"], worst["wait_before_s"], worst["wait_after_s"]) == (
        "j2",
        "b",
        0,
        7200,
    )
    a, b = found["teams"]
    assert a["before"] == a["after"] and a["after"]["gpu_hours"] == 2
    assert (b["before"]["gpu_hours"], b["after"]["gpu_hours"]) == (3, 2)
    assert (b["before"]["utilisation_percent"], b["after"]["utilisation_percent"]) == (37.5, 25)
    assert (found["before"]["last_end_hours"], found["after"]["last_end_hours"]) == (2, 3)


def test_what_one_team_gains_another_waits_for() -> None:
    """Quota moves from a to b: who came later, but within its quota, goes first."""
    own = history(Job("a", 4, 1), Job("a", 4, 5), Job("b", 2, 1, waited=6))
    before, after = teams(a="quota: 4", b="quota: 0"), teams(a="quota: 0", b="quota: 4")
    found = what_if(own, before, after)
    by_team = {one["team"]: one for one in found["teams"]}
    assert hours(by_team["b"]["before"])[2] == 6 and hours(by_team["b"]["after"])[2] == 0
    assert hours(by_team["a"]["after"])[2] > hours(by_team["a"]["before"])[2]
    assert {one["team"] for one in found["worst_hit"]} == {"a"}


def test_what_could_never_start_is_refused_and_not_waited_for() -> None:
    own = history(Job("a", 3), Job("a", 1))
    found = what_if(own, teams(a="limit: 4"), teams(a="limit: 2"))
    [refused] = found["refused"]
    assert (refused["job"] == "j0" and "2 GPUs" in refused["why"]) or "3 GPUs" in refused["why"]
    assert (found["after"]["jobs"], found["after"]["refused"]) == (1, 1)
    assert found["jobs_by_change"]["refused"] == 1 and hours(found["after"]) == [0, 0, 0]
    nobody = what_if(own, teams(a="limit: 4"), teams(a="limit: 0"))
    assert nobody["after"]["refused"] == 2 and nobody["after"]["wait_mean_s"] is None


def test_what_todays_pool_could_not_hold_is_left_out() -> None:
    """The pool was larger then, or the job's team has left the file."""
    own = history(Job("a", 8), Job("gone", 1, at=1), Job("a", 1, at=3))
    found = what_if(own, teams(a=""), teams(a="", gone=""))
    assert found["jobs"] == 1 and found["begun_ns"] == (7 + 3) * HOUR
    assert [(one["name"], one["code"]) for one in found["left_out"][-2:]] == [
        ("j0", "could-not-run"),
        ("j1", "could-not-run"),
    ]
    with pytest.raises(DataError, match="trace-nothing-left"):
        what_if(history(Job("a", 8)), teams(a=""), teams(a=""))


def test_progress_is_told_of_both_runs() -> None:
    told: list[tuple[str, int, int]] = []
    what_if(history(Job("a")), teams(a=""), teams(a=""), progress=lambda *one: told.append(one))
    assert [one[0] for one in told] == sorted(one[0] for one in told), "current, then proposed"
    done = [one[1] for one in told]
    assert done == sorted(done) and {("current quotas", 0, 2), ("proposed quotas", 1, 2)} <= set(told)


@pytest.mark.parametrize(
    ("nodes", "proposed", "code", "says"),
    [
        ((NODE,), "b: {}", "history-team-unknown", "a (2 jobs)"),
        ((NODE,), "a: {quota: 3}, c: {quota: 2}", "teams-over-committed", "uotas guarantee 5 gpus"),
        ((NODE,), "a: {quota: {H100: 1}}", "teams-over-committed", "1 H100 and the pool has 0"),
        ((NodeSpec(name="cpu", milli_cpu=1000),), "a: {}", "no-nodes", "no node with a GPU"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    nodes: tuple[NodeSpec, ...], proposed: str, code: str, says: str
) -> None:
    own = history(Job("a"), Job("a"), nodes=nodes)
    with pytest.raises(InvalidRequest) as caught:
        what_if(own, teams(a=""), parse_teams(f"teams: {{{proposed}}}"))
    assert caught.value.code == code and says in str(caught.value)


def test_the_stored_tree_is_the_one_that_was_read() -> None:
    tree = parse_teams(
        "teams: {org: {quota: {gpus: 4, L4: 2.5}, weight: 3, budget: {dollars: 5, per: week}}, "
        "ops: {parent: org, limit: 1.125, lend: 0, borrow: 1}}"
    )
    assert stored_teams(json.loads(json.dumps(tree.model_dump()))) == tree


def test_differences_between_two_trees() -> None:
    old = teams(a="quota: 2, limit: {gpus: 4, L4: 2}", b="weight: 2", gone="")
    new = teams(a="quota: 2, limit: 3", b="weight: 1, budget: {gpu_hours: 1.5, dollars: 2}", new="")
    lines = command.changed(changes(old, new))
    assert lines == [
        "a: limit of L4 2 -> no bound",
        "a: limit 4 -> 3",
        "b: weight 2 -> 1",
        "b: budget none -> 1.5 gpu_hours and 2 dollars a month",
        "gone: team there -> not there",
        "new: team not there -> there",
    ]
    assert command.changed(changes(old, old)) == ["the quotas are the same"]
    notes = what_if(history(Job("a")), old, teams(a="budget: {dollars: 1}"))["notes"]
    assert any("budgets are not replayed" in note for note in notes)


# -- the command


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose control plane has a history: research may hold 2; its second job of 2 waited for the first."""
    with world(tmp_path) as w:
        w.submit("research", job="first", workers=2, seconds="60")
        w.submit("research", job="second", workers=2, seconds="60")
        w.submit("ops", job="other", workers=2, seconds="30")
        w.run(150, step=1)
        assert w.states("first", "second", "other") == ["SUCCEEDED"] * 3
        now = w.clock.now().wall_ns
        own = read_own(str(w.service.core.store.engine.url))
    if not (tmp_path / "control.db").is_file():
        pytest.skip("the home's own database is SQLite")
    assert own.waited_ns[1] > 59 * 10**9
    monkeypatch.setattr(command.time, "time_ns", lambda: now)
    return tmp_path


def asked(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.cli, ["plan", *map(str, arguments)])


def quotas(folder: Path, text: str) -> Path:
    file = folder / "quotas.yaml"
    file.write_text(text)
    return file


def test_the_command_replays_the_pools_own_week(pool: Path) -> None:
    file = quotas(pool, "teams: {ops: {quota: 4, limit: 6}, research: {quota: 2, limit: 4}}")
    shown = asked(file, "--home", pool)
    assert shown.exit_code == 0, shown.output
    text = " ".join(shown.output.split())
    assert "3 jobs of 2 teams on 2 nodes" in text and "Nothing is applied" in text
    assert (
        "research: limit 2 -> 4" in text and "0 jobs wait longer, 1 shorter, 2 as long; 0 are refused" in text
    )
    found = json.loads(asked(file, "--home", pool, "--json").output)
    research = next(one for one in found["teams"] if one["team"] == "research")
    assert research["before"]["wait_longest_s"] > 59 and research["after"]["wait_longest_s"] == 0
    same = json.loads(asked(file, "--history", pool / "control.db", "--json").output)
    assert same["teams"] == found["teams"]


def test_a_replay_under_the_quotas_in_force_waits_as_the_pool_did(pool: Path) -> None:
    """Up to the seconds that a live pool takes to notice an end and to start."""
    file = quotas(pool, "teams: {ops: {quota: 4, limit: 6}, research: {quota: 2, limit: 2}}")
    found = json.loads(asked(file, "--home", pool, "--json").output)
    assert found["changes"] == [] and found["before"] == found["after"]
    for name in ("mean", "p95", "longest"):
        assert abs(found["before"][f"wait_{name}_s"] - found["as_it_was"][f"wait_{name}_s"]) < 3


def test_who_is_hit_is_shown(pool: Path) -> None:
    file = quotas(pool, "teams: {ops: {quota: 4, limit: 1}, research: {quota: 1, limit: 2}}")
    assert refused_code(file, "--home", pool) == "invalid-config"
    file = quotas(pool, "teams: {ops: {limit: 1}, research: {quota: 2, limit: 2}}")
    text = " ".join(asked(file, "--home", pool).output.split())
    assert "Refused under the proposed quotas" in text and "other ops 2" in text


def refused_code(*arguments: str | Path) -> str:
    done = asked(*arguments)
    assert isinstance(done.exception, MoorageError), done.output
    return done.exception.code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("teams: {ops: {parent: research}, research: {parent: ops}}", "invalid-config"),
        ("teams: {ops: {quota: 4, limit: 3}, research: {}}", "invalid-config"),
        ("teams: {ops: {quota: 1}, research: {quota: 2, parent: ops}}", "invalid-config"),
        ("teams: {ops: {quota: 800}, research: {}}", "teams-over-committed"),
        ("teams: {ops: {}}", "history-team-unknown"),
        ("teams: {ops: {quotas: 3}}", "invalid-config"),
        ("teams: [", "malformed-yaml"),
        ("", "invalid-config"),
    ],
)
def test_bad_files_are_refused(pool: Path, text: str, code: str) -> None:
    assert refused_code(quotas(pool, text), "--home", pool) == code


def test_other_bad_input(pool: Path, tmp_path: Path) -> None:
    good = quotas(pool, "teams: {ops: {}, research: {}}")
    assert refused_code(pool / "none.yaml") == "config-unreadable"
    assert refused_code(pool) == "config-unreadable"
    for age in ("soon", "-1d", "0", "9999d", "7 days"):
        assert refused_code(good, "--home", pool, f"--since={age}") == "bad-since", age
    assert refused_code(good, "--home", pool / "elsewhere") == "history-not-found"
    assert refused_code(good, "--history", good) == "history-unreadable"
    assert refused_code(good, "--home", pool, "--since", "10s") == "trace-empty"


def test_asking_writes_nothing(pool: Path) -> None:
    before = (pool / "control.db").read_bytes()
    assert asked(quotas(pool, "teams: {ops: {}, research: {}}"), "--home", pool).exit_code == 0
    assert (pool / "control.db").read_bytes() == before


def test_what_a_job_wants_of_nodes_is_replayed(tmp_path: Path) -> None:
    """Two jobs for the one node with a disk: the second waited for the first, though the other node was free."""
    nodes = (SimNode(name="node-0"), SimNode(name="node-1", labels=(("disk", "ssd"),)))
    with world(tmp_path, nodes=nodes, teams="teams: {ops: {}}") as w:
        for _ in range(2):
            w.submit("ops", workers=4, seconds="60", node_selector="disk=ssd", gpu_model="L4|A100")
        w.run(150, step=1)
        own = read_own(str(w.service.core.store.engine.url))
    load = own.trace.workload
    assert load.model_sets[load.models[0]] == ("L4", "A100") and load.place(int(load.models[0])).select
    assert own.nodes[1].traits.value("disk") == "ssd"
    found = what_if(own, teams(ops=""), teams(ops=""))
    assert found["jobs"] == 2 and found["before"]["wait_longest_s"] > 59
    assert abs(found["before"]["wait_longest_s"] - found["as_it_was"]["wait_longest_s"]) < 3


def test_many_jobs_are_decided_in_steps_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    own = history(Job("b"), Job("b", at=1, waited=1))
    assert "coarse" not in str(what_if(own, teams(b="limit: 1"), teams(b="limit: 1"))["notes"])
    monkeypatch.setattr(whatif, "MANY_JOBS", 2)
    monkeypatch.setattr(whatif, "PERIOD_NS", 3 * HOUR)
    found = what_if(own, teams(b="limit: 1"), teams(b="limit: 1"))
    assert "10800 s apart" in str(found["notes"]) and hours(found["before"])[2] == 2, "at 3, not at 2"


def test_few_jobs_are_packed_by_best_fit_as_in_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """The live pool knows its mix from 200 tasks on; so does the replay."""
    asked: list[str] = []
    real = whatif.engine.simulate
    monkeypatch.setattr(
        whatif.engine, "simulate", lambda *a, **k: asked.append(k["packing"]) or real(*a, **k)
    )
    own = history(Job("a"), Job("a"))
    what_if(own, teams(a=""), teams(a=""))
    monkeypatch.setattr(whatif, "FEWEST_TASKS", 2)
    what_if(own, teams(a=""), teams(a=""), packing="first")
    assert asked == ["best-fit"] * 2 + ["first"] * 2
