"""SIGKILL at every commit point (G6): nothing lost, nothing started twice, judged by the cluster's own journal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from control_child import SCENES, scene_of

from moorage.runtime.control import failpoints


def lives(root: Path, folder: Path, *arguments: str, timeout: float) -> dict[str, dict[str, Any]]:
    """What tests/control_child.py found."""
    done = subprocess.run(
        [sys.executable, "-P", str(root / "tests" / "control_child.py"), str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={
            key: value
            for key, value in os.environ.items()
            if key == "MOORAGE_TEST_DATABASE" or not key.startswith("MOORAGE_")
        },
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def judge(name: str, scene: str, seen: dict[str, Any]) -> None:
    """What is true of two lives of a scene, whichever commit the first one died at."""
    assert seen["killed_by"] == signal.SIGKILL, f"{name} was never reached: {seen}"
    assert seen["back_s"] < 10, f"{name}: back after {seen['back_s']:.1f} s"
    assert seen["second"] == 0, f"{name}: {seen['error']}"
    assert seen["held"] == 0, f"{name}: a lease was left"
    match scene:
        case "lend":
            assert seen["launches"] == ["lent-1", "lent-2", "own-1"], f"{name}: {seen}"
            assert seen["stops"] == ["lent-1", "lent-2"], f"{name}: {seen}"
            assert seen["states"] == {"lent": "STOPPED", "own": "SUCCEEDED"}, name
            assert seen["notices"] == 1, f"{name}: told twice"
        case "resize":
            assert seen["launches"] == ["lent-1", "own-1"], f"{name}: {seen}"
            assert seen["stops"] == ["lent-1"], f"{name}: its user's: {seen}"
            assert (seen["asks"], seen["resizes"]) == (1, 3), f"{name}: asked once; larger, smaller, larger"
        case "keep":
            assert seen["launches"] == ["short-1"] and seen["kept"] == [1, 1, 1], f"{name}: each once: {seen}"
            assert seen["drained"] == ["node-1"], name
        case "intrude":
            assert seen["launches"] == ["short-1"], f"{name}: {seen}"
            assert seen["guard"] == ["guard.warned", "guard.stopping", "guard.stopped"], f"{name}: told once"
            assert set(seen["ended"]) == {"rogue"}, f"{name}: the guard ended what it found, and nothing else"
        case "work":
            assert seen["launches"] == ["gang-1", "grower-1", "short-1", "stopped-1"], f"{name}: {seen}"
            ended = {"short": "SUCCEEDED", "gang": "SUCCEEDED", "stopped": "STOPPED", "grower": "STOPPED"}
            assert seen["states"] == ended, name


def test_every_commit_point_survives_a_sigkill(tmp_path: Path, root: Path) -> None:
    found = lives(root, tmp_path, *failpoints.NAMES, timeout=230)
    assert set(found) == set(failpoints.NAMES)
    for name, seen in found.items():
        judge(name, scene_of(name), seen)
        if scene_of(name) == "keep":
            drained = name in ("drain.after-commit", "delete.before-commit", "delete.after-commit")
            applied = 1 if name == "quota.before-commit" else 2
            assert seen["found"] == {"version": applied, "drained": ["node-1"] * drained}, f"{name}: {seen}"
    longest = max(seen["back_s"] for seen in found.values())
    print(
        f"SIGKILL at {len(found)} commit points: 0 jobs lost, 0 started twice, open again in at most {longest:.2f} s"
    )
    assert found["submit.before-commit"]["survived"] == []
    assert found["submit.after-commit"]["survived"] == ["short"], (
        "acknowledged or not, what is committed is there"
    )


@pytest.mark.soak
def test_so_does_every_single_commit_of_a_whole_run(tmp_path: Path, root: Path) -> None:
    """Not by name: whatever the five scenes commit, the first time and each time after."""
    found = lives(root, tmp_path, "--every", *SCENES, timeout=3000)
    ends = [name for name, seen in found.items() if seen["killed_by"] is None]
    assert len(ends) == 2 * len(SCENES), "each scene was counted to its end"
    for name, seen in found.items():
        if name in ends:
            assert not seen["error"], f"{name}: undisturbed it must pass: {seen}"
        else:
            judge(name, name.partition("/")[0], seen)
    longest = max(seen["back_s"] for name, seen in found.items() if name not in ends)
    print(
        f"SIGKILL around {len(found) - len(ends)} commits: 0 jobs lost, 0 started twice, open again in at most"
        f" {longest:.2f} s"
    )


def test_names_in_the_code_are_those_of_the_list(root: Path) -> None:
    used: set[str] = set()
    for source in (root / "runtime" / "control").glob("*.py"):
        text = source.read_text(encoding="utf-8")
        used |= set(re.findall(r'failpoints\.hit\("([^"]+)"\)', text))
        for pair in re.findall(r'\.change\("([^"]+)"\)', text):
            used |= {f"{pair}.before-commit", f"{pair}.after-commit"}
    assert used == {*failpoints.NAMES, *failpoints.EVERY}


def test_a_misspelt_failpoint_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"submit\.before-commit"):
        failpoints.arm("sumbit.before-commit:kill")
