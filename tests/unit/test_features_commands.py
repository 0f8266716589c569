"""D4: the catalogue on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from moorage.errors import DataError, NotFound
from moorage.runtime.commands.features import features
from moorage.runtime.features.versions import DatasetVersion, commit, staging


@pytest.fixture
def version(tmp_path: Path) -> DatasetVersion:
    with staging(tmp_path, "trips") as draft:
        (draft / "part-train-0.parquet").write_bytes(b"x")
        book = {
            "in": 3,
            "good": 2,
            "quarantined": 1,
            "reasons": {"id: missing": 1},
            "excluded": {"cancelled": 1},
        }
        lineage = {
            "job_id": "j-1",
            "team": "ops",
            "created": "2013-01-01",
            "sources": [],
            "code": {"moorage": "0", "files": {}},
        }
        return commit(
            draft,
            "trips",
            {"rows": {"train": 1}, "features": ["x"], "accounts": {"a": book}, "lineage": lineage},
        )


def run(*arguments: str) -> str:
    done = CliRunner().invoke(features, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_list_and_show(version: DatasetVersion, tmp_path: Path) -> None:
    root = ("--root", str(tmp_path))
    listed = json.loads(run("list", "--json", *root))
    assert [(v["view"], v["version"], v["rows"], v["quarantined"], v["job_id"]) for v in listed] == [
        ("trips", "v001", 1, 1, "j-1")
    ]
    assert "trips" in run("list", *root) and json.loads(run("list", "none", "--json", *root)) == []
    shown = json.loads(run("show", "trips", "--json", *root))
    assert shown["digest"] == version.digest and shown["path"] == str(version.path)
    text = run("show", "trips", "v001", "--verify", *root)
    assert "1 x id: missing" in text and "team ops" in text and "verified" in text


def test_refusals(version: DatasetVersion, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        run("show", "nothing", "--root", str(tmp_path))
    (version.path / "part-train-0.parquet").write_bytes(b"y")
    with pytest.raises(DataError, match="differs"):
        run("show", "trips", "--verify", "--root", str(tmp_path))


def test_the_data_folder_of_a_job_is_the_default(
    version: DatasetVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "features").symlink_to(tmp_path, target_is_directory=True)
    monkeypatch.setenv("MOORAGE_DATA", str(tmp_path))
    assert json.loads(run("show", "trips", "--json"))["version"] == "v001"
