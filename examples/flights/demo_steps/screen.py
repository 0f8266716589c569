"""Live progress: a compact table on a terminal, one plain line per change elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

MARKS = {"waiting": "·", "running": "▶", "queued": "⏸", "done": "✓", "failed": "✗"}
STYLES = {"waiting": "dim", "running": "cyan", "queued": "yellow", "done": "green", "failed": "bold red"}


@dataclass
class Row:
    """One step. `began` and `ended` are monotonic seconds."""

    name: str
    team: str = ""
    state: str = "waiting"
    text: str = ""
    began: float | None = None
    ended: float | None = None
    history: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float | None:
        if self.began is None:
            return None
        return (self.ended if self.ended is not None else time.monotonic()) - self.began


class Screen:
    """The rows and how they are shown. A context manager; every method may be called from any thread."""

    def __init__(self, steps: list[tuple[str, str]], stream: TextIO | None = None) -> None:
        self.rows = {name: Row(name, team) for name, team in steps}
        self._lock, self._began = threading.Lock(), time.monotonic()
        # soft_wrap keeps rich from reflowing plain lines to a guessed width
        self.console = Console(file=stream or sys.stdout, highlight=False, soft_wrap=True)
        live = self.console.is_terminal and not self.console.is_dumb_terminal
        self._live = (
            Live(get_renderable=self._table, console=self.console, refresh_per_second=4) if live else None
        )

    def __enter__(self) -> Screen:
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*raised)

    def start(self, name: str, text: str = "") -> None:
        with self._lock:
            self.rows[name].began = self.rows[name].began or time.monotonic()
        self._set(name, "running", text)

    def queued(self, name: str, text: str) -> None:
        with self._lock:
            self.rows[name].began = self.rows[name].began or time.monotonic()
        self._set(name, "queued", text)

    def say(self, name: str, text: str) -> None:
        """A job's latest line: shown live, not printed line by line."""
        with self._lock:
            self.rows[name].text = text

    def done(self, name: str, text: str) -> None:
        self._end(name, "done", text)

    def fail(self, name: str, text: str) -> None:
        self._end(name, "failed", text)

    def seconds(self) -> dict[str, float]:
        """How long each step that has begun took."""
        return {row.name: round(row.seconds, 2) for row in self.rows.values() if row.seconds is not None}

    def print(self, *objects: Any, markup: bool = True) -> None:
        self.console.print(*objects, markup=markup)

    def _end(self, name: str, state: str, text: str) -> None:
        with self._lock:
            self.rows[name].ended = time.monotonic()
        self._set(name, state, text)

    def _set(self, name: str, state: str, text: str) -> None:
        with self._lock:
            row = self.rows[name]
            row.state, row.text = state, text or row.text
            seconds = row.seconds or 0.0
        if self._live is None:
            at = time.monotonic() - self._began
            took = f" ({seconds:.1f} s)" if row.ended is not None else ""
            plain = Text(f"[{at:6.1f} s] {MARKS[state]} {name}: {state}{took}  {text}".rstrip())
            self.console.print(plain)

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=True, header_style="dim", expand=False)
        table.add_column("", width=1)
        table.add_column("step", no_wrap=True)
        table.add_column("team", no_wrap=True, style="dim")
        table.add_column("time", justify="right", no_wrap=True)
        table.add_column("", no_wrap=True, overflow="ellipsis", max_width=max(20, self.console.width - 42))
        with self._lock:
            for row in self.rows.values():
                took = "" if row.seconds is None else f"{row.seconds:.0f} s"
                style = STYLES[row.state]
                table.add_row(
                    Text(MARKS[row.state], style),
                    Text(row.name, style),
                    row.team,
                    took,
                    Text(row.text, "dim"),
                )
        total = time.monotonic() - self._began
        table.caption = f"{int(total) // 60}:{int(total) % 60:02d} elapsed"
        table.caption_justify = "left"
        return table
