"""The registry on a real MLflow database: versions, gate, aliases, rollback, tampering (T5, T6)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from moorage.errors import Conflict, InvalidRequest, MoorageError, NotFound
from moorage.runtime.commands.models import models
from moorage.runtime.registry import Holdout, Registry, sealed
from moorage.runtime.registry.artifact import save_model

GOOD, BETTER, WORSE = 0.48, 0.45, 0.55


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """One database for the module: creating its schema takes seconds. Each test uses a model name of its own."""
    yield Registry(tmp_path_factory.mktemp("data"))


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return f"m{abs(hash(request.node.nodeid)) % 10**12}"


def holdout(log_loss: float) -> Holdout:
    return Holdout(rows_id="july", log_loss=log_loss, auc=0.8, majority_log_loss=0.63)


def add(registry: Registry, name: str, value: float, folder: Path) -> int:
    save_model(folder / str(value), {"w": torch.full((3,), value)}, {"value": value})
    made = registry.register(
        name,
        folder / str(value),
        metrics={"log_loss": value, "auc": 0.8},
        data_version="v001",
        code_version="sha256:abc",
    )
    return made.version


def crown(registry: Registry, name: str, value: float, folder: Path) -> int:
    version = add(registry, name, value, folder)
    assert registry.gate(name, version, holdout(value)).passed
    registry.promote(name, version)
    return version


def test_a_version_keeps_what_it_was_made_from(
    registry: Registry, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOORAGE_JOB_ID", "job-7")
    monkeypatch.setenv("MOORAGE_TEAM", "ops")
    version = registry.version(name, add(registry, name, GOOD, tmp_path))
    assert version.data_version == "v001" and version.code_version == "sha256:abc"
    assert version.metrics == {"log_loss": GOOD, "auc": 0.8}
    assert version.lineage == {"job": "job-7", "team": "ops"}
    freeze = registry.artifacts / "environments" / version.environment / "environment.json"
    assert json.loads(freeze.read_text())["packages"]["torch"] == torch.__version__
    assert version.path.name == version.sha256 and version.gate is None and version.aliases == ()


def test_only_a_passed_gate_lets_the_champion_change(registry: Registry, name: str, tmp_path: Path) -> None:
    first = add(registry, name, GOOD, tmp_path)
    with pytest.raises(Conflict) as undecided:
        registry.promote(name, first)
    assert undecided.value.code == "gate-missing"
    registry.gate(name, first, holdout(GOOD))
    registry.promote(name, first)

    worse = add(registry, name, WORSE, tmp_path)
    decision = registry.gate(name, worse, holdout(WORSE))
    assert not decision.passed and decision.against == str(first)
    with pytest.raises(Conflict) as refused:
        registry.promote(name, worse)
    assert refused.value.code == "gate-refused" and "champion" in str(refused.value)
    assert registry.aliases(name) == {"champion": first}
    tags = registry.client.get_model_version(name, str(worse)).tags
    assert tags["moorage.gate.passed"] == "false" and "0.55000" in tags["moorage.gate.reasons"]


def test_promotion_keeps_the_previous_and_rollback_returns_to_it(
    registry: Registry, name: str, tmp_path: Path
) -> None:
    first, second = crown(registry, name, GOOD, tmp_path), crown(registry, name, BETTER, tmp_path)
    assert registry.aliases(name) == {"champion": second, "previous": first}
    registry.promote(name, second)  # again: nothing changes
    assert registry.aliases(name) == {"champion": second, "previous": first}
    assert registry.rollback(name, "late alarms").version == first
    assert registry.aliases(name) == {"champion": first}
    assert "late alarms" in registry.client.get_model_version(name, str(second)).tags["moorage.rolled_back"]
    with pytest.raises(Conflict) as none:
        registry.rollback(name)
    assert none.value.code == "no-previous"
    with pytest.raises(Conflict) as void:  # what failed in production does not return on its old decision
        registry.promote(name, second)
    assert void.value.code == "gate-missing"
    assert registry.gate(name, second, holdout(BETTER)).passed
    assert registry.promote(name, second).version == second


def test_a_decision_against_yesterdays_champion_is_stale(
    registry: Registry, name: str, tmp_path: Path
) -> None:
    early = add(registry, name, 0.47, tmp_path)
    assert registry.gate(name, early, holdout(0.47)).passed
    crown(registry, name, BETTER, tmp_path)
    with pytest.raises(Conflict) as stale:
        registry.promote(name, early)
    assert stale.value.code == "gate-stale"


def test_resolve_gives_a_verified_directory(registry: Registry, name: str, tmp_path: Path) -> None:
    version = crown(registry, name, GOOD, tmp_path)
    found = registry.resolve(f"models:/{name}@champion")
    assert found.version == version and found.data_version == "v001"
    assert found == registry.resolve(f"models:/{name}/{version}")
    assert sealed.verify(found.path).sha256 == found.sha256


@pytest.mark.parametrize("how", ["flip", "reseal"])
def test_a_tampered_artifact_is_neither_resolved_nor_promoted(
    registry: Registry, name: str, tmp_path: Path, how: str
) -> None:
    """Even when the manifest is rewritten to fit: the registry remembers its digest."""
    version = add(registry, name, 0.4 if how == "flip" else 0.41, tmp_path)
    registry.gate(name, version, holdout(0.4))
    path = registry.version(name, version).path
    if how == "flip":
        (path / "model.json").write_text('{"value": 1}')
    else:
        save_model(path, {"w": torch.zeros(3)}, {"value": "mine"})
    for attempt in (
        lambda: registry.resolve(f"models:/{name}/{version}"),
        lambda: registry.promote(name, version),
    ):
        with pytest.raises(sealed.Damaged):
            attempt()


@pytest.mark.parametrize(
    "uri", ["models:/x", "models:/../../etc@champion", "flights", "models:/a b@c", "models:/x@"]
)
def test_a_malformed_uri_is_refused(registry: Registry, uri: str) -> None:
    with pytest.raises(InvalidRequest):
        registry.resolve(uri)


def test_what_is_not_there_is_not_found(registry: Registry, name: str, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        registry.resolve("models:/nobody@champion")
    add(registry, name, GOOD, tmp_path)
    with pytest.raises(NotFound, match="none yet"):
        registry.resolve(f"models:/{name}@champion")
    with pytest.raises(NotFound):
        registry.version(name, 99)


@pytest.mark.parametrize("bad", ["", "a/b", "../x", "a'b", "x" * 65, "a b"])
def test_a_model_name_cannot_be_a_path(registry: Registry, bad: str) -> None:
    with pytest.raises(InvalidRequest):
        registry.versions(bad)


def test_a_run_keeps_parameters_and_metrics_and_how_it_ended(registry: Registry) -> None:
    with registry.track("one", experiment="tests", params={"lr": 0.1}) as run:
        for step in range(2500):
            run.metrics({"loss": 1 / (step + 1), "odd": float("nan")}, step=step)
    found = registry.client.get_run(run.run_id)
    assert found.info.status == "FINISHED" and found.data.params == {"lr": "0.1"}
    assert len(registry.client.get_metric_history(run.run_id, "loss")) == 2500
    assert "odd" not in found.data.metrics
    with pytest.raises(ZeroDivisionError), registry.track("two", experiment="tests", params={}) as failed:
        raise ZeroDivisionError
    assert registry.client.get_run(failed.run_id).info.status == "FAILED"


def test_two_processes_may_open_a_new_database_at_once(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import sys
        from moorage.runtime.registry import Registry
        with Registry(sys.argv[1]).track(sys.argv[2], experiment="race", params={}):
            pass
    """)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), who], stderr=subprocess.PIPE, text=True
        )
        for who in ("a", "b")
    ]
    errors = [racer.communicate(timeout=120)[1] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0], errors
    client = Registry(tmp_path).client
    runs = client.search_runs([client.get_experiment_by_name("race").experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["a", "b"]


def test_importing_the_registry_does_not_import_mlflow() -> None:
    code = "import sys, moorage.runtime.registry.store, moorage.runtime.commands.models; print('mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert done.stdout == "False\n", done.stderr


def test_the_command_lists_shows_and_promotes(registry: Registry, name: str, tmp_path: Path) -> None:
    version = crown(registry, name, GOOD, tmp_path)
    add(registry, name, WORSE, tmp_path)
    data = ["--data", str(registry.data)]
    runner = CliRunner()
    listed = runner.invoke(models, ["list", name, *data], catch_exceptions=False).output
    assert "champion" in listed and "undecided" in listed
    shown = json.loads(
        runner.invoke(models, ["show", f"{name}@champion", "--json", *data], catch_exceptions=False).output
    )
    assert shown["version"] == version and shown["gate"]["passed"] is True
    assert (
        "verified"
        in runner.invoke(models, ["show", f"{name}/{version}", *data], catch_exceptions=False).output
    )
    refused = runner.invoke(models, ["promote", f"{name}/2", *data])
    assert isinstance(refused.exception, MoorageError) and refused.exception.code == "gate-missing"


def test_listing_an_empty_home_creates_nothing(tmp_path: Path) -> None:
    output = CliRunner().invoke(models, ["list", "--data", str(tmp_path)], catch_exceptions=False).output
    assert output.startswith("No models") and list(tmp_path.iterdir()) == []


def test_figures_of_a_champion_that_was_replaced_meanwhile_decide_nothing(
    registry: Registry, name: str, tmp_path: Path
) -> None:
    """T6: two jobs register at once; the slower one must not pass on figures of the champion before."""
    before = crown(registry, name, GOOD, tmp_path)
    crown(registry, name, BETTER, tmp_path)
    slow = add(registry, name, GOOD - 0.01, tmp_path)
    with pytest.raises(Conflict) as stale:
        registry.gate(name, slow, holdout(GOOD - 0.01), champion=holdout(GOOD), measured=before)
    assert stale.value.code == "gate-stale"
    assert registry.version(name, slow).gate is None
