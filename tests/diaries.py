"""What the jobs of a soak wrote about themselves, and what follows from it. Pure: lines in, complaints out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Line:
    """`word` is start, beat or end; `at` Unix time in seconds; `parent` the pid of Ray's supervisor of the attempt."""

    word: str
    attempt: int
    at: float
    parent: int


def read(path: Path) -> list[Line]:
    """A job's own file; [] when it never ran. A last line that a kill cut short is left out."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    found = []
    for line in text[: text.rfind("\n") + 1].splitlines():
        word, attempt, at, parent = line.split()
        found.append(Line(word, int(attempt), float(at), int(parent)))
    return found


@dataclass(frozen=True)
class Job:
    """One acknowledged job: the state that it had to come to, the one it has, and how many attempts it may have had."""

    name: str
    wanted: Sequence[str]
    state: str
    excused: int = 0
    """Attempts that were taken from it by a kill, a preemption or its own failure: so many more starts are right."""


def complaints(jobs: Iterable[Job], written: Mapping[str, Sequence[Line]]) -> list[str]:
    """What must never be: a job lost, an attempt started twice, two attempts at the same time, a start that nothing
    called for, a job called finished that did not finish. And files of jobs that nobody acknowledged."""
    found, names = [], set()
    for job in jobs:
        names.add(job.name)
        lines = written.get(job.name, ())
        if job.state not in job.wanted:
            found.append(f"lost: {job.name} is {job.state or 'unknown'}, not {' or '.join(job.wanted)}")
        if job.state == "SUCCEEDED" and not any(line.word == "end" for line in lines):
            found.append(f"lost: {job.name} is called SUCCEEDED and never ended")
        found += _starts(job, lines)
        found += _together(job.name, lines)
    found += [f"unknown: {name} ran and was never acknowledged" for name in sorted(set(written) - names)]
    return found


def _starts(job: Job, lines: Sequence[Line]) -> list[str]:
    starts = Counter(line.attempt for line in lines if line.word == "start")
    found = [
        f"twice: attempt {n} of {job.name} started {count} times" for n, count in starts.items() if count > 1
    ]
    if len(starts) > 1 + job.excused:
        found.append(f"twice: {job.name} ran {len(starts)} attempts, {1 + job.excused} at most were right")
    return found


def _together(name: str, lines: Sequence[Line]) -> list[str]:
    """An attempt that still wrote when a later one had begun."""
    last: dict[int, float] = defaultdict(float)
    for line in lines:
        last[line.attempt] = max(last[line.attempt], line.at)
    return [
        f"together: attempt {other} of {name} wrote {last[other] - line.at:.1f} s after attempt {line.attempt} began"
        for line in lines
        if line.word == "start"
        for other in last
        if other < line.attempt and last[other] > line.at
    ]
