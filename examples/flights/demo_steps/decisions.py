"""What the scheduler decided in this run, from the audit record, and what `moorage why` said of who waited."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

import httpx

from demo_steps.run import Run

STEP = "report"
POLL_S = 0.5
SECOND = 1e9


class Watch:
    """Asks `why` once for each rule that a job waits for, while the run goes on. `with Watch(demo) as watch: ...`"""

    def __init__(self, demo: Run) -> None:
        self._demo = demo
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="why", daemon=True)
        self.said: dict[tuple[str, str], dict[str, Any]] = {}
        """(job, rule) -> the explanation."""

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.set()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while not self._ending.wait(POLL_S):
            with suppress(httpx.HTTPError):  # a question that fails is asked again
                self._ask()

    def _ask(self) -> None:
        for waiting in self._demo.pool.get("/moorage/v1/status")["queue"]:
            job, reason = waiting["job"], waiting["reason"]
            if reason and (job, reason["code"]) not in self.said:
                found = self._demo.pool.get(f"/moorage/v1/jobs/{job}/why")["explanation"]
                if found:
                    self.said[job, found["reason"]["code"]] = found


def collect(
    events: list[dict[str, Any]], said: dict[tuple[str, str], Any], origin_ns: int
) -> list[dict[str, Any]]:
    """Every admission and every wait, numbered in order of time; `at_s` is seconds since `origin_ns`."""
    found: list[dict[str, Any]] = []
    submitted = {e["job_id"]: e["wall_ns"] for e in reversed(events) if e["kind"] == "job.pending"}
    for event in events:
        if event["kind"] not in ("lease.granted", "job.waits"):
            continue
        made = _admission(event, submitted) if event["kind"] == "lease.granted" else _wait(event, said)
        at = (event["wall_ns"] - origin_ns) / SECOND
        head = {"number": len(found) + 1, "at_s": round(at, 3), "team": event["team"], "job": event["job_id"]}
        found.append({**head, **made})
    return found


def _admission(event: dict[str, Any], submitted: dict[str, int]) -> dict[str, Any]:
    payload = event["payload"]
    places = {
        f"{task['node']}/{device}" if device is not None else task["node"]
        for task in payload["tasks"]
        for device in (task["devices"] or (None,))
    }
    rule = payload.get("rule") or {}
    waited = (event["wall_ns"] - submitted.get(event["job_id"], event["wall_ns"])) / SECOND
    return {
        "decision": "grows" if payload["kind"] == "sublease" else "starts",
        "lease": event["lease_id"],
        "attempt": payload["attempt"],
        "milli_gpu": payload["milli_gpu"],
        "places": sorted(places),
        "rule": rule.get("code", ""),
        "text": rule.get("text", ""),
        "waited_s": round(waited, 3),
    }


def _wait(event: dict[str, Any], said: dict[tuple[str, str], Any]) -> dict[str, Any]:
    payload = event["payload"]
    why = said.get((event["job_id"], payload["rule"])) or {}
    return {
        "decision": "waits",
        "milli_gpu": payload["asked_milli_gpu"],
        "rule": payload["rule"],
        "text": payload["text"],
        "suggestions": [one["text"] for one in why.get("suggestions", ())],
        "earliest": why.get("earliest_text", ""),
        "plans": why.get("plans", 0),
    }


def check(demo: Run, found: list[dict[str, Any]], waiting: str, holder: str) -> None:
    """Each decision has its rule, and the job that had to wait was told what would start it: its holder's end."""
    expect = demo.checks.expect
    without = sorted({one["job"] for one in found if not one["rule"] or not one["text"]})
    expect(
        STEP,
        "each decision names its rule",
        bool(found) and not without,
        f"{len(found)} decisions" + (f"; none for {', '.join(without)}" if without else ""),
        "an admission or a wait, a rule each",
    )
    told = [text for one in found if one["job"] == waiting for text in one.get("suggestions", ())]
    named = [text for text in told if text.startswith(f"end {holder},")]
    expect(
        STEP,
        "`moorage why` told what starts the waiting job",
        bool(named),
        "; ".join(told) or "nothing",
        f"among others the end of {holder}, after which it started",
    )


def numbers(found: list[dict[str, Any]]) -> dict[str, int]:
    """Lease -> the number of the decision that granted it."""
    return {one["lease"]: one["number"] for one in found if "lease" in one}
