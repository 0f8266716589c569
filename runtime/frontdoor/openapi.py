"""From a table of routes to an OpenAPI 3.1 document. The table is also what the router is filled from.

Pydantic describes both sides: bodies are its models (and checked by them), answers are the `TypedDict`s of
`moorage.runtime.answers`, which type what the handlers answer. Answers are not checked again as they are sent.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from moorage import __version__

_REF = "#/components/schemas/{model}"


@dataclass(frozen=True, slots=True)
class Route:
    """One operation. `body` None: it takes none. `answer` is any type that pydantic can describe."""

    method: str
    path: str
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    summary: str
    body: type[BaseModel] | None = None
    answer: Any = dict[str, Any]
    query: Mapping[str, str] = field(default_factory=dict)
    created: bool = False
    secured: bool = True


class Problem(BaseModel):
    """An error, as RFC 9457 has it. Programs match on `code`; it does not change between versions."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    why: str = ""
    todo: str = ""


Part = tuple[str, str, str]
"""What of the document has a schema: method, path, and `body`, `answer` or `problem`."""
Schemas = Mapping[Part, dict[str, Any]]


def _schemas(routes: Sequence[Route]) -> tuple[Schemas, dict[str, Any]]:
    """The schema of each part, and the components that they refer to. A type that is taken and answered and looks
    different in the two (no unknown fields are taken) is two components, `-Input` and `-Output`."""
    parts: list[tuple[Part, JsonSchemaMode, TypeAdapter[Any]]] = []
    for route in routes:
        parts.append(((route.method, route.path, "answer"), "serialization", TypeAdapter(route.answer)))
        parts.append(((route.method, route.path, "problem"), "serialization", TypeAdapter(Problem)))
        if route.body is not None:
            parts.append(((route.method, route.path, "body"), "validation", TypeAdapter(route.body)))
    found, components = TypeAdapter.json_schemas(parts, ref_template=_REF)
    return {part: schema for (part, _), schema in found.items()}, components["$defs"]


def _content(schema: dict[str, Any], kind: str = "application/json") -> dict[str, Any]:
    return {kind: {"schema": schema}}


def _operation(route: Route, schemas: Schemas) -> dict[str, Any]:
    part = (route.method, route.path)
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", route.path)
    ] + [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": text,
            "schema": {"type": "string"} if name == "state" else {"type": "integer", "minimum": 0},
        }
        for name, text in route.query.items()
    ]
    operation: dict[str, Any] = {
        "operationId": re.sub(
            r"\W+", "_", f"{route.method.lower()}{route.path.removeprefix('/moorage/v1')}"
        ).strip("_"),
        "summary": route.summary,
        "responses": {
            "201" if route.created else "200": {
                "description": "Created" if route.created else "OK",
                "content": _content(schemas[*part, "answer"]),
            },
            "default": {
                "description": "An error",
                "content": _content(schemas[*part, "problem"], "application/problem+json"),
            },
        },
    }
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": _content(schemas[*part, "body"]),
        }
    if not route.secured:
        operation["security"] = []
    return operation


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of `routes`."""
    schemas, components = _schemas(routes)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Moorage",
            "version": __version__,
            "description": "Moorage's own routes. Jobs are submitted through Ray's Jobs API on the same address.",
        },
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }
