"""One self-contained HTML page of an OpenAPI document: no script, no outside address, relative links only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2430}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}code,pre{font:13px/1.45 ui-monospace,monospace}
pre{background:#f4f6f8;padding:.8rem;overflow:auto;border-radius:6px}.verb{font-weight:600;color:#0a6}
table{border-collapse:collapse}td,th{text-align:left;padding:.25rem .8rem .25rem 0;border-bottom:1px solid
#e3e7ec;vertical-align:top}
"""


def render(document: Mapping[str, Any]) -> str:
    """The page of `document` (an OpenAPI 3.1 object)."""
    info = document["info"]
    title = escape(str(info["title"]))
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>",
        f"<h1>{title}</h1><p>{escape(str(info.get('description', '')))}</p>",
        '<p>Machine-readable: <a href="openapi.json">openapi.json</a></p><h2>Routes</h2><table>',
        *_routes(document),
        "</table><h2>Types</h2>",
        *_types(document),
    ]
    return "".join(parts)


def _routes(document: Mapping[str, Any]) -> Iterator[str]:
    for path, verbs in document["paths"].items():
        for verb, operation in verbs.items():
            asked = _schema_name(operation.get("requestBody", {}))
            given = ", ".join(
                f"{escape(status)} {_schema_name(answer)}"
                for status, answer in operation["responses"].items()
            )
            yield (
                f"<tr><td class=verb>{escape(verb.upper())}<td><code>{escape(path)}</code>"
                f"<td>{escape(str(operation.get('summary', '')))}<td>{asked}<td>{given}"
            )


def _schema_name(holder: Mapping[str, Any]) -> str:
    for content in holder.get("content", {}).values():
        reference = content.get("schema", {}).get("$ref", "")
        if reference:
            name = escape(reference.rsplit("/", 1)[-1])
            return f'<a href="#{name}">{name}</a>'
    return ""


def _types(document: Mapping[str, Any]) -> Iterator[str]:
    for name, schema in document.get("components", {}).get("schemas", {}).items():
        body = escape(json.dumps(schema, indent=2, sort_keys=False))
        yield f'<h3 id="{escape(name)}">{escape(name)}</h3><pre>{body}</pre>'
