"""Formulas as sympy expressions. May take any time and any memory on a hostile answer: only the worker process builds one."""

import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import sympy
from sympy import Expr, Interval, Rational, Set, Symbol

from megatron_atesd.evaluate.same_value import proportional, same_value

_CONSTANTS: Mapping[str, Expr] = {r"\pi": sympy.pi, r"\infty": sympy.oo, "e": sympy.E, "i": sympy.I}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "ln": sympy.log,
    "log": lambda value, base=10: sympy.log(value, base),
    "lg": lambda value: sympy.log(value, 10),
    "gcd": sympy.gcd,
    "lcm": sympy.lcm,
    "max": sympy.Max,
    "min": sympy.Min,
    "abs": sympy.Abs,
}


class SymbolicAlgebra:
    """The algebra (`algebra.Algebra`) of sympy's expressions."""

    def number(self, value: Fraction) -> Expr:
        return Rational(value.numerator, value.denominator)

    def constant(self, name: str) -> Expr:
        return _CONSTANTS[name]

    def symbol(self, name: str) -> Expr:
        return Symbol(name)

    def plus(self, first: Expr, second: Expr) -> Expr:
        return first + second

    def times(self, first: Expr, second: Expr) -> Expr:
        return first * second

    def over(self, top: Expr, bottom: Expr) -> Expr:
        return top / bottom

    def power(self, base: Expr, exponent: Expr) -> Expr:
        return base**exponent

    def root(self, value: Expr, degree: Expr) -> Expr:
        if value.is_negative and degree.is_odd:
            return -((-value) ** (1 / degree))  # the real root; sympy's power is the complex one
        return value ** (1 / degree)

    def apply(self, name: str, *values: Expr) -> Expr:
        function = _FUNCTIONS.get(name) or getattr(sympy, re.sub("^arc?(?=sinh|cosh|tanh)|^arc", "a", name))
        return function(*values)

    def same(self, first: Expr, second: Expr) -> bool:
        return same_value(first, second)

    def proportional(self, first: Expr, second: Expr, positive: bool) -> bool:
        return proportional(first, second, positive)

    def has_variables(self, value: Expr) -> bool:
        return bool(value.free_symbols)

    def variable(self, value: Expr) -> str:
        return value.name if isinstance(value, Symbol) else ""

    def points(self, values: Sequence[Expr]) -> Set:
        return sympy.FiniteSet(*values)

    def interval(self, start: Expr | None, end: Expr | None, left_open: bool, right_open: bool) -> Set:
        return Interval(-sympy.oo if start is None else start, sympy.oo if end is None else end, left_open, right_open)

    def combined(self, how: str, sets: Sequence[Set]) -> Set:
        if how == "difference":
            return sympy.Complement(sets[0], sympy.Union(*sets[1:]))
        return sympy.Union(*sets) if how == "union" else sympy.Intersection(*sets)

    def same_sets(self, first: Set, second: Set) -> bool:
        return first == second or _same_pieces(first, second) or bool(first.symmetric_difference(second).is_empty)


def _same_pieces(first: Set, second: Set) -> bool:
    """Intervals side by side, with ends that sympy does not see to be equal, such as √8 and 2√2."""
    ours, theirs = _intervals(first), _intervals(second)
    return len(ours) == len(theirs) > 0 and all(any(_same_interval(piece, other) for other in theirs) for piece in ours)


def _intervals(pieces: Set) -> list[Interval]:
    """The intervals of a union; none if it has pieces of another kind."""
    parts = pieces.args if isinstance(pieces, sympy.Union) else (pieces,)
    found = [part for part in parts if isinstance(part, Interval)]
    return found if len(found) == len(parts) else []


def _same_interval(first: Interval, second: Interval) -> bool:
    if (first.left_open, first.right_open) != (second.left_open, second.right_open):
        return False
    ends: Any = [(first.start, second.start), (first.end, second.end)]
    return all(same_value(ours, theirs) for ours, theirs in ends)
