"""Break the code on purpose, one line at a time: the named test must notice.

    make mutate                          every entry of tests/mutations.yaml
    python tests/mutate.py --only ID     one of them (may be given again)
    python tests/mutate.py --baseline    no mutation: does each named test pass as it stands?

For each entry the tree is copied, the line is changed in the copy, and the copy's own test runs with the copy's
sources first on the path, also in the processes it starts. The test must pass on the unchanged copy and fail
(pytest's exit code 1, not a broken import or a test not found) on the changed one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import processes
import yaml

ROOT = Path(__file__).resolve().parents[1]
ENTRIES = ROOT / "tests" / "mutations.yaml"
FIELDS = {"id", "rows", "file", "old", "new", "test"}
PASSED, FAILED = 0, 1  # pytest's exit codes; every other one means that the test did not run


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """`old`, found exactly once in `file`, becomes `new`; `test` (a pytest node id) must then fail."""

    id: str
    rows: tuple[str, ...]
    file: str
    old: str
    new: str
    test: str

    def apply(self, tree: Path) -> None:
        """Change the copy. ValueError when the entry no longer fits the code."""
        path = tree / self.file
        text = path.read_text()
        if (times := text.count(self.old)) != 1:
            raise ValueError(f"{self.file} has the old text {times} times, not once")
        path.write_text(text.replace(self.old, self.new))
        if path.suffix == ".py":
            compile(path.read_text(), self.file, "exec")


def read(path: Path = ENTRIES) -> list[Mutation]:
    """The entries. ValueError names the one that is malformed."""
    found: dict[str, Mutation] = {}
    raw: list[dict[str, Any]] = yaml.safe_load(path.read_text()) or []
    for number, entry in enumerate(raw, start=1):
        name = entry.get("id", f"entry {number}")
        if set(entry) != FIELDS:
            raise ValueError(f"{name}: has {sorted(entry)}, needs exactly {sorted(FIELDS)}")
        mutation = Mutation(**{**entry, "rows": tuple(entry["rows"])})
        if "\n" in mutation.old + mutation.new or mutation.old == mutation.new or mutation.id in found:
            raise ValueError(f"{name}: one changed line, and an id of its own")
        found[mutation.id] = mutation
    return list(found.values())


def copy_tree(root: Path, to: Path) -> None:
    """Copy what git would commit from the working tree, links as links."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    to.mkdir(parents=True)
    for name in filter(None, listed.split("\0")):
        source, target = root / name, to / name
        if not source.is_symlink() and not source.exists():
            continue  # deleted in the working tree, not yet in the index
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)


def environment(tree: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(tree / "src"),
        "PYTHONSAFEPATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def run_test(tree: Path, test: str, timeout: float) -> tuple[int, str]:
    """(exit code, output) of one test of the copy; a hang counts as a failure, and its processes end with it."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "", test]
    mark = processes.new_mark()
    with subprocess.Popen(
        command,
        cwd=tree,
        env={**environment(tree), processes.VARIABLE: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as child:
        try:
            output, _ = child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            processes.end(mark)  # before reading on: what the test started may hold the pipe open
            output, _ = child.communicate()
            return FAILED, output + f"\nstill running after {timeout:g} s"
    processes.end(mark)
    return child.returncode, output


def imports_the_copy(tree: Path) -> bool:
    """Whether `import moorage` in the copy's environment is the copy's."""
    code = "import moorage.scheduling as m; print(m.__file__)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=tree, env=environment(tree), capture_output=True, text=True, check=False
    )
    return Path(done.stdout.strip() or "/").is_relative_to(tree.resolve())


def judge(mutation: Mutation, *, mutate: bool, timeout: float) -> tuple[str, str]:
    """(verdict, detail) of one entry: killed, SURVIVED or BROKEN; passes or FAILS for a baseline."""
    with tempfile.TemporaryDirectory(prefix="mo-") as name:
        tree = Path(name) / "tree"
        copy_tree(ROOT, tree)
        if not imports_the_copy(tree):
            return "BROKEN", "the copy's sources are not what is imported"
        if mutate:
            try:
                mutation.apply(tree)
            except (OSError, ValueError, SyntaxError) as error:
                return "BROKEN", str(error)
        code, output = run_test(tree, mutation.test, timeout)
    tail = "\n".join(output.strip().splitlines()[-15:])
    if code not in (PASSED, FAILED):
        return "BROKEN", f"pytest's exit code {code}\n{tail}"
    if mutate:
        return ("killed", "") if code == FAILED else ("SURVIVED", f"{mutation.test} did not notice")
    return ("passes", "") if code == PASSED else ("FAILS", tail)


def table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="mutate one line, expect one test to fail")
    parser.add_argument("--only", action="append", metavar="ID", help="this entry alone; may be given again")
    parser.add_argument("--baseline", action="store_true", help="only run the named tests, nothing changed")
    parser.add_argument(
        "--mutants", action="store_true", help="only the changed runs: the tests are known to pass"
    )
    parser.add_argument("--timeout", type=float, default=420.0, metavar="SECONDS", help="for each test")
    options = parser.parse_args(arguments)
    entries = read()
    if unknown := set(options.only or ()) - {m.id for m in entries}:
        print(f"no entry {', '.join(sorted(unknown))} in {ENTRIES.relative_to(ROOT)}", file=sys.stderr)
        return 2
    rows, good = [("id", "rows", "verdict", "seconds", "test")], True
    steps = [False] if options.baseline else [True] if options.mutants else [False, True]
    for mutation in (m for m in entries if not options.only or m.id in options.only):
        started, verdict = time.monotonic(), ""
        for mutate in steps:
            verdict, detail = judge(mutation, mutate=mutate, timeout=options.timeout)
            if detail:
                print(f"{mutation.id}: {verdict}: {detail}", file=sys.stderr, flush=True)
            if verdict not in ("killed", "passes"):
                good = False
                break
        seconds = f"{time.monotonic() - started:.1f}"
        rows.append((mutation.id, " ".join(mutation.rows), verdict, seconds, mutation.test))
        print(f"{verdict:9} {mutation.id}", flush=True)
    print(f"\n{table(rows)}")
    return 0 if good and len(rows) > 1 else 1


if __name__ == "__main__":
    raise SystemExit(main())
