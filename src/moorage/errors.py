"""One tree of errors. Each has a stable code and says what happened, why, and what to do.

"Not placed" is not here: a job that waits is data (`moorage.scheduling.model.Reason`), not an exception.
"""

from __future__ import annotations

from typing import Any


class MoorageError(Exception):
    """Base of every error a user may see.

    `code` is stable and kebab-case: programs may match on it. `http_status` is what the front door answers.
    """

    code = "moorage-error"
    http_status = 500

    def __init__(
        self, what: str, *, why: str = "", todo: str = "", code: str | None = None, **extra: Any
    ) -> None:
        self.what, self.why, self.todo, self.extra = what, why, todo, extra
        if code is not None:
            self.code = code
        super().__init__(str(self))

    def __str__(self) -> str:
        first, *more = [p.rstrip(".") for p in (self.what, self.why, self.todo) if p] or [""]
        text = first
        for part in more:
            text += (" " if text.endswith("?") else ". ") + _sentence(part)
        return f"{text} [{self.code}]"

    def problem(self) -> dict[str, Any]:
        """The RFC 9457 problem document of this error."""
        return {
            "type": f"urn:moorage:error:{self.code}",
            "title": self.what,
            "status": self.http_status,
            "detail": str(self),
            "code": self.code,
            **({"why": self.why} if self.why else {}),
            **({"todo": self.todo} if self.todo else {}),
            **self.extra,
        }


def _sentence(text: str) -> str:
    """`text` begun with a capital, unless its first word is a name, a path, a command or a quotation."""
    word = text.split(" ", 1)[0]
    begins = word.isalpha() and word.islower() and word not in ("moorage", "ray")
    return text[0].upper() + text[1:] if begins else text


class InvalidRequest(MoorageError):
    """The caller asked for something malformed or impossible."""

    code = "invalid-request"
    http_status = 400


class Infeasible(InvalidRequest):
    """The request can never be met by this pool or this team's limit: refused at once, not queued for ever."""

    code = "infeasible"
    http_status = 422


class Unauthenticated(MoorageError):
    """No token, or one nobody issued."""

    code = "unauthenticated"
    http_status = 401


class Forbidden(MoorageError):
    """The caller is known and may not do this."""

    code = "forbidden"
    http_status = 403


class NotFound(MoorageError):
    """No such thing, or not one this caller may see."""

    code = "not-found"
    http_status = 404


class Conflict(MoorageError):
    """The state does not allow it: an id in use, a pool already up, a stale fencing token."""

    code = "conflict"
    http_status = 409


class TooLarge(MoorageError):
    """A body or package over its limit."""

    code = "too-large"
    http_status = 413


class Unavailable(MoorageError):
    """Something this needs is not reachable now; trying again later may work."""

    code = "unavailable"
    http_status = 503


class LeaseTimeout(MoorageError):
    """A lease did not come within its timeout; carries the reason it waited."""

    code = "lease-timeout"
    http_status = 408


class DataError(MoorageError):
    """Data that cannot be read or does not match its schema."""

    code = "data-error"
    http_status = 422
