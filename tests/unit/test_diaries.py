"""The soak's verdict on what jobs wrote can fail. (G6)"""

from __future__ import annotations

from pathlib import Path

import pytest
from diaries import Job, Line, complaints, read


def lines(*said: tuple[str, int, float]) -> list[Line]:
    return [Line(word, attempt, at, 7) for word, attempt, at in said]


WHOLE = lines(("start", 1, 1), ("beat", 1, 2), ("end", 1, 3))


def test_a_job_that_ran_once_and_one_that_was_killed_and_ran_again_are_fine() -> None:
    again = lines(("start", 1, 1), ("beat", 1, 2), ("start", 2, 5), ("end", 2, 6))
    jobs = [Job("a", ["SUCCEEDED"], "SUCCEEDED"), Job("b", ["SUCCEEDED"], "SUCCEEDED", excused=1)]
    assert complaints([*jobs, Job("c", ["STOPPED"], "STOPPED")], {"a": WHOLE, "b": again}) == []


@pytest.mark.parametrize(
    ("job", "written", "word"),
    [
        (Job("a", ["SUCCEEDED"], ""), WHOLE, "lost"),
        (Job("a", ["SUCCEEDED"], "FAILED"), WHOLE, "lost"),
        (Job("a", ["SUCCEEDED"], "SUCCEEDED"), WHOLE[:2], "lost"),
        (Job("a", ["SUCCEEDED"], "SUCCEEDED"), [*WHOLE, *lines(("start", 1, 4))], "twice"),
        (Job("a", ["SUCCEEDED"], "SUCCEEDED"), [*WHOLE, *lines(("start", 2, 4))], "twice"),
        (
            Job("a", ["SUCCEEDED"], "SUCCEEDED", excused=1),
            lines(("start", 1, 1), ("start", 2, 5), ("beat", 1, 5.5), ("end", 2, 7)),
            "together",
        ),
        (Job("b", ["STOPPED"], "STOPPED"), WHOLE, "unknown"),
    ],
    ids=["gone", "failed", "never ended", "one attempt twice", "a needless attempt", "together", "unknown"],
)
def test_what_must_never_be_is_said(job: Job, written: list[Line], word: str) -> None:
    (found,) = complaints([job], {"a": written})
    assert found.startswith(word), found


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "job"
    assert read(file) == []
    file.write_text("start 1 12.5 99\nbeat 1 13")
    assert read(file) == [Line("start", 1, 12.5, 99)]
