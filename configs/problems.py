"""pydantic's validation errors as one `InvalidRequest` that names the path of each field."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pydantic import BaseModel, ValidationError

from moorage.errors import InvalidRequest

MAX_SHOWN = 8


def explain(error: ValidationError, source: str, root: str = "") -> InvalidRequest:
    """`source: teams.ops.limit: ...; ...` with at most `MAX_SHOWN` problems."""
    lines = []
    for item in error.errors(include_url=False, include_context=False)[:MAX_SHOWN]:
        steps = [str(step) for step in item["loc"] if not str(step).startswith("function-")]
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown key"
        lines.append(f"{'.'.join(([root] if root else []) + steps) or 'file'}: {message}")
    return InvalidRequest(
        f"{source} is not valid", why="; ".join(lines), todo="correct the fields named", code="invalid-config"
    )


def refuse_unknown(given: Iterable[str], model: type[BaseModel], where: str) -> None:
    """ValueError that names the closest known key, before pydantic says only "extra"."""
    known = list(model.model_fields)
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(known)}"
            raise ValueError(f"unknown key {str(key)[:60]!r} in {where}{hint}")
