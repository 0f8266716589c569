"""A poison job (G6): after some attempts it is quarantined, and whoever is beside it never notices."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from control_world import world

from moorage.errors import Unavailable
from moorage.runtime.control.effects import LAUNCH_TRIES, Effects


def test_a_job_that_kills_what_runs_it_is_quarantined_and_others_run(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        poison = w.submit("ops", job="poison", seconds="0.2", exit="lost")
        others = [w.submit("ops", job=f"other-{n}", seconds="1") for n in range(4)]
        w.run(30)
        assert w.states(poison, *others) == ["QUARANTINED", *["SUCCEEDED"] * 4]
        assert [name for name in w.backend.launches if "poison" in name] == [
            "poison-1",
            "poison-2",
            "poison-3",
        ]
        assert all(w.job(job).attempt == 1 for job in others) and w.held("ops") == 0
        assert "given up after 3 attempts" in w.job(poison).message


def test_a_job_whose_start_never_succeeds_is_quarantined_once_others_got_through(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        poison = w.submit("ops", job="poison", **{"sim.poison": "yes"})
        w.run(200)
        assert w.states(poison) == ["ADMITTED"], "alone it may as well be the cluster that fails"
        others = []
        for n in range(3):
            others.append(w.submit("ops", job=f"other-{n}", seconds="1"))
            w.run(40)
        assert w.states(poison, *others) == ["QUARANTINED", *["SUCCEEDED"] * 3]
        assert w.backend.launches == [f"other-{n}-1" for n in range(3)] and w.held("ops") == 0
        text = w.job(poison).message
        assert "starts that failed while others got through" in text and int(text.split()[3]) >= LAUNCH_TRIES


def test_a_cluster_that_starts_nothing_for_a_while_quarantines_nobody(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        jobs = [w.submit("ops", job=f"job-{n}", seconds="1", **{"sim.poison": "yes"}) for n in range(3)]
        w.run(200)
        assert w.states(*jobs) == ["ADMITTED"] * 3


def test_a_start_that_the_store_refuses_is_put_off_and_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody else has that job's row for a while: no fault of the job's, and no reason for the others to wait."""
    begin, refused = Effects._begin, [True] * (LAUNCH_TRIES + 2)

    def busy(self: Effects, row: Any, *more: Any) -> Any:
        if row.job_id == "held-up" and refused and refused.pop():
            raise Unavailable("the database is busy", code="database-busy")
        return begin(self, row, *more)

    monkeypatch.setattr(Effects, "_begin", busy)
    with world(tmp_path) as w, caplog.at_level(logging.WARNING):
        held = w.submit("ops", job="held-up", seconds="1")
        others = [w.submit("ops", job=f"other-{n}", seconds="1") for n in range(3)]
        w.run(10)
        assert w.states(held, *others) == ["ADMITTED", *["SUCCEEDED"] * 3]
        assert not +w.service.loop._effects.failures and "is put off" in caplog.text
        w.run(400)
        assert w.states(held) == ["SUCCEEDED"] and w.backend.launches.count("held-up-1") == 1
    assert "Traceback" not in caplog.text
