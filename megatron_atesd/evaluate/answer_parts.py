r"""How an answer is built: elements of a list, brackets, both signs of ±, sides of a relation. Texts in, texts out; all are normalised."""

import re
from typing import NamedTuple

from megatron_atesd.evaluate.answer_text import flat

_PIECE = re.compile(r"\\[A-Za-z]+|\\.|.", re.DOTALL)
_OPENING = frozenset(["(", "[", "{", r"\{", r"\langle", r"\lfloor", r"\lceil"])
_CLOSING = frozenset([")", "]", "}", r"\}", r"\rangle", r"\rfloor", r"\rceil"])
_WORD_BETWEEN = re.compile(
    r",?\s*(?:\\text\{,? ?(?P<text>and|or),?\}|(?<![A-Za-z\\])(?P<word>and|or)(?![A-Za-z])"
    r"|\\(?P<sign>vee|wedge|lor|land)(?![A-Za-z])|(?<!\w)(?P<other>или|и)(?!\w)|(?P<han>或者?|和))\s*"
)
_OR = re.compile(r"\\text\{\W*or\W*\}|or|\\vee|\\lor|или|或者?")
_GROUPED = re.compile(r"[+-]?[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_SIGNS = re.compile(r"\\(pm|mp)(?![A-Za-z])")
RELATIONS = ("=", "<", ">", r"\le", r"\ge", r"\ne", r"\in", r"\approx")
SET_SIGNS = re.compile(r"\\(?:cup|cap|setminus|mathbb|ne|le|ge|lor|land|emptyset)(?![A-Za-z])|[<>]")
_NAME = re.compile(
    r"(?>\\text\{[^{}]*\}|\\(?!frac|sqrt|sin|cos|tan|log|ln|exp|binom|pi|infty|cdot|times)[A-Za-z]++"
    r"|[A-Za-z]|[0-9_'(){},| \[\]])++"  # without a way back: otherwise \abc is also \a, b, c
)


class Bracket(NamedTuple):
    """An answer inside one pair of brackets."""

    opening: str
    closing: str
    inner: str


def with_words_as_signs(text: str) -> str:
    r"""The words *and*, *or* as `\land`, `\lor`."""
    return _WORD_BETWEEN.sub(_as_sign, text)


def _as_sign(found: re.Match[str]) -> str:
    return r" \lor " if _OR.fullmatch(found[0].strip(", ")) else r" \land "


def split_outside(text: str, separators: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The parts of `text` between separators that stand outside every bracket, and those separators."""
    parts, found, depth, start = [], [], 0, 0
    for piece in _PIECE.finditer(text):
        depth += (piece[0] in _OPENING) - (piece[0] in _CLOSING)
        if depth == 0 and piece[0] in separators:
            parts.append(text[start : piece.start()].strip())
            found.append(piece[0])
            start = piece.end()
    return [*parts, text[start:].strip()], found


def bracket(text: str) -> Bracket | None:
    """The brackets around the whole text, of any two kinds, or None."""
    pieces = list(_PIECE.finditer(text))
    if len(pieces) < 2 or pieces[0][0] not in _OPENING or pieces[0][0] == "{" or pieces[-1][0] not in _CLOSING:
        return None
    depth = 0
    for piece in pieces[:-1]:
        depth += (piece[0] in _OPENING) - (piece[0] in _CLOSING)
        if depth == 0:
            return None
    return Bracket(pieces[0][0], pieces[-1][0], text[pieces[0].end() : pieces[-1].start()].strip())


def elements(text: str, inside: bool = False) -> list[str]:
    r"""What a list enumerates, with both values of a `\pm`; one element for what is no list.

    inside: the text stands in brackets, where `1,234` is two numbers.
    """
    for separators in ((";", r"\lor", r"\land"), (",",)):
        parts, found = split_outside(text, separators)
        if found and (inside or not _GROUPED.fullmatch(text)):
            return [element for part in parts for element in elements(part, inside)]
    return both_signs(text)


def both_signs(text: str) -> list[str]:
    r"""`\frac{1 \pm \sqrt5}{2}` as the two values it stands for; a text without `\pm` as it is. Several signs go together."""
    if not _SIGNS.search(text):
        return [text]
    upper = _SIGNS.sub(lambda sign: "+" if sign[1] == "pm" else "-", text)
    lower = _SIGNS.sub(lambda sign: "-" if sign[1] == "pm" else "+", text)
    return [side.strip().removeprefix("+").strip() for side in (upper, lower)]


def without_approximation(text: str) -> str:
    r"""`\sqrt2` of `\sqrt2 \approx 1.41`; `x \approx 2.7` stays."""
    parts, signs = split_outside(text, RELATIONS)
    if len(signs) > 0 and signs[-1] == r"\approx" and not (len(signs) == 1 and is_name(parts[0])):
        return text[: text.rindex(r"\approx")].strip()
    return text


def named(text: str) -> tuple[str, str]:
    r"""Name and value of `x = 5`, `f(x) = …`, `(x, y) = (1, 2)`, `x \in S`, or an empty name and the text.

    Of `x = 2 + 3 = 5` the value is 5.
    """
    parts, signs = split_outside(text, RELATIONS)
    if any(len(elements(middle)) > 1 for middle in parts[1:-1]):
        return "", text  # x = 1, y = 2
    if signs and set(signs) <= {"=", r"\in", r"\approx"} and is_name(parts[0]) and parts[-1]:
        return parts[0], parts[-1]
    return "", text


def member(text: str) -> str:
    r"""x of `x \in S`, else ""."""
    parts, signs = split_outside(text, (r"\in",))
    return flat(parts[0]) if signs else ""


def is_name(text: str) -> bool:
    """Whether a text can be the name of a value: `x`, `AB`, `P(A)`, `f(x)`, `(x, y)`; not `2x`, `x+y` or `x^2`."""
    return bool(_NAME.fullmatch(text)) and bool(re.search("[A-Za-z]", text)) and not text[:1].isdigit()
