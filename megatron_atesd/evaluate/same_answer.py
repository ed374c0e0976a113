r"""Whether two answers mean the same, kind by kind.

Each view below decides about one kind of answer, or gives None for "not my kind". What no view reads is right only as equal text.
Formulas are read in an algebra. With sympy's a hostile answer may take any time and any memory: only the worker process does that.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from megatron_atesd.evaluate.algebra import Algebra
from megatron_atesd.evaluate.answer_kinds import Quantity, based_number, choice, congruence, is_known, quantity
from megatron_atesd.evaluate.answer_parts import (
    RELATIONS,
    SET_SIGNS,
    Bracket,
    bracket,
    elements,
    is_name,
    member,
    named,
    split_outside,
    with_words_as_signs,
    without_approximation,
)
from megatron_atesd.evaluate.answer_text import FUNCTIONS, flat
from megatron_atesd.evaluate.exact_numbers import exact_number
from megatron_atesd.evaluate.formula import Unread, read_formula
from megatron_atesd.evaluate.same_relation import same_relation
from megatron_atesd.evaluate.same_set import same_set

_FUNCTION = re.compile(r"\\(?:" + "|".join(sorted(FUNCTIONS)) + ")(?![A-Za-z])")
_MATRIX = re.compile(r"[(\[]?\s*\\begin\{([pbBvV]?matrix|smallmatrix|array)\}(?:\{[^}]*\})?(.*)\\end\{\1\}\s*[)\]]?")

_LETTERS = re.compile(r"[A-Z](?:\s*[A-Z])+|[ivx]{2,}")  # HTH, ABDC, IX, iv: their order counts, no product


class Comparison:
    """Compares one pair of answers, and the parts that they are made of."""

    def __init__(self, algebra: Algebra[Any], on_part: Callable[[], None] = lambda: None) -> None:
        """on_part: called at every comparison of two parts, to count the work; what it raises ends the comparison."""
        self.algebra = algebra
        self._on_part = on_part

    def same(self, answer: str, gold: str) -> bool:
        """Whether two normalised texts (`answer_text.normalised`) mean the same."""
        self._on_part()
        if not answer or not gold:
            return False
        if flat(answer) == flat(gold):
            return True
        if r"\dots" in answer or r"\dots" in gold:
            return False
        if _LETTERS.fullmatch(answer) and _LETTERS.fullmatch(gold):
            return "".join(answer.split()) == "".join(gold.split())
        answer, gold = (without_approximation(with_words_as_signs(text)) for text in (answer, gold))
        for view in (_choices, _numbers, _bases, _congruences, _ratios, _quantities, _matrices, _sets, _lists, _brackets, _relations):
            verdict = view(self, answer, gold)
            if verdict is not None:
                return verdict
        try:
            return self.algebra.same(read_formula(answer, self.algebra), read_formula(gold, self.algebra))
        except Unread:
            return False


def _choices(compare: Comparison, answer: str, gold: str) -> bool | None:
    chosen, right = choice(answer), choice(gold)
    if chosen and right:
        if chosen[0] != right[0]:
            return False
        return not (chosen[1] and right[1]) or compare.same(chosen[1], right[1])
    if right and right[1]:
        return compare.same(answer, right[1])
    return compare.same(chosen[1], gold) if chosen and chosen[1] else None


def _numbers(compare: Comparison, answer: str, gold: str) -> bool | None:
    value, right = exact_number(answer), exact_number(gold)
    if value is None or right is None:
        return None
    return value == right or (None if re.search("[eE]", answer + gold) else False)  # 2e-1 may also be a formula with e


def _bases(compare: Comparison, answer: str, gold: str) -> bool | None:
    based, right = based_number(answer), based_number(gold)
    if based and right:
        return based == right
    if based is None and right is None:
        return None
    digits, base = based or right or ("", "")
    return base == "10" and compare.same(digits, gold if based else answer)


def _congruences(compare: Comparison, answer: str, gold: str) -> bool | None:
    if not re.search(r"\\(?:equiv|pmod)(?![A-Za-z])", answer + gold):
        return None
    stated, right = congruence(answer), congruence(gold)
    if stated is None or right is None:
        return None if min(len(elements(answer)), len(elements(gold))) > 1 else False
    if not compare.same(stated.modulus, right.modulus) or (stated.left and right.left and not compare.same(stated.left, right.left)):
        return False
    modulus = exact_number(right.modulus)
    residues = [[exact_number(element) for element in elements(side.right)] for side in (stated, right)]
    if not modulus or any(residue is None for residue in (*residues[0], *residues[1])):
        return compare.same(stated.right, right.right)
    ours, theirs = ({residue % modulus for residue in side if residue is not None} for side in residues)
    return ours == theirs


def _ratios(compare: Comparison, answer: str, gold: str) -> bool | None:
    """Times and ratios, 2:45 and 3:2: part by part, never as a fraction."""
    ours, theirs = (split_outside(text, (":",))[0] for text in (answer, gold))
    if len(ours) == len(theirs) == 1:
        return None
    return len(ours) == len(theirs) and all(map(compare.same, ours, theirs))


def _quantities(compare: Comparison, answer: str, gold: str) -> bool | None:
    """A unit may be missing on one side; two units must agree. 50% is 0.5; it is 50 as well, for no share is above 1."""
    measured, right = (_numeric_quantity(compare, text) for text in (answer, gold))
    if not measured.unit and not right.unit:
        return None if (measured.value, right.value) == (answer, gold) else compare.same(measured.value, right.value)  # 5 million
    if measured.unit and right.unit:
        return measured.unit == right.unit and compare.same(measured.value, right.value)
    if "%" in (measured.unit, right.unit):
        percent, other = (measured.value, right.value) if measured.unit else (right.value, measured.value)
        number = exact_number(percent)
        as_number = number is not None and abs(number) > 1 and compare.same(percent, other)
        return as_number or compare.same(f"\\frac{{{percent}}}{{100}}" if number is None else str(number / 100), other)
    return compare.same(measured.value, right.value)


def _numeric_quantity(compare: Comparison, text: str) -> Quantity:
    """The quantity, if its value is a number or its unit one of measurement; a noun behind a variable is part of the text."""
    found = quantity(text)
    if not found.unit or exact_number(found.value) is not None or ":" in found.value:
        return found
    if found.unit == "degree" and _FUNCTION.search(found.value):
        return Quantity(text, "")  # the degrees of \sin 30^\circ
    try:
        value = read_formula(found.value, compare.algebra)
    except Unread:
        return found if found.value != text and _is_choice_of_signs(found.value) else Quantity(text, "")
    return found if not compare.algebra.has_variables(value) or is_known(found.unit) else Quantity(text, "")


def _is_choice_of_signs(value: str) -> bool:
    return len(elements(value)) == 2 and r"\pm" in value


def _matrices(compare: Comparison, answer: str, gold: str) -> bool | None:
    found, right = _MATRIX.fullmatch(answer), _MATRIX.fullmatch(gold)
    if found is None or right is None:
        return None
    if (found[1][0] in "vV" or right[1][0] in "vV") and found[1] != right[1]:
        return False  # a determinant or a norm
    rows, right_rows = ([row.split("&") for row in re.split(r"\\\\", side[2].strip().removesuffix(r"\\"))] for side in (found, right))
    cells, right_cells = ([cell.strip() for row in side for cell in row] for side in (rows, right_rows))
    return [len(row) for row in rows] == [len(row) for row in right_rows] and all(map(compare.same, cells, right_cells))


def _sets(compare: Comparison, answer: str, gold: str) -> bool | None:
    (name, value), (right_name, right_value) = named(answer), named(gold)
    if name and right_name and flat(name) != flat(right_name):
        return None
    return (
        same_set((value, member(answer)), (right_value, member(gold)), compare.algebra) if SET_SIGNS.search(value + right_value) else None
    )


def _lists(compare: Comparison, answer: str, gold: str) -> bool | None:
    r"""`1, 2` in any order, also against `\{1, 2\}` and, then in order, against `(1, 2)`."""
    (name, value), (right_name, right_value) = _named_list(answer), _named_list(gold)
    if name and right_name and flat(name) != flat(right_name):
        return None
    ours, theirs = elements(value), elements(right_value)
    if len(ours) == len(theirs) == 1:
        return None
    around, right_around = (bracket(text) if len(side) == 1 else None for text, side in ((value, ours), (right_value, theirs)))
    for outside, inside in ((ours, right_around), (theirs, around)):
        if inside and len(outside) > 1 and inside.opening in (r"\{", "("):
            listed = elements(inside.inner, inside=True)
            pair = (outside, listed) if outside is ours else (listed, outside)
            return _same_unordered(compare, *pair) if inside.opening == r"\{" else _same_ordered(compare, *pair)
    ordered = _as_ordered_values(ours, theirs)
    return _same_ordered(compare, *ordered) if ordered else _same_unordered(compare, ours, theirs)


def _named_list(text: str) -> tuple[str, str]:
    r"""As `named`, for a text with one name in front only: `x = 1, 2` and not `x = 1, y = 2`."""
    several = any(named(part)[0] for part in elements(text)[1:]) or len(split_outside(text, RELATIONS)[1]) != 1
    return ("", text) if several else named(text)


def _as_ordered_values(ours: list[str], theirs: list[str]) -> tuple[list[str], list[str]] | None:
    """Both without names when one side names each of its values differently, `x = 1, y = 2`, and the other none."""
    names, right_names = ([flat(named(element)[0]) for element in side] for side in (ours, theirs))
    for named_side, bare_side in ((names, right_names), (right_names, names)):
        if all(named_side) and len(set(named_side)) == len(named_side) > 1 and not any(bare_side):
            return [named(element)[1] for element in ours], [named(element)[1] for element in theirs]
    return None


def _same_ordered(compare: Comparison, ours: Sequence[str], theirs: Sequence[str]) -> bool:
    ours, theirs = [named(element)[1] for element in ours], [named(element)[1] for element in theirs]
    return len(ours) == len(theirs) and all(map(compare.same, ours, theirs))


def _same_unordered(compare: Comparison, ours: Sequence[str], theirs: Sequence[str]) -> bool:
    left = list(theirs)
    if len(ours) != len(left):
        return False
    for element in ours:
        match = next((place for place, other in enumerate(left) if compare.same(element, other)), None)
        if match is None:
            return False
        left.pop(match)
    return True


def _brackets(compare: Comparison, answer: str, gold: str) -> bool | None:
    (name, value), (right_name, right_value) = named(answer), named(gold)
    if name and right_name and flat(name) != flat(right_name):
        return None
    around, right_around = bracket(value), bracket(right_value)
    kinds = [_bracket_kind(side) for side in (around, right_around)]
    if around is None or right_around is None or None in kinds:
        return _one_bracket(compare, value, right_value, kinds)
    if kinds[0] != kinds[1]:
        return False
    ours, theirs = (elements(side.inner, inside=True) for side in (around, right_around))
    return (
        _same_unordered(compare, ours, theirs) if kinds[0] == "set" else len(ours) == len(theirs) and all(map(compare.same, ours, theirs))
    )


def _one_bracket(compare: Comparison, value: str, right_value: str, kinds: list[str | None]) -> bool | None:
    """A set of one element is that element; a tuple or interval is nothing else."""
    if kinds == [None, None]:
        return None
    ours, theirs = (
        elements(side.inner, inside=True) if kind == "set" and (side := bracket(text)) else [text]
        for text, kind in zip((value, right_value), kinds, strict=True)
    )
    return (
        len(ours) == len(theirs) == 1
        and {*kinds} == {"set", None}
        and r"\emptyset" not in ours + theirs
        and compare.same(ours[0], theirs[0])
    )


def _bracket_kind(around: Bracket | None) -> str | None:
    r"""`set`, or the two brackets of a tuple or interval; None for what is no list, such as `(x + 1)`."""
    if around is None:
        return None
    if around.opening == r"\{":
        return "set" if around.closing == r"\}" else None
    opening, closing = around.opening.replace(r"\langle", "("), around.closing.replace(r"\rangle", ")")
    return opening + closing if len(elements(around.inner, inside=True)) > 1 and opening in "([" and closing in ")]" else None


def _relations(compare: Comparison, answer: str, gold: str) -> bool | None:
    (name, value), (right_name, right_value) = named(answer), named(gold)
    sides = [split_outside(text, RELATIONS) for text in (answer, gold)]
    if not sides[0][1] and not sides[1][1]:
        return None
    if (name and not sides[1][1]) or (right_name and not sides[0][1]) or (name and flat(name) == flat(right_name)):
        return compare.same(value, right_value)
    for (parts, signs), other in ((sides[0], gold), (sides[1], answer)):
        if signs == ["="] and not split_outside(other, RELATIONS)[1]:
            return _other_side(compare, parts, other)
    return same_relation(answer, gold, compare.algebra)


def _other_side(compare: Comparison, parts: list[str], other: str) -> bool:
    """`5 = x` or `2 + 3 = 5` against a bare value."""
    if is_name(parts[1]):
        return compare.same(parts[0], other)
    return compare.same(parts[0], parts[1]) and compare.same(parts[1], other)
