"""SIGKILL at every commit point (G6): nothing lost, nothing started twice, judged by the cluster's own journal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from moorage.runtime.control import failpoints


def test_every_commit_point_survives_a_sigkill(tmp_path: Path, root: Path) -> None:
    script = root / "tests" / "control_child.py"
    done = subprocess.run(
        [sys.executable, "-P", str(script), str(tmp_path), *failpoints.NAMES],
        capture_output=True,
        text=True,
        timeout=230,
        env={
            key: value
            for key, value in os.environ.items()
            if key == "MOORAGE_TEST_DATABASE" or not key.startswith("MOORAGE_")
        },
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == set(failpoints.NAMES)
    for name, seen in found.items():
        assert seen["killed_by"] == signal.SIGKILL, f"{name} was never reached: {seen}"
        assert seen["second"] == 0, f"{name}: {seen['error']}"
        assert seen["held"] == 0, f"{name}: a lease was left"
        if name.startswith(("preempt.", "promise.")):
            assert seen["launches"] == ["lent-1", "lent-2", "own-1"], f"{name}: {seen}"
            assert seen["stops"] == ["lent-1", "lent-2"], f"{name}: {seen}"
            assert seen["states"] == {"lent": "STOPPED", "own": "SUCCEEDED"}, name
            assert seen["notices"] == 1, f"{name}: told twice"
            continue
        if name.startswith("guard."):
            assert seen["launches"] == ["short-1"], f"{name}: {seen}"
            assert seen["guard"] == ["guard.warned", "guard.stopping", "guard.stopped"], f"{name}: told once"
            assert set(seen["ended"]) == {"rogue"}, f"{name}: the guard ended what it found, and nothing else"
            continue
        assert seen["launches"] == ["gang-1", "grower-1", "short-1", "stopped-1"], f"{name}: {seen}"
        states = dict(seen["states"])
        if name == "sublease.before-commit":  # nothing of the ask was written, and nothing is held for it
            assert seen["held"] == 0
        assert states == {
            "short": "SUCCEEDED",
            "gang": "SUCCEEDED",
            "stopped": "STOPPED",
            "grower": "STOPPED",
        }, name
    assert found["submit.before-commit"]["survived"] == []
    assert found["submit.after-commit"]["survived"] == ["short"], (
        "acknowledged or not, what is committed is there"
    )


def test_names_in_the_code_are_those_of_the_list(root: Path) -> None:
    used: set[str] = set()
    for source in (root / "runtime" / "control").glob("*.py"):
        text = source.read_text(encoding="utf-8")
        used |= set(re.findall(r'failpoints\.hit\("([^"]+)"\)', text))
        for pair in re.findall(r'\.change\("([^"]+)"\)', text):
            used |= {f"{pair}.before-commit", f"{pair}.after-commit"}
    assert used == set(failpoints.NAMES)


def test_a_misspelt_failpoint_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"submit\.before-commit"):
        failpoints.arm("sumbit.before-commit:kill")
