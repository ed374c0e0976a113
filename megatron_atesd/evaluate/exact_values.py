r"""Exact values: fractions of sums such as 2·√3·π·x² - 1/2, added, multiplied and compared without any search.

A sum maps monomials to rational factors. A monomial lists atoms with their powers: primes with powers between 0 and 1, `\pi`, `e`, `i` and
variables. Products of such prime powers are linearly independent over the rationals, so two sums are equal only if they are the
same (of π and e no relation is known). The work is bounded: `TooHard` instead of a long computation.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

Monomial = tuple[tuple[str, Fraction], ...]
Sum = dict[Monomial, Fraction]
_MAX_BITS = 4096
_PRIMES = [n for n in range(2, 1000) if all(n % d for d in range(2, int(n**0.5) + 1))]
ONE: Sum = {(): Fraction(1)}


class TooHard(Exception):  # noqa: N818 - not an error of anybody's: the worker process decides
    """Not decided here, within these means or within this work."""


class Work:
    """What may still be computed for one pair of answers, in products of two terms."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def spend(self, steps: int) -> None:
        """Raises TooHard when the steps are used up."""
        self._left -= steps
        if self._left < 0:
            raise TooHard


class Exact(NamedTuple):
    """top / bottom; bottom is never 0."""

    top: Sum
    bottom: Sum


def sum_of(first: Sum, second: Sum, factor: int = 1) -> Sum:
    """first + factor·second."""
    total = dict(first)
    for monomial, number in second.items():
        total[monomial] = _bounded(total.get(monomial, Fraction(0)) + factor * number)
    return {monomial: number for monomial, number in total.items() if number}


def product(first: Sum, second: Sum, work: Work) -> Sum:
    """first · second."""
    work.spend(len(first) * len(second))
    total: Sum = {}
    for monomial, number in first.items():
        for other, factor in second.items():
            unit, both = in_normal_form([*monomial, *other]) if monomial and other else (Fraction(1), monomial or other)
            total[both] = _bounded(total.get(both, Fraction(0)) + number * factor * unit)
    return {monomial: number for monomial, number in total.items() if number}


def in_normal_form(powers: Sequence[tuple[str, Fraction]]) -> tuple[Fraction, Monomial]:
    """A product of powers as a rational factor and a monomial: 2^(3/2) is 2·2^(1/2), i³ is -i."""
    factor, exponents = Fraction(1), dict[str, Fraction]()
    for atom, exponent in powers:
        exponents[atom] = exponents.get(atom, Fraction(0)) + exponent
    for atom, exponent in exponents.items():
        if atom.isdigit():
            whole = exponent.__floor__()
            factor, exponents[atom] = factor * rational_power(Fraction(int(atom)), whole), exponent - whole
        elif atom == "i":
            turns = (exponent / 2).__floor__()
            factor, exponents[atom] = factor * (-1) ** (turns % 2), exponent - 2 * turns
    return factor, tuple(sorted((atom, exponent) for atom, exponent in exponents.items() if exponent))


def term_power(monomial: Monomial, number: Fraction, exponent: Fraction) -> Sum:
    """(number · monomial)^exponent, for a whole exponent or a positive number and atoms that are positive; raises TooHard for others."""
    if exponent.denominator == 1:
        unit, raised = in_normal_form([(atom, power * exponent) for atom, power in monomial])
        return {raised: _bounded(unit * rational_power(number, exponent.numerator))}
    if number < 0 or any(not (atom.isdigit() or atom in (r"\pi", "e")) for atom, _ in monomial):
        raise TooHard
    primes = [*_factors(number.numerator, 1), *_factors(number.denominator, -1)]
    unit, raised = in_normal_form([(atom, power * exponent) for atom, power in (*monomial, *primes)])
    return {raised: _bounded(unit)}


def rational_power(number: Fraction, exponent: int) -> Fraction:
    """number^exponent; raises TooHard for 0^-1 and for what is too long."""
    bits = max(number.numerator.bit_length(), number.denominator.bit_length())
    if (bits > 1 and bits * abs(exponent) > _MAX_BITS) or (number == 0 and exponent <= 0):
        raise TooHard
    return number**exponent


def is_variable(atom: str) -> bool:
    return not (atom.isdigit() or atom in (r"\pi", "e", "i"))


def _factors(number: int, sign: int) -> list[tuple[str, Fraction]]:
    """The prime factors of a positive number, sign·multiplicity as their powers; raises TooHard when trial division does not find them."""
    found: list[tuple[str, Fraction]] = []
    for prime in _PRIMES:
        if prime * prime > number:
            break
        count = 0
        while number % prime == 0:
            number, count = number // prime, count + 1
        if count:
            found.append((str(prime), Fraction(sign * count)))
    if number >= 997**2:
        raise TooHard
    return found if number == 1 else [*found, (str(number), Fraction(sign))]


def _bounded(number: Fraction) -> Fraction:
    if max(number.numerator.bit_length(), number.denominator.bit_length()) > _MAX_BITS:
        raise TooHard
    return number
