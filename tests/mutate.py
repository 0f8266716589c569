"""Break the code on purpose, one line at a time: the named test must notice.

    make mutate                          every entry of tests/mutations.yaml
    python tests/mutate.py --only ID     one of them (may be given again)
    python tests/mutate.py --baseline    no mutation: does each named test pass as it stands?

The tree is copied once. In the copy all named tests must pass as it stands; then, entry by entry, the line is changed,
the entry's own test runs with the copy's sources first on the path, also in the processes it starts, and the line is
put back. The test must fail (pytest's exit code 1, not a broken import or a test not found).

Where a kernel is changed, kernels run as plain Python (NUMBA_DISABLE_JIT): to compile it, and all that calls it, would
take a minute. Everywhere else they run compiled, once for all entries.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import processes
import yaml

ROOT = Path(__file__).resolve().parents[1]
COMPILED = Path("kernels", "__pycache__")
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

    @property
    def plain(self) -> bool:
        """Its test runs without compiled kernels."""
        return self.file.startswith("kernels/")

    @contextlib.contextmanager
    def applied(self, tree: Path) -> Iterator[None]:
        """The copy with the line changed, for a while. ValueError when the entry no longer fits the code."""
        path = tree / self.file
        text, stamp = path.read_text(), path.stat()
        if (times := text.count(self.old)) != 1:
            raise ValueError(f"{self.file} has the old text {times} times, not once")
        changed = text.replace(self.old, self.new)
        if path.suffix == ".py":
            compile(changed, self.file, "exec")
        path.write_text(changed)
        try:
            yield
        finally:
            path.write_text(text)
            os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # compiled kernels are known by it


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
    """Copy what git would commit from the working tree, links as links, and the compiled kernels."""
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
    if (root / COMPILED).is_dir():
        shutil.copytree(root / COMPILED, to / COMPILED, ignore=shutil.ignore_patterns("*.pyc"))


def environment(tree: Path, *, plain: bool = False) -> dict[str, str]:
    found = {
        **os.environ,
        "PYTHONPATH": str(tree / "src"),
        "PYTHONSAFEPATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return found | {"NUMBA_DISABLE_JIT": "1"} if plain else found


def run_tests(
    tree: Path, tests: Sequence[str], timeout: float, *, plain: bool, stop: bool
) -> tuple[int, str]:
    """(exit code, output) of tests of the copy; a hang counts as a failure, and its processes end with it."""
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider", "-m", ""]
    mark = processes.new_mark()
    with subprocess.Popen(
        [*command, *(["-x"] if stop else []), *tests],
        cwd=tree,
        env={**environment(tree, plain=plain), processes.VARIABLE: mark},
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


def baseline(tree: Path, entries: Sequence[Mutation], timeout: float) -> dict[str, str]:
    """What is wrong, by test (and "plain " before it where kernels ran as Python), with nothing changed."""
    wrong: dict[str, str] = {}
    for plain in (False, True):
        tests = sorted({m.test for m in entries if m.plain is plain})
        if not tests:
            continue
        code, output = run_tests(tree, tests, timeout * len(tests), plain=plain, stop=False)
        if code == PASSED:
            continue
        said = "\n".join(output.strip().splitlines()[-40:])
        named = [test for test in tests if f" {test}" in output and code == FAILED]
        for test in named or tests:
            wrong[name_of(test, plain)] = said
    return wrong


def name_of(test: str, plain: bool) -> str:
    return f"plain {test}" if plain else test


def judge(tree: Path, mutation: Mutation, timeout: float) -> tuple[str, str]:
    """(verdict, detail) of one entry: killed, SURVIVED or BROKEN."""
    try:
        with mutation.applied(tree):
            code, output = run_tests(tree, [mutation.test], timeout, plain=mutation.plain, stop=True)
    except (OSError, ValueError, SyntaxError) as error:
        return "BROKEN", str(error)
    if code not in (PASSED, FAILED):
        tail = "\n".join(output.strip().splitlines()[-15:])
        return "BROKEN", f"pytest's exit code {code}\n{tail}"
    return ("killed", "") if code == FAILED else ("SURVIVED", f"{mutation.test} did not notice")


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
    chosen = [m for m in entries if not options.only or m.id in options.only]
    rows = [("id", "rows", "verdict", "seconds", "test")]
    with tempfile.TemporaryDirectory(prefix="mo-") as name:
        tree = Path(name) / "tree"
        copy_tree(ROOT, tree)
        if not imports_the_copy(tree):
            print("the copy's sources are not what is imported", file=sys.stderr)
            return 1
        wrong = {} if options.mutants else baseline(tree, chosen, options.timeout)
        for mutation in chosen:
            started = time.monotonic()
            verdict, detail = "passes", wrong.get(name_of(mutation.test, mutation.plain), "")
            if detail:
                verdict = "FAILS"
            elif not options.baseline:
                verdict, detail = judge(tree, mutation, options.timeout)
            if detail:
                print(f"{mutation.id}: {verdict}: {detail}", file=sys.stderr, flush=True)
            seconds = f"{time.monotonic() - started:.1f}"
            rows.append((mutation.id, " ".join(mutation.rows), verdict, seconds, mutation.test))
            print(f"{verdict:9} {mutation.id}", flush=True)
    print(f"\n{table(rows)}")
    counts = Counter(row[2] for row in rows[1:])
    print(
        f"\n{len(rows) - 1} entries: " + ", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items()))
    )
    return 0 if set(counts) <= {"killed", "passes"} and counts else 1


if __name__ == "__main__":
    raise SystemExit(main())
