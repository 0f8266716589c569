"""A job's whole log: its attempts joined, cut in the middle when it is too long to answer in one piece."""

from __future__ import annotations

from collections import deque

from moorage.errors import Unavailable
from moorage.runtime import answers
from moorage.runtime.frontdoor.context import Context


class HeadTail:
    """Keeps the first `head` and the last `tail` characters of a stream, in memory bounded by both.

    `text()` is everything when it fits; else head and tail cut at line ends, with a marker that says how much
    is missing.
    """

    def __init__(self, head: int, tail: int) -> None:
        self._head_limit, self._tail_limit = head, tail
        self._head: list[str] = []
        self._tail: deque[str] = deque()
        self._head_size = self._tail_size = self.dropped = 0

    def add(self, text: str) -> None:
        room = self._head_limit - self._head_size
        if room > 0:
            self._head.append(text[:room])
            self._head_size += len(self._head[-1])
            text = text[room:]
        if not text:
            return
        self._tail.append(text)
        self._tail_size += len(text)
        while self._tail and self._tail_size - len(self._tail[0]) >= self._tail_limit:
            gone = self._tail.popleft()
            self._tail_size -= len(gone)
            self.dropped += len(gone)

    def text(self) -> str:
        head, tail = "".join(self._head), "".join(self._tail)
        over = max(0, len(tail) - self._tail_limit)
        if self.dropped + over == 0:
            return head + tail
        first_line_end = tail.find("\n", over)
        start = over if first_line_end < 0 else first_line_end + 1
        last_line_end = head.rfind("\n")
        end = len(head) if last_line_end < 0 else last_line_end + 1
        missing = self.dropped + start + (len(head) - end)
        return (
            f"{head[:end]}\n[moorage] ... {missing:,} characters are left out here; "
            f"`ray job logs --follow` gives them all ...\n\n{tail[start:]}"
        )


def attempt_heading(attempt: answers.Attempt) -> str:
    return f"[moorage] attempt {attempt['attempt']} ({attempt['submission_id']})\n"


async def joined(context: Context, attempts: list[answers.Attempt]) -> str:
    """The logs of all attempts in order, each under a heading when there is more than one."""
    settings = context.settings
    kept = HeadTail(settings.log_head, settings.log_tail)
    async with context.log_slots:
        for at, attempt in enumerate(attempts):
            if len(attempts) > 1:
                kept.add(attempt_heading(attempt))
            try:
                async for text in context.upstream.log_text(attempt["submission_id"]):
                    kept.add(text)
            except Unavailable as error:
                if at == len(attempts) - 1 and attempt["ended_ns"] is None:
                    raise
                number = attempt["attempt"]
                kept.add(f"[moorage] the log of attempt {number} cannot be read now: {error.what}\n")
    return kept.text()
