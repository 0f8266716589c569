"""teams.yaml and pool.yaml (S2): what is wrong is refused with its path."""

from __future__ import annotations

from pathlib import Path

import pytest

from moorage.configs.pool import load_pool, parse_pool
from moorage.configs.teams import load_teams, parse_teams
from moorage.errors import InvalidRequest


def test_the_examples_are_valid(root: Path) -> None:
    teams = load_teams(root / "configs" / "examples" / "teams.yaml")
    assert teams.teams["ops"].quota == {"gpus": 4000} and teams.teams["ops"].limit == {"gpus": 6000}
    assert teams.over_committed({"gpus": 8000}) == []
    assert "guarantee 6" in teams.over_committed({"gpus": 4000})[0]
    pool = load_pool(root / "configs" / "examples" / "pool.yaml")
    assert pool.price("L4") == 800_000 and pool.price("other") == 1_000_000


def test_a_tree_with_figures_per_model() -> None:
    teams = parse_teams(
        "teams:\n  eng: {quota: {gpus: 4, L4: 2}}\n  search: {parent: eng, quota: 3, lend: 1, weight: 2}\n"
        "  ads: {parent: eng}"
    )
    assert teams.teams["search"].lend == {"gpus": 1000} and sorted(teams.leaves()) == ["ads", "search"]
    assert teams.guaranteed() == {"gpus": 4000, "L4": 2000}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("teams: [a", "line 1"),
        ("teams: {a: {}, a: {}}", "given twice"),
        ("teams: {a: &x {}, b: *x}", "Aliases"),
        ("teams: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("[]", "mapping"),
        ("", "teams"),
        ("teams: {}", "teams"),
        ("team: {a: {}}", "did you mean 'teams'"),
        ("teams: {a: {quotas: 1}}", "did you mean 'quota'"),
        ("teams: {a: {quota: 4, limit: 2}}", "teams.a: limit 2 is below quota 4"),
        ("teams: {a: {quota: 1, lend: 2}}", "teams.a: lend 2"),
        ("teams: {a: {quota: -1}}", "teams.a.quota"),
        ("teams: {a: {quota: .nan}}", "teams.a.quota"),
        ("teams: {a: {quota: .inf}}", "teams.a.quota"),
        ("teams: {a: {quota: true}}", "teams.a.quota"),
        ("teams: {a: {quota: {gpus: 99999999}}}", "teams.a.quota"),
        ("teams: {a: {weight: 0}}", "teams.a.weight"),
        ("teams: {a: {weight: 1.5}}", "teams.a.weight"),
        ("teams: {a: {parent: b}}", "no team 'b'"),
        ("teams: {a: {parent: b}, b: {parent: a}}", "cycle"),
        ("teams: {a: {quota: 2}, b: {parent: a, quota: 3}}", "its children have 3"),
        ("teams: {A/b: {}}", "teams.A/b"),
        ("teams: {admin: {}}", "reserved"),
        ("teams: {a: {default_lease: {gpus: 1}}}", "default_lease"),
        ("teams: {a: {default_lease: {gpus_per_worker: 1.5}}}", "gpus_per_worker"),
    ],
)
def test_wrong_files_are_refused_with_the_place(text: str, named: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_teams(text)
    assert named in str(refused.value), str(refused.value)


@pytest.mark.parametrize(
    "text", ["prices: -1", "prices: {L4: .nan}", "tick_ms: 0", "tick: 5", "infra_attempts: '3'"]
)
def test_wrong_pool_settings_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_pool(text)


@pytest.mark.parametrize("url", ["mysql://u:hunter2@h/d", "postgresql://u:hunter2@h", "hunter2"])
def test_a_wrong_database_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(InvalidRequest, match="database") as refused:
        parse_pool(f"database: {url}")
    assert "hunter2" not in str(refused.value)
    assert "hunter2" not in repr(parse_pool("database: postgresql://u:hunter2@h/d"))


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot read"):
        load_teams(tmp_path / "none.yaml")
