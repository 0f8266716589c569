"""Numba's compiler with the types kept: what is compiled here is also plain Python, and is tested as such."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """Compiled when first called, kept on disk. `.py_func` is the plain function."""
    return cast(F, numba.njit(cache=True)(function))
