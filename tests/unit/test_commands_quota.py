"""`moorage quota`: another tree in force without a restart, over HTTP on the real control plane (S1, G2)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from door_world import Door, door

from moorage.configs.quotafile import as_file, changes, edited, text
from moorage.configs.teams import parse_teams
from moorage.errors import Conflict, Forbidden, Infeasible, InvalidRequest, MoorageError, NotFound

RICH = """
teams:
  org: {quota: {gpus: 6, L4: 2}, weight: 3}
  ops: {parent: org, quota: {gpus: 4, L4: 2}, limit: 6.5, lend: {L4: 1}, borrow: 0}
  research: {parent: org, budget: {gpu_hours: 100, dollars: 2.5, per: week}, default_lease: {workers: 2}}
"""


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Door]:
    """Two nodes of four GPUs; quotas 4 and 2, limits 6 and 2."""
    with door(tmp_path) as made:
        yield made


def refused(ours: Door, kind: type[MoorageError], code: str, *arguments: str, who: str = "admin") -> str:
    error = ours.run("quota", *arguments, who=who, ok=False).exception
    assert isinstance(error, kind) and error.code == code, error
    return str(error)


def quotas(folder: Path, content: str) -> str:
    path = folder / "quotas.yaml"
    path.write_text(content)
    return str(path)


def test_a_limit_that_is_raised_starts_who_waits_for_it(ours: Door) -> None:
    """And the record says who changed what; nothing was restarted."""
    for i in range(3):
        ours.pool.submit("research", job=f"j{i}", seconds="1000")
    ours.pool.run(3)
    assert ours.pool.states("j0", "j1", "j2") == ["RUNNING", "RUNNING", "PENDING"]
    said = ours.run("quota", "set", "research", "limit=3").stdout
    assert said == "research: limit 2 -> 3\nin force as version 2\n"
    ours.pool.run(3)
    assert ours.pool.states("j0", "j1", "j2") == ["RUNNING"] * 3
    applied = [e for e in ours.json("events", "--limit", "1000") if e["kind"] == "quota.applied"]
    assert [(e["principal"], e["payload"]["version"], e["payload"]["before"]) for e in applied] == [
        ("admin", 2, 1)
    ]
    assert applied[0]["payload"]["changes"] == [
        {"team": "research", "figure": "limit", "gpu_model": "gpus", "before": 2000, "after": 3000}
    ]
    assert {t["team"]: t["limit_milli_gpu"] for t in ours.json("status")["teams"]}["research"] == 3000


def test_a_limit_that_falls_stops_nobody_and_starts_nobody(ours: Door) -> None:
    for i in range(4):
        ours.pool.submit("ops", job=f"j{i}", seconds="1000")
    ours.pool.run(3)
    ours.run("quota", "set", "ops", "gpus=1", "limit=1")
    ours.pool.submit("ops", job="more")
    ours.pool.run(3)
    assert ours.pool.states(*(f"j{i}" for i in range(4)), "more") == ["RUNNING"] * 4 + ["PENDING"]
    assert ours.pool.job("more").reason["code"] == "team-limit"  # type: ignore[index]


def test_a_new_team_can_submit_at_once_and_one_that_is_gone_cannot(ours: Door, tmp_path: Path) -> None:
    file = quotas(tmp_path, "teams: {ops: {quota: 2, limit: 6}, lab: {parent: ops, quota: 2}}")
    old = ours.token("research")
    ours.run("quota", "apply", file)
    ours.pool.submit("lab", job="first", seconds="1000")
    ours.pool.run(3)
    assert ours.pool.states("first") == ["RUNNING"]
    with pytest.raises(MoorageError, match="not valid"):
        ours.pool.service.authenticate(old)
    refused(ours, Conflict, "team-in-use", "apply", quotas(tmp_path, "teams: {ops: {quota: 2}}"))
    ours.pool.service.stop(ours.pool.caller("admin"), "first")
    ours.pool.run(3)
    ours.run("quota", "apply", quotas(tmp_path, "teams: {ops: {quota: 2}}"))
    assert list(ours.json("quota", "show")["file"]["teams"]) == ["ops"]


def test_what_was_applied_outlives_a_restart_until_the_file_changes(ours: Door) -> None:
    """The pool starts each time with its own file: what that says again is no news."""
    pool = ours.pool
    ours.run("quota", "set", "ops", "gpus=3", "weight=5")
    pool.restart()
    assert (
        pool.service.teams.teams["ops"].quota == {"gpus": 3000}
        and pool.service.teams.teams["ops"].weight == 5
    )
    assert int(pool.service.core.book.ledger.quota[0, 0]) == 3000
    pool.options["teams"] = parse_teams("teams: {ops: {quota: 1}, research: {quota: 2}}")
    pool.restart()
    assert pool.service.teams.teams["ops"].quota == {"gpus": 1000}
    caller = pool.caller("admin")
    assert pool.service.quotas(caller)["version"] == 3
    pool.restart()
    assert pool.service.quotas(caller)["version"] == 3, "read again, and the same"


def test_refused_with_a_code_and_nothing_changes(ours: Door, tmp_path: Path) -> None:
    before = ours.json("quota", "show")

    def file(content: str) -> str:
        return quotas(tmp_path, content)

    cycle = file("teams: {a: {parent: b}, b: {parent: a}}")
    assert "cycle" in refused(ours, InvalidRequest, "invalid-config", "apply", cycle)
    children = file("teams: {a: {quota: 1}, b: {parent: a, quota: 2}}")
    assert "its children have 2" in refused(ours, InvalidRequest, "invalid-config", "apply", children)
    over = file("teams: {ops: {quota: 6}, research: {quota: 3}}")
    why = refused(ours, Infeasible, "quota-over-committed", "apply", over)
    assert "Quotas guarantee 9 gpus and the pool has 8" in why
    model = file("teams: {ops: {quota: {H100: 1}}, research: {}}")
    assert "1 H100 and the pool has 0" in refused(ours, Infeasible, "quota-over-committed", "apply", model)
    refused(ours, InvalidRequest, "config-unreadable", "apply", str(tmp_path / "none.yaml"))
    refused(ours, Forbidden, "admin-only", "set", "ops", "gpus=1", who="ops")
    refused(ours, NotFound, "team-not-found", "set", "opps", "gpus=1")
    refused(ours, InvalidRequest, "bad-figure", "set", "ops", "weight.gpus=1")
    refused(ours, InvalidRequest, "invalid-config", "set", "ops", "gpus=many")
    with ours.client() as client, pytest.raises(Conflict) as stale:
        client.put_quotas(text(before["file"]), base=before["version"] + 1)
    assert stale.value.code == "quota-changed"
    assert ours.json("quota", "show") == before
    assert not [e for e in ours.json("events", "--limit", "1000") if e["kind"] == "quota.applied"]
    forced = ours.json("quota", "apply", over, "--force")
    assert forced["applied"] and forced["version"] == before["version"] + 1


def test_a_dry_run_says_what_would_change(ours: Door) -> None:
    done = ours.run("quota", "set", "ops", "limit=none", "L4=1", "--dry-run").stdout.splitlines()
    assert done == [
        "ops: quota of L4 0 -> 1",
        "ops: limit 6 -> no bound",
        "nothing is applied; version 1 is in force",
    ]
    assert ours.json("quota", "show")["version"] == 1
    assert ours.run("quota", "set", "ops", "limit=6").stdout == "the quotas are the same\n"


def test_shown_as_a_tree_and_as_the_file_to_apply(ours: Door, tmp_path: Path) -> None:
    ours.run("quota", "apply", quotas(tmp_path, RICH))
    shown = [line.split() for line in ours.run("quota", "show").stdout.splitlines()]
    assert shown[2:] == [
        ["org", "6", "L4:2", "-", "-", "-", "3"],
        ["ops", "4", "L4:2", "6.5", "L4:1", "0", "1"],
        ["research", "-", "-", "-", "-", "1", "100", "gpu_hours", "and", "2.5", "dollars", "a", "week"],
    ]
    again = ours.run("quota", "show", "--yaml").stdout
    assert parse_teams(again) == parse_teams(RICH)
    assert ours.run("quota", "apply", quotas(tmp_path, again)).stdout == "the quotas are the same\n"
    assert ours.run("quota", "show", who="ops").stdout, "everybody may look"


def test_what_a_team_has_spent_counts_under_another_tree_too(ours: Door) -> None:
    """A budget that comes in force later counts from the begin of its period."""
    ours.pool.submit("ops", job="spends", gpus=2, seconds="5000")
    ours.pool.run(3700, step=100)
    file = yaml.safe_dump(
        {"teams": {"ops": {"quota": 4, "budget": {"gpu_hours": 2, "per": "year"}}, "research": {}}}
    )
    with ours.client() as client:
        client.put_quotas(file)
    ours.pool.submit("ops", job="waits")
    ours.pool.run(2)
    assert ours.pool.job("waits").reason["code"] == "budget"  # type: ignore[index]


def test_a_tree_is_written_as_it_was_read() -> None:
    tree = parse_teams(RICH)
    assert parse_teams(text(as_file(tree))) == tree
    assert changes(tree, parse_teams(text(as_file(tree)))) == []


@pytest.mark.parametrize(
    ("figures", "team"),
    [
        (("gpus=2",), {"quota": {"gpus": 2}, "limit": {"gpus": 6}}),
        (("L4=1.5", "limit=none"), {"quota": {"gpus": 4, "L4": 1.5}}),
        (("gpus=none", "limit.L4=3"), {"limit": {"gpus": 6, "L4": 3}}),
        (
            ("weight=7", "lend=1", "borrow.L4=0"),
            {
                "quota": {"gpus": 4},
                "limit": {"gpus": 6},
                "weight": 7,
                "lend": {"gpus": 1},
                "borrow": {"L4": 0},
            },
        ),
    ],
)
def test_figures_of_a_team(figures: tuple[str, ...], team: dict[str, object]) -> None:
    file = {"teams": {"ops": {"quota": {"gpus": 4}, "limit": {"gpus": 6}}, "other": {}}}
    assert edited(file, "ops", figures) == {"teams": {"ops": team, "other": {}}}
    assert file["teams"]["ops"] == {"quota": {"gpus": 4}, "limit": {"gpus": 6}}


@pytest.mark.parametrize("figure", ["gpus", "=2", "gpus=", "weight.gpus=2", "parent.x=2"])
def test_what_is_no_figure(figure: str) -> None:
    with pytest.raises(InvalidRequest) as found:
        edited({"teams": {"ops": {}}}, "ops", (figure,))
    assert found.value.code == "bad-figure"
