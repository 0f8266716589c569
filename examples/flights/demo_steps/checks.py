"""Named checks with what was measured: the demo succeeds only if each of them held."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, field
from typing import Any


class StepFailed(Exception):
    """A step cannot go on. `log` is the file that tells why and `lines` its end."""

    def __init__(self, step: str, what: str, log: str = "", lines: tuple[str, ...] = ()) -> None:
        super().__init__(f"{step}: {what}")
        self.step, self.what, self.log, self.lines = step, what, log, lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """`wanted` says in words what `measured` had to be."""

    step: str
    name: str
    held: bool
    measured: str
    wanted: str


@dataclass
class Checks:
    """All checks of a run, in the order they were made. Steps run in threads: appending is guarded."""

    made: list[Check] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def expect(self, step: str, name: str, held: bool, measured: Any, wanted: str) -> bool:
        check = Check(step=step, name=name, held=bool(held), measured=str(measured), wanted=wanted)
        with self._lock:
            self.made.append(check)
        return check.held

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.made if not check.held]

    @property
    def all_held(self) -> bool:
        return bool(self.made) and not self.failed

    def as_json(self) -> list[dict[str, Any]]:
        return [asdict(check) for check in self.made]
