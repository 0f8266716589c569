"""How `make test` divides the test modules between its workers."""

from __future__ import annotations

from pathlib import Path

from halves import LONGEST, RAY, chosen

WAITING = ["tests/unit/test_a.py", "tests/ray/test_b.py", "tests/e2e/test_c.py", "tests/ray/test_d.py"]


def test_each_side_takes_its_own_modules_in_their_order() -> None:
    assert chosen(WAITING, with_ray=True) == "tests/ray/test_b.py"
    assert chosen(WAITING, with_ray=False) == "tests/unit/test_a.py"
    assert chosen(WAITING[1:], with_ray=False) == "tests/e2e/test_c.py"


def test_a_side_without_work_helps_the_other() -> None:
    assert chosen(["tests/ray/test_b.py", "tests/ray/test_d.py"], with_ray=False) == "tests/ray/test_b.py"
    assert chosen(["tests/unit/test_a.py"], with_ray=True) == "tests/unit/test_a.py"


def test_what_takes_minutes_is_begun_first() -> None:
    waiting = [
        *WAITING,
        "tests/ray/test_soak.py",
        "tests/ray/test_preemption.py",
        "tests/unit/test_preemption.py",
    ]
    assert chosen(waiting, with_ray=True) == "tests/ray/test_preemption.py"
    assert chosen(waiting[:5], with_ray=True) == "tests/ray/test_soak.py"
    assert chosen(waiting, with_ray=False) == "tests/unit/test_a.py"


def test_the_modules_that_take_minutes_are_there(root: Path) -> None:
    assert all((root / f"{RAY}test_{one}.py").exists() for one in LONGEST)
