"""The picture of an inference surge: figures and lines come from the run's own events (V4)."""

from __future__ import annotations

from typing import Any

import pytest

from moorage.runtime.telemetry.surge import Story, draw

S = 10**9


def event(seq: int, at_s: float, kind: str, job: str, lease: str = "", **payload: Any) -> dict[str, Any]:
    return {
        "seq": seq,
        "kind": kind,
        "wall_ns": round((1000 + at_s) * S),
        "job_id": job,
        "lease_id": lease,
        "payload": payload,
    }


def scaled(seq: int, at_s: float, wanted: int, serving: int, draining: int = 0) -> dict[str, Any]:
    counts = {"serving": serving, "starting": 0, "unhealthy": 0, "draining": draining}
    return event(seq, at_s, "endpoint.scaled", "e", wanted=wanted, **counts)


RUN: dict[str, Any] = {
    "endpoint": "e",
    "training": "t",
    "marks": {"surge": 1020.0, "calm": 1060.0, "end": 1100.0},
    "events": [
        event(12, 62, "lease.released", "e", "l-3"),  # of another job's page: not in order
        event(1, 0, "lease.granted", "e", "l-1", milli_gpu=1000),
        scaled(2, 5, 1, 1),
        event(3, 6, "lease.granted", "t", "l-2", milli_gpu=3000),
        event(4, 7, "job.running", "t"),
        scaled(5, 23, 2, 1),
        event(6, 24, "preemption.notice", "t"),
        event(7, 25, "preemption.checkpointed", "t"),
        event(8, 30, "lease.released", "t", "l-2"),
        event(9, 31, "lease.granted", "e", "l-3", milli_gpu=1000),
        scaled(10, 40, 2, 2),
        scaled(11, 61, 1, 1, draining=1),
        event(13, 63, "lease.granted", "t", "l-4", milli_gpu=3000),
        event(14, 66, "job.running", "t"),
        event(15, 90, "lease.resized", "t", "l-4", milli_gpu=2000),
    ],
    "requests": [(1010.0, 0.1, 200), (1025.0, 4.0, 200), (1050.0, 0.2, 200), (1070.0, 0.1, 503)],
}


def test_gpus_follow_the_leases() -> None:
    story = Story.of(RUN)
    assert story.gpus["serving"] == [(0, 0), (0, 1), (31, 2), (62, 1)]
    assert story.gpus["training"] == [(0, 0), (6, 3), (30, 0), (63, 3), (90, 2)]
    assert story.replicas == [(5, 1), (23, 1), (40, 2), (61, 1)] and story.notices == [24]


def test_figures_are_counted_from_the_surge_and_from_its_end() -> None:
    found = Story.of(RUN).figures()
    assert found["after_surge_s"] == {
        "wanted": 3.0,
        "notice": 4.0,
        "checkpointed": 5.0,
        "released": 10.0,
        "granted": 11.0,
        "serving": 20.0,
        "all": 20.0,
    }
    assert found["after_calm_s"] == {"drained": 1.0, "back": 2.0, "resumed": 6.0}
    assert (found["requests"], found["failed"]) == (4, 1)
    assert found["latency_ms"]["surge"] == {"p50": 4000.0, "p99": 4000.0}
    assert found["latency_ms"]["all replicas"] == {"p50": 200.0, "p99": 200.0}


@pytest.mark.parametrize("width", [860.0, 350.0])
def test_the_picture_says_what_failed_and_is_spoken(width: float) -> None:
    picture = draw(Story.of(RUN), width=width)
    assert "Requests a second (1 of 4 failed)" in picture
    assert "the first new replica serves 20.0 s after it began" in picture
    assert f'viewBox="0 0 {width:g} ' in picture and "notice" in picture
