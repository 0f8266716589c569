"""`moorage simulate serving`: a file in, a placement out, and clear errors for what is wrong in the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from moorage.cli import cli
from moorage.errors import InvalidRequest

FILE = """
devices: [{count: 2, mib: 40000}]
models:
  chat: {mib: 16000, service_ms: 25, rate: 8, target_ms: 200, burst_scv: 4}
  embed: {mib: 3000, service_ms: 4, rate: 60, target_ms: 40}
"""


def run(tmp_path: Path, text: str, *more: str) -> Result:
    path = tmp_path / "models.yaml"
    path.write_text(text)
    return CliRunner().invoke(
        cli, ["simulate", "serving", str(path), "--seconds", "20", "--seeds", "1", *more]
    )


def test_the_placement_and_what_it_attains(tmp_path: Path) -> None:
    found = json.loads(run(tmp_path, FILE, "--json").output)
    assert {r["model"] for r in found["replicas"]} == {"chat", "embed"}
    assert found["devices"] == 2 and found["devices_used"] in (1, 2) and found["unplaced"] == []
    assert 0.9 < found["attained_simulated"] <= 1 and 0.9 < found["attained_predicted"] <= 1
    assert json.loads(run(tmp_path, FILE, "--json").output) == found, "the same file, the same answer"
    shown = run(tmp_path, FILE).output
    assert "2 models on" in shown and "embed" in shown


def test_what_fits_nowhere_is_named(tmp_path: Path) -> None:
    shown = run(tmp_path, FILE.replace("16000", "50000")).output
    assert "not placed: chat: needs 50000 MiB" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (FILE.replace("rate: 8", "rate: -8"), "rate"),
        (FILE.replace("rate: 8", "rate: .nan"), "rate"),
        (FILE.replace("service_ms: 25, ", ""), "service_ms"),
        (FILE.replace("burst_scv", "bursts"), "bursts"),
        (FILE.replace("count: 2", "count: 0"), "count"),
        (FILE.replace("count: 2", "count: 200") + "\n  # ok\n", None),
        ("devices: []\nmodels: {}", "devices"),
        ("models: 3", "models"),
        ("- a", "mapping"),
        (FILE + "most_load: 1.5\n", "most_load"),
        ("a: [", "YAML"),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path: Path, text: str, names: str | None) -> None:
    done = run(tmp_path, text, "--json")
    if names is None:
        assert done.exception is None
        return
    assert isinstance(done.exception, InvalidRequest)
    assert names in str(done.exception)


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "1e9"])
def test_the_time_has_bounds(tmp_path: Path, seconds: str) -> None:
    done = run(tmp_path, FILE, "--seconds", seconds)
    assert isinstance(done.exception, InvalidRequest) and done.exception.code == "bad-seconds"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["simulate", "serving", str(tmp_path / "none.yaml")])
    assert isinstance(done.exception, InvalidRequest) and done.exception.code == "unreadable-file"
