"""S8, G2: the audit record says by which rule each job was admitted, and for which rule it waits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from control_world import World, world

from moorage.runtime.commands.why import told
from moorage.runtime.control import deciding
from moorage.runtime.control.deciding import AGAIN_NS, Told
from moorage.runtime.frontdoor.ownapi import why_json
from moorage.scheduling.model import JobRequest, Reason, ReasonCode

TEAMS = "teams: {ops: {quota: 4, limit: 8}, research: {quota: 2, limit: 2}}"


def recorded(w: World, kind: str, job: str | None = None) -> list[dict[str, Any]]:
    found = w.service.events(w.caller("admin"), limit=1000)
    return [one["payload"] for one in found if one["kind"] == kind and job in (None, one["job_id"])]


def test_an_admission_names_its_rule(tmp_path: Path) -> None:
    with world(tmp_path, teams=TEAMS) as w:
        for job, workers in (("own", 3), ("part", 2), ("more", 1)):
            w.submit("ops", job=job, workers=workers, seconds="900")
            w.run(1)
        rules = {job: recorded(w, "lease.granted", job)[0]["rule"] for job in ("own", "part", "more")}
    assert [rule["code"] for rule in rules.values()] == ["own-quota", "borrows", "borrows"]
    assert [rule["borrowed_milli_gpu"] for rule in rules.values()] == [0, 1000, 1000]
    assert [rule["held_milli_gpu"] for rule in rules.values()] == [0, 3000, 5000]
    assert rules["own"]["text"] == "within team ops's quota of 4 GPUs: it held 0 and takes 3"
    assert rules["part"]["limit_milli_gpu"] == 8000


@pytest.mark.parametrize(
    ("gpus", "teams", "code"), [(0, TEAMS, "no-gpu"), (1, "teams: {ops: {}}", "no-quota")]
)
def test_where_no_quota_binds(tmp_path: Path, gpus: int, teams: str, code: str) -> None:
    with world(tmp_path, teams=teams) as w:
        w.submit("ops", job="j", gpus=gpus, seconds="900", cpus_per_worker="1")
        w.run(1)
        assert recorded(w, "lease.granted", "j")[0]["rule"]["code"] == code


def test_who_is_passed_over_is_counted(tmp_path: Path) -> None:
    """The older job waits for its team's limit, which is no business of the younger one."""
    with world(tmp_path, teams=TEAMS) as w:
        w.submit("research", job="hog", workers=2, seconds="900")
        w.run(1)
        w.submit("research", job="older")
        w.submit("ops", job="younger", seconds="900")
        w.run(1)
        rule = recorded(w, "lease.granted", "younger")[0]["rule"]
        assert rule["ahead_of"] == 1 and rule["text"].endswith("1 older job waits on")


def test_a_wait_is_recorded_once_with_its_figures(tmp_path: Path) -> None:
    with world(tmp_path, teams=TEAMS) as w:
        w.submit("research", job="hog", workers=2, seconds="60")
        w.run(1)
        w.submit("research", job="waits", workers=2, seconds="1")
        w.run(40)
        [said] = recorded(w, "job.waits")
        assert (said["rule"], said["bound_team"], said["holders"]) == ("team-limit", "research", ["hog"])
        assert (said["asked_milli_gpu"], said["held_milli_gpu"], said["allowed_milli_gpu"]) == (
            2000,
            2000,
            2000,
        )
        w.restart()
        assert len(recorded(w, "job.waits")) == 2, "after a restart once more"
        w.run(60)
        assert w.states("waits") == ["SUCCEEDED"] and len(recorded(w, "job.waits", "waits")) == 2


def test_a_spent_budget_is_recorded_in_its_own_unit(tmp_path: Path) -> None:
    with world(tmp_path, teams="teams: {ops: {quota: 4, budget: {gpu_hours: 0.001, per: year}}}") as w:
        w.submit("ops", job="spends", workers=4, seconds="60")
        w.run(90, step=5)
        w.submit("ops", job="waits")
        w.run(2)
        [said] = recorded(w, "job.waits", "waits")
        assert (said["rule"], said["unit"], said["budget_thousandths"]) == ("budget", "GPU-hours", 1)
        assert said["spent_thousandths"] >= 60 and "held_milli_gpu" not in said
        text = "\n".join(told(why_json(w.service.why(w.caller("ops"), "waits"), [])))
        assert "allowed  0.001 GPU-hours" in text and "raise the budget" in text


def request(name: str) -> JobRequest:
    return JobRequest(job=name, team="ops", submitted_ns=0)


def test_a_rule_that_flickers_is_recorded_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    full, behind = (Reason(code=code) for code in (ReasonCode.POOL_FULL, ReasonCode.BEHIND))
    told, job = Told(), request("a")
    assert told.news([(job, full)], 0) == [(job, full)]
    assert told.news([(job, behind)], 1) == []
    assert told.news([(job, full)], AGAIN_NS) == [], "it is what was said"
    assert told.news([(job, behind)], AGAIN_NS) == [(job, behind)]
    told.news([], AGAIN_NS)
    assert told.news([(job, behind)], AGAIN_NS) == [(job, behind)], "it waits anew"
    monkeypatch.setattr(deciding, "MOST", 2)
    crowd = [(request(f"j{n}"), full) for n in range(5)]
    rounds = [[one[0].job for one in told.news(crowd, 2 * AGAIN_NS)] for _ in range(4)]
    assert rounds == [["j0", "j1"], ["j2", "j3"], ["j4"], []]
