"""What the control plane tells Prometheus, and that boards and docs name nothing else (L2)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from control_world import world
from door_world import door
from prometheus_client.parser import text_string_to_metric_families

from moorage.cluster.backend import BackendUnavailable
from moorage.configs.pool import PoolSettings
from moorage.runtime.control.measures import CATALOG, Distribution, Tally
from moorage.runtime.telemetry import boards

DOCS = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
_SUFFIX = re.compile(r"_(bucket|count|sum)$")


def scraped(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Sample name -> labels -> value."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def read(pool: Any) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    with pool.client() as client:
        client.status()
        return scraped(client.metrics())


def test_what_is_exported_is_what_is_promised(tmp_path: Path) -> None:
    """The catalogue, /metrics of a running control plane, docs/metrics.md and the boards' PromQL name the same."""
    with door(tmp_path) as pool:
        pool.pool.submit("ops", job="runs", gpus=1, workers=2, seconds="900")
        pool.pool.submit("ops", job="waits", gpus=1, workers=6)
        pool.pool.run(3)
        found = read(pool)
    exported = {_SUFFIX.sub("", name) for name in found if not name.endswith("_created")}
    assert exported == set(CATALOG)
    told = set(re.findall(r"^\| `(moorage_\w+)`", DOCS.read_text(encoding="utf-8"), re.MULTILINE))
    assert told == set(CATALOG)
    asked = {
        name
        for uid in boards.BOARDS
        for panel in boards.board(uid)["panels"]
        for target in panel["targets"]
        for name in re.findall(r"\bmoorage_\w+", target["expr"])
    }
    assert asked and asked <= set(found), "a panel asks for what nobody exports"
    labels = {name: {key for one in values for key, _ in one} for name, values in found.items()}
    for uid in boards.BOARDS:
        for panel in boards.board(uid)["panels"]:
            for target in panel["targets"]:
                used = set(re.findall(r"{{(\w+)}}", target["legendFormat"])) - {"instance"}
                (first, *_) = re.findall(r"\bmoorage_\w+", target["expr"])
                assert used <= labels[first], (panel["title"], used)


def test_the_figures_are_those_of_the_pool(tmp_path: Path) -> None:
    """8 GPUs; ops has quota 4, limit 6."""
    with door(tmp_path) as pool:
        pool.pool.submit("ops", job="runs", gpus=1, workers=5, seconds="900")
        pool.pool.run(2)
        pool.pool.submit("ops", job="waits", gpus=1, workers=2)
        pool.pool.run(2)
        found = read(pool)
    ops = (("team", "ops"),)
    assert found["moorage_pool_gpus"][()] == 8 and found["moorage_pool_gpus_free"][()] == 3
    assert [found[f"moorage_team_gpus_{what}"][ops] for what in ("held", "quota", "limit", "borrowed")] == [
        5,
        4,
        6,
        1,
    ]
    assert found["moorage_queue_jobs"] == {(("reason", "team-limit"),): 1}
    assert found["moorage_team_jobs_waiting"][ops] == 1
    assert found["moorage_nodes"] == {
        (("state", state),): n for state, n in (("up", 2), ("down", 0), ("drained", 0))
    }
    assert found["moorage_job_wait_seconds_count"][()] == 1, "the one that waits is not in it yet"
    assert found["moorage_plan_seconds_count"][()] >= 2 <= found["moorage_tick_seconds_count"][()]
    assert found["moorage_events_total"][(("kind", "lease.granted"),)] == 1
    assert found["moorage_leader"][()] == 1 and found["moorage_leader_generation"][()] >= 1


def test_waits_count_from_when_a_job_began_to_wait_and_go_on_over_a_restart(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        w.submit("ops", job="first", gpus=1, workers=6, seconds="20")
        w.run(1)
        w.submit("ops", job="second", gpus=1, workers=6, seconds="900")
        w.run(30)
        before = w.service.metrics()["moorage_job_wait_seconds"][()]
        assert isinstance(before, Distribution)
        assert sum(before.counts) == 2 and 15 < before.total < 30, "the second waited for the first"
        fresh = Tally()
        with w.service.store.read() as db:
            fresh.advance(db)
            fresh.advance(db)
        assert fresh.waits == before, "folded from the events, once each"


def test_effects_that_fail_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with world(tmp_path, settings=PoolSettings()) as w:

        def fails(launch: object) -> None:
            raise BackendUnavailable("no answer")

        with monkeypatch.context() as patch:
            patch.setattr(w.backend, "launch", fails)
            w.submit("ops", job="stuck", gpus=1)
            w.run(3)
            found = w.service.metrics()
            assert found["moorage_effects_open"][(("kind", "launch"),)] == 1
            assert found["moorage_effect_failures_total"][(("kind", "launch"),)] >= 1  # type: ignore[operator]
        w.run(60)
        assert set(w.service.metrics()["moorage_effects_open"].values()) == {0.0}


def test_a_distribution_counts_up_to_its_bounds() -> None:
    one = Distribution((1.0, 5.0))
    for value in (0.5, 1.0, 4.0, 50.0):
        one.add(value)
    assert one.cumulative() == [("1.0", 2.0), ("5.0", 3.0), ("+Inf", 4.0)] and one.total == 55.5


@pytest.mark.parametrize("uid", boards.BOARDS)
def test_a_board_is_what_grafana_reads(uid: str) -> None:
    board = json.loads(json.dumps(boards.board(uid)))
    assert board["uid"] == uid and board["schemaVersion"] == 39
    assert [panel["id"] for panel in board["panels"]] == list(range(1, len(board["panels"]) + 1))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells
        assert panel["type"] in ("timeseries", "stat") and panel["targets"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_the_command_writes_what_both_programs_read(tmp_path: Path) -> None:
    with door(tmp_path) as pool:
        out, session = tmp_path / "watch", tmp_path / "session"
        session.mkdir()
        token = tmp_path / "tokens" / "admin.token"
        arguments = (
            "metrics",
            str(out),
            "--token-file",
            str(token),
            "--ray-session",
            str(session),
            "--into-ray",
        )
        said = pool.json(*arguments)
        assert len(said["files"]) == 7
        config = yaml.safe_load((out / "prometheus.yml").read_text())
        ours, ray = config["scrape_configs"]
        assert ours["static_configs"] == [{"targets": [pool.url.removeprefix("http://")]}]
        assert ours["authorization"] == {"credentials_file": str(token)}
        assert ray["file_sd_configs"] == [{"files": [str(session / "prom_metrics_service_discovery.json")]}]
        for name in boards.BOARDS:
            for folder in (out / "grafana/dashboards", session / "metrics/grafana/dashboards"):
                assert json.loads((folder / f"{name}.json").read_text())["uid"] == name
        assert token.read_text().strip() not in (out / "prometheus.yml").read_text()
        refused = pool.run("metrics", str(out), "--token-file", str(tmp_path / "none"), ok=False)
        assert "no-token-file" in str(refused.exception)
