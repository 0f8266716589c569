"""How kernels that call kernels are compiled.

They pass dozens of arrays in named tuples. Counting a reference to each at every call would cost more than the work, so
they are compiled without numba's memory manager: they may not allocate, and get their scratch space from the caller.
What only kernels call has no wrapper for Python either. A decision takes half the time that way (numba 0.65).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def outer(function: Callable[..., Any]) -> Any:
    """A kernel that Python calls."""
    return numba.njit(cache=True, _nrt=False)(function)


def inner(function: Callable[..., Any]) -> Any:
    """A kernel that only kernels call."""
    return numba.njit(cache=True, _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)


def small(function: Callable[..., Any]) -> Any:
    """A part of a kernel, written into it where it is used: to hand it a named tuple then costs nothing to compile."""
    return numba.njit(inline="always", _nrt=False)(function)
