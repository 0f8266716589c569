"""Reading YAML that a user wrote: safe types only, no duplicate keys, no aliases, errors with line and column."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

from moorage.errors import InvalidRequest

MAX_BYTES = 1 << 20


class _Strict(yaml.SafeLoader):
    """SafeLoader that refuses what silently loses or multiplies data."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.constructor.ConstructorError(
                None, None, "aliases (*name) are not allowed", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_mapping(text: str, source: str) -> dict[str, Any]:
    """The mapping that `text` holds ({} for an empty one); InvalidRequest names `source`, line and column."""
    if len(text.encode()) > MAX_BYTES:
        raise InvalidRequest(f"{source} is over {MAX_BYTES} bytes", todo="split it", code="config-too-large")
    try:
        loader = _Strict(text)
        value = loader.get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise InvalidRequest(
            f"{source} is not valid YAML{where}",
            why=str(problem),
            todo="correct the file",
            code="malformed-yaml",
        ) from None
    except (RecursionError, ValueError) as error:
        raise InvalidRequest(f"{source} is not valid YAML", why=str(error), code="malformed-yaml") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(
            f"{source} must hold a mapping", why=f"it holds a {type(value).__name__}", code="malformed-yaml"
        )
    return value
