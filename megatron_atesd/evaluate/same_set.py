r"""Sets of numbers, written as intervals with ∪, ∩, ∖ or as inequalities in one variable, and relations in several."""

import re
from typing import Any

import sympy
from sympy import Expr, Interval, Set, Symbol

from megatron_atesd.evaluate.answer_parts import RELATIONS, bracket, elements, split_outside
from megatron_atesd.evaluate.formula import Unread, read_formula
from megatron_atesd.evaluate.same_value import proportional, same_value

_SET_SIGNS = re.compile(r"\\(?:cup|cap|setminus|mathbb|ne|le|ge|lor|land|emptyset)(?![A-Za-z])|[<>]")
_FLIPPED = {">": "<", r"\ge": r"\le"}


def same_set(first: str, second: str) -> bool | None:
    """Whether two texts are the same set of numbers, or None unless both are sets and at least one is written with a sign for sets."""
    if not _SET_SIGNS.search(first + second):
        return None
    try:
        (left, variable), (right, other_variable) = _read_set(first), _read_set(second)
        if variable and other_variable and variable != other_variable:
            return None
        return left == right or _same_pieces(left, right) or bool(left.symmetric_difference(right).is_empty)
    except (Unread, TypeError, ValueError, NotImplementedError, AttributeError):
        return None


def same_relation(first: str, second: str) -> bool:
    """Whether two equations or inequalities say the same, as in y = 2x + 1 and 2x - y + 1 = 0."""
    try:
        ours, theirs = _steps(first), _steps(second)
    except Unread:
        return False
    return len(ours) == len(theirs) and all(
        any(sign == other_sign and _same_step(sign, value, other) for other_sign, other in theirs) for sign, value in ours
    )


def _same_step(sign: str, value: Expr, other: Expr) -> bool:
    return same_value(value, other) or proportional(value, other, positive=sign in ("<", r"\le"))


def _steps(text: str) -> list[tuple[str, Expr]]:
    """The steps of a chain of relations, each as its sign and left side minus right side; `>` is turned round."""
    parts, signs = split_outside(text, RELATIONS)
    if not signs or not set(signs) <= {"=", "<", ">", r"\le", r"\ge", r"\ne"}:
        raise Unread(text)
    values = [read_formula(part) for part in parts]
    steps = []
    for sign, left, right in zip(signs, values, values[1:], strict=False):
        steps.append((_FLIPPED[sign], right - left) if sign in _FLIPPED else (sign, left - right))
    return steps


def _read_set(text: str) -> tuple[Set, Symbol | None]:
    """The set and, when it is written as a condition, the variable."""
    for signs, combine in (((r"\cup", r"\lor"), sympy.Union), ((r"\cap", r"\land"), sympy.Intersection)):
        parts, found = split_outside(text, signs)
        if found:
            pairs = [_read_set(part) for part in parts]
            variables = {variable for _, variable in pairs}
            if len(variables) > 1:
                raise Unread(text)
            return combine(*(each for each, _ in pairs)), variables.pop()
    parts, found = split_outside(text, (r"\setminus",))
    if found:
        first, *others = [_read_set(part)[0] for part in parts]
        return sympy.Complement(first, sympy.Union(*others)), None
    if split_outside(text, RELATIONS)[1]:
        return _condition(text)
    return _plain_set(text), None


def _plain_set(text: str) -> Set:
    if text == r"\emptyset":
        return sympy.S.EmptySet
    if re.fullmatch(r"\\mathbb\{?R\}?", text):
        return sympy.S.Reals
    around = bracket(text)
    if around is None:
        raise Unread(text)
    builder = split_outside(around.inner, ("|", ":"))[0]
    if around.opening == r"\{" and len(builder) == 2 and re.fullmatch(r"[A-Za-z](?: ?\\in ?\\mathbb\{?R\}?)?", builder[0]):
        return _condition(builder[1])[0]  # {x | x > 3}
    inner = elements(around.inner, inside=True)
    if around.opening == r"\{" and around.closing == r"\}":
        return sympy.FiniteSet(*(read_formula(element) for element in inner))
    if len(inner) != 2 or around.opening not in "([" or around.closing not in ")]":
        raise Unread(text)
    start, end = (read_formula(element) for element in inner)
    return Interval(start, end, around.opening == "(", around.closing == ")")


def _condition(text: str) -> tuple[Set, Symbol]:
    """The numbers of which a chain such as 1 < x ≤ 2 holds; Unread unless each step compares one variable with a number."""
    parts, signs = split_outside(text, RELATIONS)
    values = [read_formula(part) for part in parts]
    variables = {value for value in values if isinstance(value, Symbol)}
    if len(variables) != 1 or not set(signs) <= {"<", ">", r"\le", r"\ge", r"\ne", "="}:
        raise Unread(text)
    (variable,) = variables
    pieces = []
    for sign, left, right in zip(signs, values, values[1:], strict=False):
        if (left == variable) == (right == variable) or (left.free_symbols | right.free_symbols) != {variable}:
            raise Unread(text)
        pieces.append(_half_line(sign, left, right, variable))
    return sympy.Intersection(*pieces), variable


def _half_line(sign: str, left: Expr, right: Expr, variable: Symbol) -> Set:
    if sign in _FLIPPED:
        sign, left, right = _FLIPPED[sign], right, left
    end = right if left == variable else left
    if sign in ("=", r"\ne"):
        return sympy.FiniteSet(end) if sign == "=" else sympy.Complement(sympy.S.Reals, sympy.FiniteSet(end))
    return Interval(-sympy.oo, end, True, sign == "<") if left == variable else Interval(end, sympy.oo, sign == "<", True)


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
