"""Equations and inequalities that say the same, such as y = 2x + 1 and 2x - y + 1 = 0."""

from fractions import Fraction

from megatron_atesd.evaluate.algebra import Algebra, Value
from megatron_atesd.evaluate.answer_parts import RELATIONS, split_outside
from megatron_atesd.evaluate.formula import Unread, read_formula

FLIPPED = {">": "<", r"\ge": r"\le"}


def same_relation(first: str, second: str, algebra: Algebra[Value]) -> bool:
    """Whether two equations or inequalities say the same, as in y = 2x + 1 and 2x - y + 1 = 0."""
    try:
        ours, theirs = _steps(first, algebra), _steps(second, algebra)
    except Unread:
        return False
    return len(ours) == len(theirs) and all(
        any(sign == other_sign and _same_step(sign, value, other, algebra) for other_sign, other in theirs) for sign, value in ours
    )


def _same_step(sign: str, value: Value, other: Value, algebra: Algebra[Value]) -> bool:
    return algebra.same(value, other) or algebra.proportional(value, other, positive=sign in ("<", r"\le"))


def _steps(text: str, algebra: Algebra[Value]) -> list[tuple[str, Value]]:
    """The steps of a chain of relations, each as its sign and left side minus right side; `>` is turned round."""
    parts, signs = split_outside(text, RELATIONS)
    if not signs or not set(signs) <= {"=", "<", ">", r"\le", r"\ge", r"\ne"}:
        raise Unread(text)
    values = [read_formula(part, algebra) for part in parts]
    steps = []
    for sign, left, right in zip(signs, values, values[1:], strict=False):
        low, high = (left, right) if sign in FLIPPED else (right, left)
        steps.append((FLIPPED.get(sign, sign), algebra.plus(high, algebra.times(algebra.number(Fraction(-1)), low))))
    return steps
