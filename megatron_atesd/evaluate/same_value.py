"""Whether two sympy expressions have the same value: exactly where sympy sees it, else by 100 digits, with variables at several points.

Differences are measured relative to the values, so 10^-70 and 10^-71 differ.
"""

from collections.abc import Iterator, Sequence

import sympy
from sympy import Basic, Expr, Rational

_DIGITS = 100
_ENOUGH_POINTS = 3
# Whole numbers for n! and (-1)^n; both signs for |x|; between -1 and 1 for domains such as arcsin's.
_POINTS = [
    [3, 5, 7, 4],
    ["7/5", "13/11", "3/17", "19/6"],
    [-2, "3/2", "-5/3", 4],
    ["5/2", "-9/7", 3, "-11/4"],
    ["2/7", "3/11", "5/13", "1/6"],
    ["-3/8", "4/9", "-2/5", "3/10"],
    ["5/8", "-1/7", "6/11", "-7/9"],
    [-4, -7, -3, -5],
]
_FAR = [["20011/3", "-30011/7", "40009/9", "-50021/11"], ["-20011/3", "30011/7", "-40009/9", "50021/11"]]  # beyond the bends of |x - 100|


def same_value(first: Expr, second: Expr) -> bool:
    """Whether both are equal, as numbers or as functions of their variables where both are defined."""
    if first.has(sympy.nan, sympy.zoo) or second.has(sympy.nan, sympy.zoo):
        return False
    if first == second:
        return True
    difference = first - second
    if difference.is_Rational or not (first.is_finite is not False and second.is_finite is not False):
        return difference == 0
    symbols = sorted(first.free_symbols | second.free_symbols, key=str)
    if not symbols:
        return _same_number(first, second)
    return _same_function(first, second, symbols)


def proportional(first: Expr, second: Expr, positive: bool) -> bool:
    """Whether first = c·second for a number c ≠ 0 (c > 0 if `positive`): then both are 0 (or both below 0) at the same places."""
    if first == 0 or second == 0:
        return False
    symbols = sorted(first.free_symbols | second.free_symbols, key=str)
    for point in _points(first, second, symbols):
        here, there = first.subs(point), second.subs(point)
        digits, other = here.evalf(), there.evalf()
        if _is_finite_real(digits) and _is_finite_real(other) and digits != 0 and other != 0:
            if positive and digits / other < 0:
                return False
            return same_value(first * there, second * here)
    return False


def _points(first: Expr, second: Expr, symbols: Sequence[Basic]) -> Iterator[list[tuple[Basic, Expr]]]:
    bent = any(value.has(sympy.Abs, sympy.floor, sympy.ceiling, sympy.Max, sympy.Min) for value in (first, second))
    for values in _POINTS + (_FAR if bent else []):
        yield [(symbol, Rational(values[place % 4]) + place // 4) for place, symbol in enumerate(symbols)]


def _same_function(first: Expr, second: Expr, symbols: Sequence[Basic]) -> bool:
    complex_allowed = first.has(sympy.I) or second.has(sympy.I)
    compared = 0
    for point in _points(first, second, symbols):
        here, there = first.subs(point), second.subs(point)
        digits = _digits(here), _digits(there)
        if not complex_allowed and not all(map(_is_finite_real, digits)):
            continue
        if not _agree(here, there, *digits):
            return False
        compared += 1
    return compared >= _ENOUGH_POINTS or (first - second).equals(0) is True


def _is_finite_real(number: Expr) -> bool:
    return bool(number.is_number and number.is_finite and number.is_real)


def _digits(value: Expr) -> Expr:
    return value.evalf(_DIGITS, maxn=4 * _DIGITS)


def _same_number(first: Expr, second: Expr) -> bool:
    return _agree(first, second, _digits(first), _digits(second))


def _agree(first: Expr, second: Expr, number: Expr, other: Expr) -> bool:
    """Whether two expressions without variables are equal; number, other: their digits."""
    difference = first - second
    if difference.is_Rational:
        return difference == 0
    size = max(abs(number), abs(other))
    if size < Rational(1, 10**_DIGITS):  # perhaps a 0 in disguise, which has no leading digits
        return difference.equals(0) is True
    return bool(abs(number - other) <= size / 10 ** (_DIGITS - 10))
