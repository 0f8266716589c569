"""Training state as tensors plus JSON: what a checkpoint holds, with no pickle anywhere.

`pack` splits a nested structure (dict, list, tuple, tensors, scalars) into a flat table of tensors and a JSON
skeleton; `unpack` is its inverse, keys of type int and tuples included.
"""

from __future__ import annotations

from typing import Any

import torch

from moorage.errors import DataError

Json = Any


def pack(tree: Any) -> tuple[dict[str, torch.Tensor], Json]:
    """Return (tensors by number, JSON skeleton). Raises DataError for what has no safe form."""
    tensors: dict[str, torch.Tensor] = {}
    return tensors, _pack(tree, tensors, "state")


def _pack(node: Any, tensors: dict[str, torch.Tensor], where: str) -> Json:
    if isinstance(node, torch.Tensor):
        key = f"t{len(tensors)}"
        # clone: two names may share storage (tied weights), which the file format does not allow
        tensors[key] = node.detach().to("cpu", copy=True).contiguous()
        return {"t": key}
    if node is None or isinstance(node, (bool, int, float, str)):
        return {"v": node}
    if isinstance(node, dict):
        for key in node:
            if not isinstance(key, (str, int)) or isinstance(key, bool):
                raise DataError(f"{where} has a key of type {type(key).__name__}", todo="use str or int keys")
        return {"d": [[k, _pack(v, tensors, f"{where}[{k!r}]")] for k, v in node.items()]}
    if isinstance(node, (list, tuple)):
        tag = "l" if isinstance(node, list) else "u"
        return {tag: [_pack(v, tensors, f"{where}[{i}]") for i, v in enumerate(node)]}
    raise DataError(
        f"{where} is a {type(node).__name__}, which a checkpoint cannot hold",
        why="only tensors, numbers, strings, None, dicts, lists and tuples have a form that is safe to load",
    )


def unpack(tensors: dict[str, torch.Tensor], skeleton: Json) -> Any:
    """Rebuild what `pack` was given. Raises DataError when the two parts do not fit."""
    try:
        ((tag, body),) = skeleton.items()
        if tag == "t":
            return tensors[body]
        if tag == "v":
            return body
        if tag == "d":
            return {k: unpack(tensors, v) for k, v in body}
        if tag in "lu":
            items = [unpack(tensors, v) for v in body]
            return items if tag == "l" else tuple(items)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError("the checkpoint's skeleton does not fit its tensors", why=str(error)) from error
    raise DataError(f"unknown node {tag!r} in a checkpoint")
