"""What formulas and sets of numbers are made of: the interface between their grammar (formula.py, same_set.py) and their values."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Protocol, TypeVar

Value = TypeVar("Value")
CONSTANTS = (r"\pi", r"\infty", "e", "i")


class Algebra(Protocol[Value]):
    """What formulas are made of."""

    def number(self, value: Fraction) -> Value: ...

    def constant(self, name: str) -> Value:
        """One of CONSTANTS."""
        ...

    def symbol(self, name: str) -> Value: ...

    def plus(self, first: Value, second: Value) -> Value: ...

    def times(self, first: Value, second: Value) -> Value: ...

    def over(self, top: Value, bottom: Value) -> Value: ...

    def power(self, base: Value, exponent: Value) -> Value: ...

    def root(self, value: Value, degree: Value) -> Value:
        """The real root where there is one."""
        ...

    def apply(self, name: str, *values: Value) -> Value:
        """One of answer_text.FUNCTIONS, or abs, floor, ceiling, factorial, factorial2, binomial; log may have a base as second value."""
        ...

    def same(self, first: Value, second: Value) -> bool:
        """Whether both have the same value, as functions of their variables where both are defined."""
        ...

    def proportional(self, first: Value, second: Value, positive: bool) -> bool:
        """Whether first = c·second for a number c ≠ 0 (c > 0 if `positive`): then both are 0 (or both below 0) at the same places."""
        ...

    def has_variables(self, value: Value) -> bool: ...

    def variable(self, value: Value) -> str:
        """The name of a value that is a bare variable, else ""."""
        ...

    def points(self, values: Sequence[Value]) -> Any:
        """The set of these numbers."""
        ...

    def interval(self, start: Value | None, end: Value | None, left_open: bool, right_open: bool) -> Any:
        """None: no end on that side."""
        ...

    def combined(self, how: str, sets: Sequence[Any]) -> Any:
        """The union or intersection of sets, or the difference: the first without the others."""
        ...

    def same_sets(self, first: Any, second: Any) -> bool: ...
