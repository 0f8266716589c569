"""What `explain()` answers, as data and in words."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from moorage.scheduling.changes import Change
from moorage.scheduling.model import Reason, ReasonCode
from moorage.scheduling.spans import span


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why `job` waits at `now_ns`. Each of `suggestions` starts it now; `earliest_ns` is when it starts if nothing is
    changed, no other job is submitted and every known end is kept, None when that is not known."""

    job: str
    now_ns: int
    reason: Reason
    suggestions: tuple[Change, ...] = ()
    earliest_ns: int | None = None
    plans: int = 0
    """How many plans were made to find this."""
    complete: bool = True
    """False: the search was stopped before its end. What is said still holds; there may be more to say."""

    def text(self) -> str:
        """Sentences for people, one a line."""
        lines = [f"{self.job} waits: {self.reason.text()}."]
        if self.suggestions:
            lines.append("It would start now if you did one of these:")
            lines += [f"- {change.text()}" for change in self.suggestions]
        elif self.complete:
            lines.append(
                "No single change to the job, its team or the running jobs was found that starts it now."
            )
        lines.append(self.earliest_text())
        if not self.complete:
            lines.append(
                f"The search was stopped after {self.plans} plans: there may be more that starts it."
            )
        return "\n".join(lines)

    def earliest_text(self) -> str:
        """When it starts, in one sentence."""
        if self.reason.code is ReasonCode.BUDGET and self.earliest_ns is not None:
            ahead = span(self.earliest_ns - self.now_ns)
            return f"With all else as it is now it starts when the period ends, in {ahead}."
        if self.earliest_ns is not None:
            return f"By the known ends of running jobs it starts in {span(self.earliest_ns - self.now_ns)}."
        if not self.complete:
            return "When it starts is not known: the search was stopped before that was found."
        return "When it starts is not known: the known ends of running jobs do not make room for it."

    def to_json(self) -> dict[str, Any]:
        """Plain data: strings, integers, lists."""
        reason = {f.name: getattr(self.reason, f.name) for f in fields(Reason)}
        reason |= {
            "code": str(self.reason.code),
            "holders": list(self.reason.holders),
            "text": self.reason.text(),
        }
        return {
            "job": self.job,
            "now_ns": self.now_ns,
            "reason": reason,
            "suggestions": [change.to_json() | {"text": change.text()} for change in self.suggestions],
            "earliest_ns": self.earliest_ns,
            "earliest_text": self.earliest_text(),
            "plans": self.plans,
            "complete": self.complete,
        }
