"""Formulas as exact values (exact_values.py), within bounded work: what most answers need, safe in the evaluating process."""

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from megatron_atesd.evaluate import exact_sets
from megatron_atesd.evaluate.exact_sets import RealSet
from megatron_atesd.evaluate.exact_values import (
    ONE,
    Exact,
    Monomial,
    Sum,
    TooHard,
    Work,
    is_variable,
    product,
    sum_of,
    term_power,
)

_MAX_POWER = 20  # of a sum; the work is bounded beside
_MAX_COUNT = 300  # of a factorial or binomial coefficient

_ON_FRACTIONS: Mapping[str, Callable[..., Fraction | int]] = {
    "abs": lambda value: abs(value),
    "floor": lambda value: math.floor(value),
    "ceiling": lambda value: math.ceil(value),
    "max": lambda *values: max(values),
    "min": lambda *values: min(values),
}
_ON_COUNTS: Mapping[str, Callable[..., int]] = {
    "factorial": math.factorial,
    "factorial2": lambda n: math.prod(range(n, 0, -2)),
    "binomial": math.comb,
    "gcd": math.gcd,
    "lcm": math.lcm,
}
_COMBINED: Mapping[str, Callable[[list[bool]], bool]] = {
    "union": any,
    "intersection": all,
    "difference": lambda both: both[0] and not any(both[1:]),
}


class ExactAlgebra:
    """The algebra (`algebra.Algebra`) of exact values. Its methods raise TooHard for what they do not decide."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def number(self, value: Fraction) -> Exact:
        return Exact({(): value} if value else {}, ONE)

    def constant(self, name: str) -> Exact:
        if name == r"\infty":
            raise TooHard
        return self.symbol(name)

    def symbol(self, name: str) -> Exact:
        return Exact({((name, Fraction(1)),): Fraction(1)}, ONE)

    def plus(self, first: Exact, second: Exact) -> Exact:
        if first.bottom == second.bottom:
            return Exact(sum_of(first.top, second.top), first.bottom)
        left, right = self._times(first.top, second.bottom), self._times(second.top, first.bottom)
        return Exact(sum_of(left, right), self._times(first.bottom, second.bottom))

    def times(self, first: Exact, second: Exact) -> Exact:
        return Exact(self._times(first.top, second.top), self._times(first.bottom, second.bottom))

    def over(self, top: Exact, bottom: Exact) -> Exact:
        return self.times(top, self._inverse(bottom))

    def power(self, base: Exact, exponent: Exact) -> Exact:
        number = _rational(exponent)
        if number is None:
            raise TooHard
        if len(base.top) == 1 and base.bottom == ONE:
            ((monomial, factor),) = base.top.items()
            return Exact(term_power(monomial, factor, number), ONE)
        if number.denominator != 1 or abs(number) > _MAX_POWER or (not base.top and number <= 0):
            raise TooHard
        result = self.number(Fraction(1))
        for _ in range(abs(number.numerator)):
            result = self.times(result, base)
        return result if number >= 0 else self._inverse(result)

    def root(self, value: Exact, degree: Exact) -> Exact:
        number, kind = _rational(value), _rational(degree)
        if kind is None or kind.denominator != 1 or kind < 2:
            raise TooHard
        if number is not None and number < 0:
            if kind % 2 == 0 and kind != 2:
                raise TooHard
            unit = self.number(Fraction(-1)) if kind % 2 else self.constant("i")
            return self.times(unit, self.root(self.number(-number), degree))
        return self.power(value, self.number(1 / kind))

    def apply(self, name: str, *values: Exact) -> Exact:
        numbers = [number for value in values if (number := _rational(value)) is not None]
        if not numbers or len(numbers) != len(values):
            raise TooHard
        if name in _ON_FRACTIONS:
            return self.number(Fraction(_ON_FRACTIONS[name](*numbers)))
        if name not in _ON_COUNTS or any(number.denominator != 1 or not 0 <= number <= _MAX_COUNT for number in numbers):
            raise TooHard
        return self.number(Fraction(_ON_COUNTS[name](*(number.numerator for number in numbers))))

    def same(self, first: Exact, second: Exact) -> bool:
        return self._times(first.top, second.bottom) == self._times(second.top, first.bottom)

    def proportional(self, first: Exact, second: Exact, positive: bool) -> bool:
        if not first.top or not second.top:
            return False
        if positive or not (first.bottom == second.bottom == ONE):
            raise TooHard
        part, other_part = _first_part(first.top), _first_part(second.top)
        return part[0] == other_part[0] and self._times(first.top, other_part[1]) == self._times(second.top, part[1])

    def has_variables(self, value: Exact) -> bool:
        return any(is_variable(atom) for terms in value for monomial in terms for atom, _ in monomial)

    def variable(self, value: Exact) -> str:
        for monomial, factor in value.top.items():
            if value.bottom == ONE and len(value.top) == len(monomial) == factor == monomial[0][1] and is_variable(monomial[0][0]):
                return monomial[0][0]
        return ""

    def points(self, values: Sequence[Exact]) -> RealSet:
        return exact_sets.points([_number(value) for value in values])

    def interval(self, start: Exact | None, end: Exact | None, left_open: bool, right_open: bool) -> RealSet:
        left, right = (None if value is None else _number(value) for value in (start, end))
        return exact_sets.interval(left, right, left_open, right_open)

    def combined(self, how: str, sets: Sequence[RealSet]) -> RealSet:
        self._work.spend(sum(len(each.inside) for each in sets) * len(sets))
        return exact_sets.combined(_COMBINED[how], sets)

    def same_sets(self, first: RealSet, second: RealSet) -> bool:
        return first == second

    def _times(self, first: Sum, second: Sum) -> Sum:
        if first == ONE or second == ONE:
            return second if first == ONE else first
        return product(first, second, self._work)

    def _inverse(self, value: Exact) -> Exact:
        if not value.top:
            raise TooHard  # a division by 0
        if len(value.top) == 1:
            ((monomial, factor),) = value.top.items()
            return Exact(self._times(value.bottom, term_power(monomial, factor, Fraction(-1))), ONE)
        return Exact(value.bottom, value.top)


def _rational(value: Exact) -> Fraction | None:
    """The number that a value is when it has neither root nor constant nor variable."""
    return value.top.get((), Fraction(0)) if value.bottom == ONE and value.top.keys() <= {()} else None


def _number(value: Exact) -> Fraction:
    number = _rational(value)
    if number is None:
        raise TooHard
    return number


def _first_part(terms: Sum) -> tuple[Monomial, Sum]:
    """The first product of variables in a sum, by name, with the number in front of it."""
    parts: dict[Monomial, Sum] = {}
    for monomial, factor in terms.items():
        variables = tuple(power for power in monomial if is_variable(power[0]))
        number = tuple(power for power in monomial if not is_variable(power[0]))
        parts.setdefault(variables, {})[number] = factor
    first = min(parts)
    return first, parts[first]
