"""docs/simulate.md and the pictures of the rules: the example runs, the pictures are what their script draws."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from moorage.cli import cli
from moorage.runtime.commands.simulate import openb, philly

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "simulate.md").read_text()


def test_the_first_run_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```bash\n(cat > nodes.*?)```", PAGE, re.DOTALL)
    files = re.findall(r"cat > (\S+) <<END\n(.*?)END\n", block, re.DOTALL)
    assert len(files) == 2
    for name, content in files:
        (tmp_path / name).write_text(content)
    command = shlex.split(block.splitlines()[-1])
    assert command[:2] == ["moorage", "simulate"]
    done = CliRunner().invoke(cli, command[1:], catch_exceptions=False)
    assert done.exit_code == 0 and "5 jobs on 3 nodes" in done.output and "Left out" not in done.output


def test_every_option_the_guide_names_is_there() -> None:
    known = {option for command in (openb, philly) for one in command.params for option in one.opts}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", PAGE)) <= known


def test_the_pictures_of_the_rules_are_current() -> None:
    drawn = runpy.run_path(str(ROOT / "docs" / "draw_scheduling.py"))["render"]()
    folder = ROOT / "docs" / "img" / "scheduling"
    assert {path.name: path.read_text() for path in folder.glob("*.svg")} == drawn, (
        "run: python docs/draw_scheduling.py"
    )
    for content in drawn.values():
        ElementTree.fromstring(content)
