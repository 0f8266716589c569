"""What the client and its callers share: where a front door is, what a refusal becomes, what may stand in a path."""

from __future__ import annotations

import json
from pathlib import Path

import httpx

from moorage.errors import (
    Conflict,
    Forbidden,
    Infeasible,
    InvalidRequest,
    LeaseTimeout,
    MoorageError,
    NotFound,
    TooLarge,
    Unauthenticated,
    Unavailable,
)

URL_VARIABLE, TOKEN_VARIABLE, HOME_VARIABLE = "MOORAGE_URL", "MOORAGE_TOKEN", "MOORAGE_HOME"
_BY_STATUS: dict[int, type[MoorageError]] = {
    400: InvalidRequest,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    408: LeaseTimeout,
    409: Conflict,
    413: TooLarge,
    422: Infeasible,
    429: Unavailable,
    503: Unavailable,
}


def error_of(answer: httpx.Response) -> MoorageError:
    """The error behind a problem document; of the plain kind when the body is none."""
    kind = _BY_STATUS.get(answer.status_code, MoorageError)
    try:
        found = answer.json()
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("title"), str):
        error = kind(f"The front door answered {answer.status_code}", why=answer.text[:200])
    else:
        error = kind(
            found["title"],
            why=str(found.get("why", "")),
            todo=str(found.get("todo", "")),
            code=str(found.get("code", "")) or None,
            **{k: v for k, v in found.items() if k in ("errors", "reason", "retry_after_s")},
        )
    error.http_status = answer.status_code
    return error


def segment(text: str) -> str:
    """A path segment; what would change the path is refused instead of sent."""
    if not text or text in (".", "..") or any(mark in text for mark in "/?#\\%") or not text.isprintable():
        raise InvalidRequest(f"{text[:80]!r} is not an id", code="bad-id")
    return text


def front_door(home: Path) -> str:
    try:
        found = json.loads((home / "pool.json").read_text(encoding="utf-8"))["front_door"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotFound(
            f"No pool is up in {home}",
            todo=f"start one with `moorage up`, or set {URL_VARIABLE} and {TOKEN_VARIABLE}",
            code="pool-not-up",
        ) from error
    return str(found) if "://" in str(found) else f"http://{found}"


def _known_tokens(home: Path) -> str:
    names = sorted(path.stem for path in (home / "tokens").glob("*.token"))
    return f"set {TOKEN_VARIABLE}" + (f", or say one of: {', '.join(names)}" if names else "")


def token(home: Path, principal: str) -> str:
    try:
        return (home / "tokens" / f"{segment(principal)}.token").read_text(encoding="utf-8").strip()
    except OSError as error:
        raise Unauthenticated(
            f"There is no token for {principal!r} that you can read",
            why=f"{home}/tokens/{principal}.token: {error.strerror}",
            todo=_known_tokens(home),
        ) from error
