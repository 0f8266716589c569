"""Backfill by counting devices of one node, as plainly as it can be said: what the planner is compared with."""

from __future__ import annotations

from dataclasses import dataclass

FOREVER = 2**62


@dataclass(frozen=True)
class Held:
    gpus: int
    ends: int


@dataclass(frozen=True)
class Wants:
    gpus: int
    runs: int
    """0 = has no limit."""


def backfill(
    devices: int, held: list[Held], jobs: list[Wants], now: int, reservations: int
) -> tuple[list[int], dict[int, int]]:
    """(who starts now, time of each reservation by job), jobs in order. Whose end is FOREVER gives nothing back."""
    busy = [(now, max(one.ends, now), one.gpus) for one in held]  # (from, to, how many)
    in_use = sum(one.gpus for one in held)  # who is late ends now, by what is known, but is still there
    starts: list[int] = []
    reserved: dict[int, int] = {}
    for at, job in enumerate(jobs):

        def fits(begin: int, job: Wants = job) -> bool:
            end = begin + job.runs if job.runs else FOREVER
            moments = [begin, *(b for b, _, _ in busy if begin < b < end)]
            return all(sum(g for b, e, g in busy if b <= m < e) + job.gpus <= devices for m in moments)

        if fits(now) and in_use + job.gpus <= devices:
            busy.append((now, now + job.runs if job.runs else FOREVER, job.gpus))
            in_use += job.gpus
            starts.append(at)
        elif len(reserved) < reservations:
            begin = next((t for t in sorted({e for _, e, _ in busy if e < FOREVER}) if fits(t)), None)
            if begin is not None:
                reserved[at] = begin
                busy.append((begin, begin + job.runs if job.runs else FOREVER, job.gpus))
    return starts, reserved
