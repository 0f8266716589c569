"""Runs plain Python on symbols, once for each path it can take, with z3 to tell which paths there are.

`Int` stands where code expects an int, `Bool` where it expects a truth value. Asking a `Bool` for its truth takes a
decision: `explore` runs the code again for each way a decision can go (King, "Symbolic execution and program testing",
1976). A symbol never becomes a number: code that calls `int()` on one, or indexes with it, fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

import z3

Out = TypeVar("Out")


class Undecided(Exception):
    """z3 answered `unknown`: nothing is proven."""


class Path:
    """The decisions of one run: those given first, then, at each new one, true if it can be, else false."""

    now: Path | None = None

    def __init__(self, solver: z3.Solver, given: list[bool]) -> None:
        self.solver = solver
        self.taken = given
        self.others: list[list[bool]] = []
        """Starts of the paths that branch off this one."""
        self.at = 0

    def decide(self, condition: z3.BoolRef) -> bool:
        if self.at == len(self.taken):
            yes, no = (possible(self.solver, c) for c in (condition, z3.Not(condition)))
            if yes and no:
                self.others.append([*self.taken, False])
            self.taken.append(yes)
        choice = self.taken[self.at]
        self.at += 1
        self.solver.add(condition if choice else z3.Not(condition))
        return choice


def possible(solver: z3.Solver, *conditions: z3.BoolRef) -> bool:
    """Whether they can hold together with what the solver knows."""
    answer = solver.check(*conditions)
    if answer == z3.unknown:
        raise Undecided(solver.reason_unknown())
    return bool(answer == z3.sat)


def explore(solver: z3.Solver, run: Callable[[], Out]) -> Iterator[Out]:
    """What `run` gives on each path. While a result is looked at, the solver knows the conditions of its path."""
    starts: list[list[bool]] = [[]]
    while starts:
        solver.push()
        path = Path.now = Path(solver, starts.pop())
        try:
            result = run()
        finally:
            Path.now = None
        starts += path.others
        yield result
        solver.pop()


class Bool:
    __slots__ = ("term",)

    def __init__(self, term: z3.BoolRef) -> None:
        self.term = term

    def __bool__(self) -> bool:
        if Path.now is None:
            raise AssertionError("a symbol was asked for its truth outside of `explore`")
        return Path.now.decide(self.term)

    def __repr__(self) -> str:
        return "?"


class Int:
    __slots__ = ("term",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, of: str | z3.ArithRef) -> None:
        self.term = z3.Int(of) if isinstance(of, str) else of

    def __repr__(self) -> str:
        return "?"

    def _number(self, *_: object) -> NoReturn:
        raise AssertionError("the code made a number of a symbol")

    __int__ = __index__ = __float__ = __bool__ = _number  # type: ignore[assignment]

    def __add__(self, other: Int | int) -> Int:
        return Int(self.term + term(other))

    def __sub__(self, other: Int | int) -> Int:
        return Int(self.term - term(other))

    def __rsub__(self, other: Int | int) -> Int:
        return Int(term(other) - self.term)

    def __mul__(self, other: Int | int) -> Int:
        return Int(self.term * term(other))

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Int:
        return Int(-self.term)

    def __lt__(self, other: Int | int) -> Bool:
        return Bool(self.term < term(other))

    def __le__(self, other: Int | int) -> Bool:
        return Bool(self.term <= term(other))

    def __gt__(self, other: Int | int) -> Bool:
        return Bool(self.term > term(other))

    def __ge__(self, other: Int | int) -> Bool:
        return Bool(self.term >= term(other))

    def __eq__(self, other: object) -> Bool:  # type: ignore[override]
        return Bool(self.term == term(other))

    def __ne__(self, other: object) -> Bool:  # type: ignore[override]
        return Bool(self.term != term(other))


def term(value: object) -> z3.ExprRef:
    """As z3 writes it: of a symbol, a number or a truth value."""
    if isinstance(value, Int | Bool):
        return value.term
    if isinstance(value, bool):
        return z3.BoolVal(value)
    if isinstance(value, int):
        return z3.IntVal(value)
    raise AssertionError(f"{value!r} is neither a symbol nor an integer")
