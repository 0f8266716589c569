"""The frame of every benchmark: one way to measure beside a peer, to print it, and to say whether a target holds.

    python benchmarks/NAME.py [--quick] [--json]     one of them
    python benchmarks/_frame.py [--quick] [--json]   all of them: `make bench`

A benchmark is a file `NAME.py` with a function `measure(quick: bool) -> list[Figure]` that ends in

    if __name__ == "__main__":
        raise SystemExit(main(measure, "what is measured, in one line"))
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of a benchmark.

    `metric` names its unit (`requests/s`, `p99 ms`). `better` says which way is good. With a peer, `target` is the
    least ratio; without one (`peer=None`) it is a bound on `ours` itself; None claims nothing. `peer_name` says what
    the peer is and its version, or why there is none.
    """

    metric: str
    ours: float
    better: Literal["higher", "lower"]
    peer: float | None = None
    peer_name: str = ""
    target: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many times better ours is than the peer's, whichever way is better: above 1 is better, 1 the same."""
        if self.peer is None:
            return None
        over, under = (self.ours, self.peer) if self.better == "higher" else (self.peer, self.ours)
        return over / under if under else math.inf

    @property
    def holds(self) -> bool | None:
        """Whether the target is met; None when none is claimed. A figure that is not a number meets nothing."""
        if self.target is None:
            return None
        if self.ratio is not None:
            return self.ratio >= self.target
        return self.ours >= self.target if self.better == "higher" else self.ours <= self.target

    def as_json(self) -> dict[str, Any]:
        """The seven keys that readers of `--json` rely on."""
        return {
            "metric": self.metric,
            "ours": _finite(self.ours),
            "peer": _finite(self.peer),
            "peer_name": self.peer_name,
            "ratio": _finite(self.ratio),
            "target": self.target,
            "holds": self.holds,
        }


def _finite(value: float | None) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if value is not None and math.isfinite(value) else None


def interleaved(
    ours: Callable[[], float], peer: Callable[[], float], rounds: int, *, warm: int = 1
) -> tuple[float, float]:
    """Medians of two measurements taken in turn, so that what else the machine does falls on both.

    `warm` rounds go first and are not counted. Each callable returns its own figure (a rate, a latency).
    """
    for _ in range(warm):
        ours(), peer()
    pairs = [(ours(), peer()) for _ in range(rounds)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def best_seconds(work: Callable[[], object], repeats: int) -> float:
    """The least wall time of `repeats` runs, in seconds: for work whose only noise is other work."""
    least = math.inf
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - started)
    return least


def percentile(values: Iterable[float], percent: float) -> float:
    """The nearest-rank percentile: a value that was measured, not one between two. NaN of nothing."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def machine() -> str:
    """Cores, processor, memory, Python: what a figure means nothing without."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cores} cores of {model}, {memory:.0f} GiB, Python {platform.python_version()}"


def _show(value: float | bool | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(figures: Sequence[dict[str, Any]]) -> str:
    """The figures in columns, `holds` last."""
    keys = ("metric", "ours", "peer", "ratio", "target", "holds", "peer_name")
    rows = [keys, *(tuple(f[k] if isinstance(f[k], str) else _show(f[k]) for k in keys) for f in figures)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(keys))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i in (0, 6) else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _options(about: str, arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument(
        "--quick", action="store_true", help="seconds, for a smoke test: the figures are rough"
    )
    parser.add_argument("--json", action="store_true", help="a JSON list, nothing else on standard output")
    return parser.parse_args(arguments)


def main(measure: Callable[[bool], list[Figure]], about: str, arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark's command line. 1 when a claimed target does not hold; a quick run claims nothing."""
    options = _options(about, arguments)
    if options.json:
        # What libraries print must not land in the JSON: their standard output becomes standard error.
        saved = os.dup(1)
        os.dup2(2, 1)
        try:
            figures = [figure.as_json() for figure in measure(options.quick)]
        finally:
            sys.stdout.flush()
            os.dup2(saved, 1)
            os.close(saved)
        print(json.dumps(figures, indent=2))
    else:
        print(f"{about}\n{date.today()}, {machine()}{', quick' if options.quick else ''}\n")
        figures = [figure.as_json() for figure in measure(options.quick)]
        print(table(figures))
    return 0 if options.quick or all(figure["holds"] is not False for figure in figures) else 1


def run_all(arguments: Sequence[str] | None = None) -> int:
    """Run each benchmark in a process of its own. 1 when one crashed or a claimed target does not hold."""
    options = _options("every benchmark of this folder", arguments)
    figures: list[dict[str, Any]] = []
    crashed: list[str] = []
    for script in sorted(HERE.glob("[!_]*.py")):
        started = time.monotonic()
        command = [sys.executable, str(script), "--json", *(["--quick"] if options.quick else [])]
        # Each may write notes of its progress to standard error; the answer is standard output alone.
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        try:
            found = json.loads(done.stdout)
        except json.JSONDecodeError:
            crashed.append(f"{script.name} (exit code {done.returncode})")
            continue
        figures += [{**figure, "metric": f"{script.stem}: {figure['metric']}"} for figure in found]
        print(f"{script.stem}: {len(found)} figures in {time.monotonic() - started:.0f} s", file=sys.stderr)
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        print(f"{date.today()}, {machine()}{', quick' if options.quick else ''}\n")
        print(table(figures))
    if crashed:
        print(f"no answer from: {', '.join(crashed)}", file=sys.stderr)
    missed = [f["metric"] for f in figures if f["holds"] is False]
    return 1 if crashed or (missed and not options.quick) else 0


if __name__ == "__main__":
    raise SystemExit(run_all())
