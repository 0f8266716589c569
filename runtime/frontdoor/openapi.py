"""From a table of routes to an OpenAPI 3.1 document. The table is also what the router is filled from."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from pydantic import BaseModel, TypeAdapter

from moorage import __version__

_REF = "#/components/schemas/{model}"


@dataclass(frozen=True, slots=True)
class Route:
    """One operation. `body` and `answer` are pydantic types; None means any JSON object."""

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


def _schema(kind: Any, components: dict[str, Any], mode: str) -> dict[str, Any]:
    """The JSON schema of a type, its named parts moved to `components`."""
    schema = TypeAdapter(kind).json_schema(
        ref_template=_REF, mode="validation" if mode == "in" else "serialization"
    )
    components.update(schema.pop("$defs", {}))
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        components[kind.__name__] = schema
        return {"$ref": _REF.format(model=kind.__name__)}
    return schema


def _content(schema: dict[str, Any], kind: str = "application/json") -> dict[str, Any]:
    return {kind: {"schema": schema}}


def _operation(route: Route, components: dict[str, Any]) -> dict[str, Any]:
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
                "content": _content(_schema(route.answer, components, "out")),
            },
            "default": {
                "description": "An error",
                "content": _content(_schema(Problem, components, "out"), "application/problem+json"),
            },
        },
    }
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": _content(_schema(route.body, components, "in")),
        }
    if not route.secured:
        operation["security"] = []
    return operation


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of `routes`."""
    components: dict[str, Any] = {}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, components)
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
