r"""Sets of numbers, written as intervals with ∪, ∩, ∖ or as inequalities in one variable."""

import re
from typing import Any

from megatron_atesd.evaluate.algebra import Algebra, Value
from megatron_atesd.evaluate.answer_parts import RELATIONS, bracket, elements, split_outside
from megatron_atesd.evaluate.formula import Unread, read_formula
from megatron_atesd.evaluate.same_relation import FLIPPED


def same_set(first: tuple[str, str], second: tuple[str, str], algebra: Algebra[Value]) -> bool | None:
    r"""Whether two texts are the same set of numbers, or None unless both are sets.

    first, second: each as its text and the name of a member, x of `x \in S`, or "". Two names must agree.
    """
    try:
        (left, variable), (right, other_variable) = _read_set(first[0], algebra), _read_set(second[0], algebra)
        names = {variable or first[1], other_variable or second[1]} - {""}
        if len(names) > 1:
            return None
        return algebra.same_sets(left, right)
    except (Unread, TypeError, ValueError, NotImplementedError, AttributeError):
        return None


def _read_set(text: str, algebra: Algebra[Value]) -> tuple[Any, str]:
    """The set and the variable, "" when it is not written as a condition."""
    for signs, how in (((r"\cup", r"\lor"), "union"), ((r"\cap", r"\land"), "intersection")):
        parts, found = split_outside(text, signs)
        if found:
            pairs = [_read_set(part, algebra) for part in parts]
            variables = {variable for _, variable in pairs}
            if len(variables) > 1:
                raise Unread(text)
            return algebra.combined(how, [each for each, _ in pairs]), variables.pop()
    parts, found = split_outside(text, (r"\setminus",))
    if found:
        return algebra.combined("difference", [_read_set(part, algebra)[0] for part in parts]), ""
    if split_outside(text, RELATIONS)[1]:
        return _condition(text, algebra)
    return _plain_set(text, algebra), ""


def _plain_set(text: str, algebra: Algebra[Value]) -> Any:
    if text == r"\emptyset":
        return algebra.points([])
    if re.fullmatch(r"\\mathbb\{?R\}?", text):
        return algebra.interval(None, None, True, True)
    around = bracket(text)
    if around is None:
        raise Unread(text)
    builder = split_outside(around.inner, ("|", ":"))[0]
    if around.opening == r"\{" and len(builder) == 2 and re.fullmatch(r"[A-Za-z](?: ?\\in ?\\mathbb\{?R\}?)?", builder[0]):
        return _condition(builder[1], algebra)[0]  # {x | x > 3}
    inner = elements(around.inner, inside=True)
    if around.opening == r"\{" and around.closing == r"\}":
        return algebra.points([read_formula(element, algebra) for element in inner])
    if len(inner) != 2 or around.opening not in "([" or around.closing not in ")]":
        raise Unread(text)
    start = None if re.fullmatch(r"- ?\\infty", inner[0]) else read_formula(inner[0], algebra)
    end = None if re.fullmatch(r"(?:\+ ?)?\\infty", inner[1]) else read_formula(inner[1], algebra)
    return algebra.interval(start, end, around.opening == "(", around.closing == ")")


def _condition(text: str, algebra: Algebra[Value]) -> tuple[Any, str]:
    """The numbers of which a chain such as 1 < x ≤ 2 holds; Unread unless each step compares one variable with a number."""
    parts, signs = split_outside(text, RELATIONS)
    values = [read_formula(part, algebra) for part in parts]
    names = [algebra.variable(value) for value in values]
    variables = set(filter(None, names))
    if len(variables) != 1 or not set(signs) <= {"<", ">", r"\le", r"\ge", r"\ne", "="}:
        raise Unread(text)
    pieces = []
    for at, sign in enumerate(signs):
        number = values[at + 1] if names[at] else values[at]
        if bool(names[at]) == bool(names[at + 1]) or algebra.has_variables(number):
            raise Unread(text)
        turned = FLIPPED.get(sign, sign)
        pieces.append(_half_line(turned, number, bool(names[at]) == (turned == sign), algebra))
    return algebra.combined("intersection", pieces), variables.pop()


def _half_line(sign: str, number: Value, below: bool, algebra: Algebra[Value]) -> Any:
    """The numbers x with `x sign number` if `below`, else with `number sign x`; sign: one of = ≠ < ≤."""
    if sign == "=":
        return algebra.points([number])
    if sign == r"\ne":
        return algebra.combined("difference", [algebra.interval(None, None, True, True), algebra.points([number])])
    return algebra.interval(None, number, True, sign == "<") if below else algebra.interval(number, None, sign == "<", True)
