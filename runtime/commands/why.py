"""`moorage why`: the rule that holds a job back, what would start it now, and when it starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from moorage.runtime.commands import shared


@click.command(
    epilog="\b\nExamples:\n  moorage why raysubmit_4LamXRuQpYdSMg7J\n  moorage why JOB --as research --json"
)
@click.argument("job_id", metavar="JOB")
@shared.pool_options
def why(job_id: str, home: Path | None, principal: str, as_json: bool) -> None:
    """Say why JOB waits, which smallest changes would start it now, and when it starts by the ends of running jobs.

    Each change was tried on a copy of the pool and planned again. Of a job that does not wait: what it holds, or how it
    ended.
    """
    with shared.connect(home, principal) as client:
        found = client.why(job_id)
    if as_json:
        shared.print_json(found)
        return
    for line in told(found):
        click.echo(line)


def told(found: Mapping[str, Any]) -> list[str]:
    """The answer of the route as lines for people."""
    explanation = found["explanation"]
    lines = [f"{found['job_id']} ({found['team']}) is {found['state']}: {_state(found)}"]
    if explanation:
        lines += _explained(found, explanation)
    elif found["state"] == "PENDING" and (found["reason"] or {}).get("code") != "leaving":
        lines.append("Nothing holds it back: it starts with the next scheduling round.")
    lines += [line for ask in found.get("asks", []) for line in _asked(ask)]
    for lease in found["holds"]:
        end = "its end is not known (no max_runtime)"
        if lease["ends_ns"] is not None:
            end = f"ends by {shared.clock(lease['ends_ns'])} at the latest"
        lines.append(
            f"  holds {lease['lease']}: {shared.gpus(lease['milli_gpu'])} GPU "
            f"since {shared.clock(lease['since_ns'])}; {end}"
        )
    if not found["holds"] and found["state"] != "PENDING":
        lines.append("  holds nothing")
    for attempt in found["attempts"]:
        ran = shared.span(attempt["started_ns"], attempt["ended_ns"])
        lines.append(
            f"  attempt {attempt['attempt']}: {attempt['state']}, {ran}. {attempt['message']}".rstrip()
        )
    return lines


def _asked(ask: Mapping[str, Any]) -> list[str]:
    """What a running job waits for to grow by."""
    reason = (ask["reason"] or {}).get("text") or "waits for the next scheduling round"
    what = f"{shared.gpus(ask['workers'] * ask['milli_gpu'])} GPU"
    return [
        f"  asks for {what} more ({ask['name'] or ask['sublease']}) since {shared.clock(ask['since_ns'])}: {reason}"
    ]


def _state(found: Mapping[str, Any]) -> str:
    explanation = found["explanation"]
    if found["state"] == "PENDING" and explanation and not explanation["paused"]:
        return str(explanation["reason"]["text"])  # as of now: the message is of the last round
    if found["state"] == "RUNNING":
        return "it does not wait" + (
            ", but has asked for more room" if explanation or found.get("asks") else ""
        )
    return str(found["message"]) or "it does not wait"


def _explained(found: Mapping[str, Any], explanation: Mapping[str, Any]) -> list[str]:
    reason, lines = explanation["reason"], []
    last = (found["reason"] or {}).get("text", "")
    if (
        found["state"] == "PENDING"
        and not explanation["paused"]
        and (not last or last not in found["message"])
    ):
        lines.append(
            f"  now      {found['message']}"
        )  # Ray cannot be reached, say: then nothing starts at all
    if explanation["job"] != found["job_id"] or explanation["paused"]:
        lines.append(f"{explanation['job']} waits: {reason['text']}.")
    lines.append(f"  rule     {reason['code']}")
    for name in ("asked", "held", "allowed", "free"):
        if reason[name]:
            unit = reason["unit"] if name in ("held", "allowed") and reason.get("unit") else "GPU"
            lines.append(f"  {name:8} {shared.gpus(reason[name])} {unit}")
    if reason["holders"]:
        lines.append(f"  held by  {', '.join(reason['holders'])}")
    if explanation["suggestions"]:
        lines.append("It would start now if you did one of these (each was tried on a copy of the pool):")
        lines += [f"- {one['text']}" for one in explanation["suggestions"]]
    elif explanation["complete"]:
        lines.append(
            "No single change to the job, its team or the running jobs was found that starts it now."
        )
    lines.append(str(explanation["earliest_text"]) + _when(explanation))
    if not explanation["complete"]:
        lines.append(
            f"The search was stopped after {explanation['plans']} plans: there may be more that starts it."
        )
    return lines


def _when(explanation: Mapping[str, Any]) -> str:
    if explanation["earliest_ns"] is not None:
        return f" (at {shared.clock(explanation['earliest_ns'])}, at the latest)"
    if unknown := explanation["ends_unknown"]:
        all_held = unknown + explanation["ends_known"]
        return f" {unknown} of {all_held} leases have no known end (their jobs set no max_runtime)."
    return ""
