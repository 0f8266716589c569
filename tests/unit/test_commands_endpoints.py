"""`moorage endpoints`: how an endpoint is told to people (V4 S8)."""

from __future__ import annotations

from typing import Any

from moorage.runtime.commands.endpoints import told

PLAIN: dict[str, Any] = {
    "name": "flights",
    "team": "ops",
    "live": True,
    "job_id": "j-1",
    "path": "/endpoints/flights/",
    "scaling": None,
}


def replica(number: int, state: str) -> dict[str, Any]:
    return {
        "app": f"ops-flights-r{number}",
        "route": f"/ops-flights-r{number}",
        "lease_id": f"l-{number}",
        "node": "node-0",
        "devices": [number] if number else [],
        "state": state,
    }


def test_one_application_is_one_line() -> None:
    assert told(PLAIN) == ["flights (ops), live, job j-1, /endpoints/flights/"]
    assert "its job has ended" in told({**PLAIN, "live": False})[0]


def test_replicas_load_and_what_waits() -> None:
    reason = {"text": "training leaves for it"}
    scaling = {
        "min_replicas": 1,
        "max_replicas": 4,
        "wanted": 3,
        "replicas": [replica(0, "SERVING"), replica(2, "STARTING")],
        "load": {"ongoing": 21.5, "target_ongoing": 8, "latency_ms": 120, "target_latency_ms": 100},
        "waits": [{"since_ns": None, "reason": reason}, {"since_ns": None, "reason": None}],
        "note": "the limit of team ops",
    }
    lines = told({**PLAIN, "scaling": scaling})
    assert lines[1] == (
        "  1 replicas serve; 3 wanted (1 to 4); 21.5 rows in flight, 8 per replica is the target; "
        "p95 120 ms (target 100 ms)"
    )
    assert lines[2:4] == [
        "  SERVING   ops-flights-r0 on node-0, lease l-0",
        "  STARTING  ops-flights-r2 on node-0/2, lease l-2",
    ]
    assert lines[4].endswith("training leaves for it") and lines[5].endswith("scheduling round")
    assert lines[6] == "  no more are asked for: the limit of team ops"
    assert "rows in flight" not in told({**PLAIN, "scaling": {**scaling, "load": {}}})[1]
