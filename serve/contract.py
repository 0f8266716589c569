"""What goes over the wire: strict requests, versioned answers, and problem documents that name the field.

Pure pydantic: no Ray, no web framework. An endpoint's own request derives from `Request`, its answer from
`Answer`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

MAX_PROBLEMS = 50
"""How many faults an answer names: a body of 100,000 unknown fields must not come back ten times as long."""


class Request(BaseModel):
    """Base of a typed request: no extra fields, no coercion ("7" is not 7), no NaN and no infinities."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class ModelRef(BaseModel):
    """Which model answered: its name and version in the registry."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    version: str


class Answer(BaseModel):
    """Base of a typed answer: every prediction says which model, on which data, and for which request."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True, protected_namespaces=())

    model: ModelRef
    data_version: str = Field(description="version of the feature view the model was trained on")
    request_id: str = Field(description="the caller's X-Request-ID, or one made for it")


class FieldProblem(BaseModel):
    """One thing wrong with a request. `field` is a dotted path into the body; "" is the body as a whole."""

    field: str
    message: str
    kind: str = Field(description="stable word for the rule that was broken, e.g. missing, extra_forbidden")


class Problem(BaseModel):
    """RFC 9457 problem document, with our stable `code` and, for a refused request, the fields."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[FieldProblem] = []


def problem(
    code: str,
    title: str,
    status: int,
    request_id: str,
    *,
    detail: str = "",
    errors: Sequence[FieldProblem] = (),
) -> Problem:
    """A problem document whose type is Moorage's URN for `code`."""
    return Problem(
        type=f"urn:moorage:error:{code}",
        title=title,
        status=status,
        detail=detail or title,
        code=code,
        request_id=request_id,
        errors=list(errors),
    )


def field_problems(errors: Iterable[Mapping[str, Any]]) -> list[FieldProblem]:
    """Pydantic's errors as ours. The offending *input* is left out on purpose.

    A NaN would not survive the JSON answer, and what a caller sent by mistake may be a secret.
    """
    return [
        FieldProblem(
            field="" if error["type"] == "json_invalid" else _path(error["loc"]),
            message=str(error["msg"]),
            kind=str(error["type"]),
        )
        for error in errors
    ]


def invalid(errors: Sequence[FieldProblem], request_id: str) -> Problem:
    """The 422 answer: the detail names each field, so that a log line is enough to mend the caller.

    Of more than `MAX_PROBLEMS` faults the first ones, with the number of the others; a name is cut at 200 characters.
    """
    told = [one.model_copy(update={"field": one.field[:200]}) for one in errors[:MAX_PROBLEMS]]
    named = "; ".join(f"{error.field or 'body'}: {error.message}" for error in told)
    more = f"; and {len(errors) - len(told)} more" if len(errors) > len(told) else ""
    title = "the request does not match the contract"
    return problem("invalid-request", title, 422, request_id, detail=named + more, errors=told)


def _path(location: Sequence[int | str]) -> str:
    """`("body", "carrier")` -> `carrier`; FastAPI puts where the value came from first. JSON syntax errors
    keep no field.
    """
    parts = list(location)
    if parts and parts[0] in ("body", "query", "path", "header"):
        parts = parts[1:]
    return ".".join(str(part) for part in parts)
