"""What the other tests and the benchmarks stand on: waiting, mutations, figures."""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import mutate
import processes
import pytest
from waiting import holds, until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def frame() -> ModuleType:
    spec = importlib.util.spec_from_file_location("_frame", ROOT / "benchmarks" / "_frame.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["_frame"] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


def test_until_returns_what_became_true() -> None:
    answers = iter(["", "", "ready"])
    assert until(lambda: next(answers), 5, "an answer", every=0) == "ready"


def test_until_says_what_it_waited_for_and_what_it_saw() -> None:
    with pytest.raises(AssertionError, match=r"waited 0 s for a free device; the last answer was \[\]"):
        until(list, 0, "a free device")


def test_holds_notices_a_change() -> None:
    answers = iter([True, True, False])
    with pytest.raises(AssertionError, match="one holder"):
        holds(lambda: next(answers), 5, "one holder", every=0)


@pytest.mark.parametrize(
    ("figure", "ratio", "holds"),
    [
        ({"ours": 300.0, "peer": 100.0, "better": "higher", "target": 2.0}, 3.0, True),
        ({"ours": 300.0, "peer": 100.0, "better": "lower", "target": 0.5}, 1 / 3, False),
        ({"ours": 2.0, "peer": 6.0, "better": "lower", "target": 3.0}, 3.0, True),
        ({"ours": 9.0, "better": "lower", "target": 10.0}, None, True),
        ({"ours": 9.0, "better": "higher", "target": 10.0}, None, False),
        ({"ours": 9.0, "peer": 3.0, "better": "higher"}, 3.0, None),
        ({"ours": math.nan, "peer": 3.0, "better": "higher", "target": 1.0}, None, False),
    ],
)
def test_a_ratio_above_one_is_better_whichever_way_is(
    frame: ModuleType, figure: dict[str, object], ratio: float | None, holds: bool | None
) -> None:
    answer = frame.Figure(metric="m", **figure).as_json()
    assert answer["holds"] is holds
    assert answer["ratio"] == (None if ratio is None else pytest.approx(ratio))


def test_json_is_the_answer_and_nothing_else(frame: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    """What a library prints, from C too, does not land in what a program reads."""

    def measure(quick: bool) -> list[object]:
        os.write(1, b"noise\n")
        return [frame.Figure(metric="m", ours=1.0, better="higher", target=2.0)]

    assert frame.main(measure, "about", ["--json"]) == 1
    assert frame.main(measure, "about", ["--json", "--quick"]) == 0
    out, err = capfd.readouterr()
    decoder = json.JSONDecoder()
    first, end = decoder.raw_decode(out)
    assert list(first[0]) == ["metric", "ours", "peer", "peer_name", "ratio", "target", "holds"]
    assert "noise" not in out and err.count("noise") == 2 and out[end:].strip()


def test_percentiles_are_values_that_were_measured(frame: ModuleType) -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [frame.percentile(values, p) for p in (0, 50, 95, 100)] == [1.0, 3.0, 5.0, 5.0]
    assert math.isnan(frame.percentile([], 50))


@pytest.mark.parametrize("mutation", mutate.read(), ids=lambda m: m.id)
def test_each_mutation_still_fits_the_code(mutation: mutate.Mutation, tmp_path: Path) -> None:
    """The old line is there once, the mutant compiles, and the test it names exists."""
    copy = tmp_path / mutation.file
    copy.parent.mkdir(parents=True)
    copy.write_text((ROOT / mutation.file).read_text())
    before = copy.read_text(), copy.stat().st_mtime_ns
    with mutation.applied(tmp_path):
        assert copy.read_text() != before[0]
    assert (copy.read_text(), copy.stat().st_mtime_ns) == before, "and it is put back as it was"
    path, *names = mutation.test.split("::")
    body: list[ast.stmt] = ast.parse((ROOT / path).read_text()).body
    for name in names:
        named = {
            node.name: node
            for node in body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        }
        bare = name.partition("[")[0]
        assert bare in named, f"{path} has no {bare}"
        body = named[bare].body


def test_a_mutation_that_no_longer_fits_is_refused(tmp_path: Path) -> None:
    entry = mutate.Mutation(id="x", rows=("S2",), file="f.py", old="a", new="b", test="t")
    (tmp_path / "f.py").write_text("a = a\n")
    with pytest.raises(ValueError, match="2 times"), entry.applied(tmp_path):
        pass


def test_a_malformed_entry_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("- {id: quota, rows: [S2], file: f.py, old: a, new: a, test: t}\n")
    with pytest.raises(ValueError, match="quota"):
        mutate.read(tmp_path / "m.yaml")


def test_a_copy_of_the_tree_keeps_its_links(tmp_path: Path) -> None:
    mutate.copy_tree(ROOT, tmp_path / "copy")
    link = tmp_path / "copy" / "src" / "moorage" / "scheduling"
    assert link.is_symlink() and link.resolve() == (tmp_path / "copy" / "scheduling").resolve()
    assert not (tmp_path / "copy" / ".venv").exists()


def test_a_process_in_a_session_of_its_own_is_found_and_ended() -> None:
    mark = processes.new_mark()
    environment = {**os.environ, processes.VARIABLE: mark}
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=environment, start_new_session=True
    )
    try:
        until(lambda: processes.marked(mark), 10, "the child's environment")
        assert processes.wait_gone(mark, timeout=0)[0].startswith(f"{child.pid} ")
        processes.end(mark)
        assert processes.wait_gone(mark, timeout=5) == []
    finally:
        child.kill()
        child.communicate()
