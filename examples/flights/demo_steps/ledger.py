"""Step 6, devices and money: who held which device when, folded from the audit record, against what was billed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from demo_steps import decisions
from demo_steps.run import Run
from demo_steps.serving import JOB as SERVED
from demo_steps.sweeping import DEEP_JOB, WIDE_JOB
from moorage.runtime.telemetry.timeline import Holding, Mark, Wait, device_seconds

STEP = "report"
SECOND = 1e9


def holdings(
    events: list[dict[str, Any]], origin_ns: int, now_ns: int, numbers: Mapping[str, int] | None = None
) -> list[Holding]:
    """Every device share that a lease held, in seconds since `origin_ns`; a lease still held ends `now_ns`. `numbers`
    are those of the decisions, by lease."""
    numbers = numbers or {}
    ends = {e["lease_id"]: e["wall_ns"] for e in events if e["kind"] == "lease.released"}
    found = []
    for event in events:
        if event["kind"] != "lease.granted":
            continue
        for task in event["payload"]["tasks"]:
            for device in task["devices"]:
                found.append(
                    Holding(
                        node=task["node"],
                        device=device,
                        team=event["team"],
                        job=event["job_id"],
                        milli_gpu=task["milli_gpu"] // len(task["devices"]),
                        start_s=(event["wall_ns"] - origin_ns) / SECOND,
                        end_s=(ends.get(event["lease_id"], now_ns) - origin_ns) / SECOND,
                        number=numbers.get(event["lease_id"], 0),
                    )
                )
    return found


def collect(demo: Run, now_ns: int, said: dict[tuple[str, str], Any]) -> None:
    """The timeline, the bill, and that both say the same."""
    events, status, bill = (
        demo.pool.events(),
        demo.pool.get("/moorage/v1/status"),
        demo.pool.get("/moorage/v1/cost"),
    )
    origin = int(demo.began * SECOND)
    decided = decisions.collect(events, said, origin)
    decisions.check(demo, decided, DEEP_JOB, WIDE_JOB)
    demo.facts["decisions"] = decided
    held = holdings(events, origin, now_ns, decisions.numbers(decided))
    drawn = device_seconds(held)
    check_bill(demo, drawn, sum(job["gpu_seconds"] for job in bill_of(bill)))
    check_releases(demo, events)
    demo.facts["timeline"] = {
        "devices": devices_of(status),
        "holdings": [
            {
                "node": h.node,
                "device": h.device,
                "team": h.team,
                "job": h.job,
                "milli_gpu": h.milli_gpu,
                "start_s": round(h.start_s, 3),
                "end_s": round(h.end_s, 3),
                "number": h.number,
            }
            for h in held
        ],
        "waits": waits(demo, origin, decided),
        "marks": marks(demo, origin),
    }
    demo.facts["cost"] = {
        "jobs": bill_of(bill),
        "teams": bill.get("teams"),
        "drawn_gpu_seconds": round(drawn, 3),
    }


def check_bill(demo: Run, drawn: float, billed: float) -> None:
    # a lease that is still held when the bill is asked for has grown a little since
    tolerance = 0.5 + 0.001 * billed
    demo.checks.expect(
        STEP,
        "billed equals leased",
        billed > 0 and abs(drawn - billed) <= tolerance,
        f"{billed:.1f} and {drawn:.1f} GPU-seconds",
        "the same, and not nothing",
    )


def check_releases(demo: Run, events: list[dict[str, Any]]) -> None:
    """Every lease that was granted has ended exactly once, and nothing else has; `--keep` leaves the endpoint's."""
    granted = Counter(e["lease_id"] for e in events if e["kind"] == "lease.granted")
    released = Counter(e["lease_id"] for e in events if e["kind"] == "lease.released")
    kept = {
        e["lease_id"] for e in events if demo.keep and e["kind"] == "lease.granted" and e["job_id"] == SERVED
    }
    open_ = sorted(set(granted) - set(released) - kept)
    odd = sorted((set(released) - set(granted)) | {lease for lease, count in released.items() if count > 1})
    twice = sorted(lease for lease, count in granted.items() if count > 1)
    expected = len(granted) - len(kept - set(released))
    measured = f"{released.total()} releases of {len(granted)} leases"
    for what, leases in (
        ("never released", open_),
        ("released twice or unknown", odd),
        ("granted twice", twice),
    ):
        measured += f"; {what}: {', '.join(map(str, leases))}" if leases else ""
    demo.checks.expect(
        STEP,
        "each lease was released once",
        bool(granted) and not (open_ or odd or twice),
        measured,
        f"{expected}, the ids that were granted",
    )


def devices_of(status: dict[str, Any]) -> list[tuple[str, int]]:
    return sorted((device["node"], device["index"]) for device in status["devices"])


def bill_of(bill: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(job) for job in bill["jobs"]]


def waits(demo: Run, origin: int, decided: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Jobs that waited for room longer than it takes to plan."""
    job = demo.pool.job(DEEP_JOB)
    granted = [
        e["wall_ns"] for e in demo.pool.events() if e["kind"] == "lease.granted" and e["job_id"] == DEEP_JOB
    ]
    if not granted:
        return []
    start, end = (job["created_ns"] - origin) / SECOND, (granted[0] - origin) / SECOND
    code = str((demo.facts["queue"].get("reason") or {}).get("code", ""))
    numbers = [d["number"] for d in decided if d["job"] == DEEP_JOB and d["decision"] == "waits"]
    return [
        {
            "team": job["team"],
            "job": DEEP_JOB,
            "start_s": round(start, 3),
            "end_s": round(end, 3),
            "reason": code,
            "number": numbers[0] if numbers else 0,
        }
    ]


def marks(demo: Run, origin: int) -> list[dict[str, Any]]:
    killed = demo.facts["train"]["killed"]
    return [{"at_s": round(killed["at"] - origin / SECOND, 3), "text": "a train worker is killed"}]


def drawn(facts: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `timeline.draw` from the facts."""
    found = facts["timeline"]
    return {
        "holdings": [Holding(**h) for h in found["holdings"]],
        "devices": [tuple(device) for device in found["devices"]],
        "waits": [Wait(**w) for w in found["waits"]],
        "marks": [Mark(**m) for m in found["marks"]],
        "names": {h["job"]: h["job"].removeprefix("flights-") for h in found["holdings"] + found["waits"]},
    }
