r"""Which answer a problem asks for: its `answer` field, else the solution's final box, or all boxes of a final list.

Teacher and grading take the same answer, so a field that contradicts the solution is refused. Whether two answers mean the same is
decided by their writing alone: numbers by value, all else after taking away what does not matter in print. What that cannot decide is told.
"""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from megatron_atesd.data.boxes import boxes, final_boxes, last_boxed
from megatron_atesd.errors import DataError

Warn = Callable[[str, str], None]  # what holds, and for which values

SEVERAL = "several boxes differ and there is no `answer`, so this is taken"
FIELD_AND_BOX = "the `answer` and the solution's final box may differ; the `answer` is what the teacher is shown and what is graded"

_SHOWN = 60  # characters of an answer in a message
_NO_MEANING = re.compile(r"\\(?:left|right|displaystyle|q?quad)(?![A-Za-z])|\\[()\[\],;:! ]|[$~]|(?<!\d)\s+|\s+(?!\d)")
_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox)\s*\{([^{}]*)\}")
_SHORT_FRACTION = re.compile(r"\\frac\s*(?:\{([^{}]*)\}|(\w))\s*(?:\{([^{}]*)\}|(\w))")
_GROUPED = re.compile(r"(?<=\d)(?:,|\{,\}|\\[,!]|\s)(?=\d{3}(?!\d))")
_NAME = re.compile(r"[a-z](?:_(?:\w|\{\w+\}))?=")
_LIST = re.compile(r",|;|or|and|或|和")
_DECIMAL = r"\d+(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(rf"([+-]?)\s*(?:({_DECIMAL})|({_DECIMAL})\s*/\s*({_DECIMAL})|\\frac\{{\s*({_DECIMAL})\s*\}}\{{\s*({_DECIMAL})\s*\}})")
_LONGEST_NUMBER = 1000  # digits


def chosen_answer(field: str, solution: str, warn: Warn) -> str:
    """The answer of a problem; field: its `answer`, "" when there is none.

    Calls `warn` when the field may contradict the final box, or when there is no field and the boxes differ.
    Raises DataError when there is neither a field nor a box, and when the two contradict each other.
    """
    every = [box.content.strip() for box in boxes(solution)]
    final = final_answer(solution)
    if field:
        answer = last_boxed(field) or field
        if final and not same_writing(answer, final):
            _refuse_contradiction(answer, every)
            warn(FIELD_AND_BOX, f"`{_short(answer)}` and `{_short(final)}`")
        return answer
    if not final:
        raise DataError("no `answer`, and the solution has no \\boxed{…}: add one of the two")
    if len(different := _different(every)) > 1:
        warn(SEVERAL, f"`{_short(final)}` of {_short(', '.join(f'`{content}`' for content in different))}")
    return final


def final_answer(solution: str) -> str:
    """The content of the solution's final box, or of all boxes of a final list; "" without a box."""
    return ", ".join(_different([box.content.strip() for box in final_boxes(solution)]))


def _different(contents: Sequence[str]) -> list[str]:
    """One of each meaning: the last one."""
    last: dict[object, str] = {}
    for content in reversed(contents):
        last.setdefault(_meaning(content), content)
    return list(last.values())[::-1]


def _refuse_contradiction(answer: str, every: Sequence[str]) -> None:
    if contradict(answer, every[-1]) and not any(same_writing(answer, content) for content in every):
        values = f"`{_short(answer)}` and `{_short(every[-1])}`"
        raise DataError(f"`answer` and the solution's last \\boxed{{…}} contradict each other ({values}): mend the wrong one")


def _short(answer: str) -> str:
    return answer if len(answer) <= _SHOWN else answer[: _SHOWN - 1] + "…"


def same_writing(one: str, other: str) -> bool:
    r"""Whether two answers are the same number or, spaces and the like aside, the same list of texts: `073` and `73`."""
    return _meaning(one) == _meaning(other)


def _meaning(answer: str) -> Fraction | tuple[str, ...]:
    """The number that an answer is written as, else the parts of its list in alphabetical order."""
    plain = _plain(answer)
    value = _value(plain)
    return tuple(sorted(_LIST.split(plain))) if value is None else value


def contradict(one: str, other: str) -> bool:
    """Whether two answers are surely different: two numbers that no rounding makes equal, or two single letters."""
    if "," in one + other:
        return False  # a list, digits in groups, or a decimal comma
    one, other = _plain(one), _plain(other)
    value, other_value = _value(one), _value(other)
    if value is not None and other_value is not None:
        return abs(value - other_value) > max(_precision(one), _precision(other))
    return one != other and all(len(text) == 1 and text.isalpha() for text in (one, other))


def _plain(answer: str) -> str:
    """The answer without what makes no difference: marks of formulas, fonts, sizes of brackets, space, names in front, capitals."""
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", answer).replace("−", "-").replace("\\$", "").replace("\\%", "%")
    while (unwrapped := _WRAPPER.sub(r"\1", text)) != text:
        text = unwrapped
    text = _SHORT_FRACTION.sub(lambda m: f"\\frac{{{m[1] or m[2]}}}{{{m[3] or m[4]}}}", text)
    text = _NO_MEANING.sub("", _GROUPED.sub("", text)).casefold().rstrip(".")
    return ",".join(_NAME.sub("", part, count=1) if _NAME.match(part) else part for part in _LIST.split(text))


def _value(plain: str) -> Fraction | None:
    """The number that an answer is written as; None for anything else."""
    found = _NUMBER.fullmatch(plain) if len(plain) <= _LONGEST_NUMBER else None
    if found is None:
        return None
    sign, whole, *fraction = found.groups()
    above, below = (Fraction(part) for part in ([whole, "1"] if whole else filter(None, fraction)))
    return None if below == 0 else above / below * (-1 if sign == "-" else 1)


def _precision(plain: str) -> Fraction:
    """One unit of the last place of a decimal, to which it may be rounded; 0 for integers and fractions."""
    _, point, places = plain.partition(".")
    return Fraction(1, 10 ** len(places)) if point and places.isdigit() else Fraction(0)
