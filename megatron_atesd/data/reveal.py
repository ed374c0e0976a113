r"""How much of a reference solution the teacher sees: (solution, α) → revealed prefix (ATESD, teacher context).

A reference y* = (r_1 … r_m, boxed answer) is cut into segments r_i, and the teacher sees the first floor(α·m) of them, or the
nearest number, and always the boxed answer. The papers do not define a segment. Here: steps (blank lines, and lines that
open with a step marker), else sentences and lines, else words; the first of these that yields m ≥ 2.

The final answer is not a segment when it stands on lines of its own (`\boxed{5}`, `$$\boxed{5}$$`): it is what every exposure
shows. When it sits inside a sentence, as in "so x is $\boxed{5}$.", that sentence is a segment like every other, hidden until
its turn: α=0 shows only the bare `\boxed{5}`, and α=1 the whole solution, after which the answer is shown again.
"""

import math
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from megatron_atesd.data.problems import last_boxed_span
from megatron_atesd.records import Problem

Rounding = Literal["floor", "nearest"]

_MARKER = r"(?:\*\*)?(?:step\s+\d+|\d+[.)]\s|\(\d+\)\s|#{1,6}\s)"
_STEP_CUT = re.compile(rf"\n[^\S\n]*\n\s*|\n(?=[^\S\n]*{_MARKER})", re.IGNORECASE)
_SENTENCE_CUT = re.compile(r"[.!?][\"')\]*$]*\s+|\n\s*")
_WORD_CUT = re.compile(r"\s+")
_OPENING = " \t\r\n$*\\[("  # what may stand around a final answer that has its lines for itself
_CLOSING = _OPENING + ".])"
_TOLERANCE = 1e-9  # 0.29·100 must count as 29, though in floats it is a little less


@dataclass(frozen=True)
class Reference:
    r"""A reference in parts: "".join(segments) + tail is the whole text; `tail` is "" when the answer sits inside a segment."""

    segments: tuple[str, ...]
    tail: str
    answer: str  # the bare \boxed{…}


@dataclass(frozen=True)
class Revealed:
    """What one exposure shows: a prefix of the reference, the boxed answer, and the counts behind them."""

    text: str
    answer: str
    revealed: int
    segments: int


def reference_text(problem: Problem) -> str:
    r"""The whole reference solution; `\boxed{answer}` is appended as a last line where the solution has no box."""
    if last_boxed_span(problem.solution):
        return problem.solution
    return f"{problem.solution.rstrip()}\n\\boxed{{{problem.answer}}}"


def split_reference(problem: Problem) -> Reference:
    """Cut the reference into segments and the final-answer part; no character is lost."""
    text = reference_text(problem)
    span = last_boxed_span(text)
    assert span is not None
    start, end, _ = span
    cut = _answer_part(text, start, end)
    return Reference(_segments(text[:cut]), text[cut:], text[start:end])


def _answer_part(text: str, start: int, end: int) -> int:
    """Where the lines of the box text[start:end] begin if nothing else stands on them, else the end of the text."""
    body = text[:start].rstrip(_OPENING)
    gap = text[len(body) : start]
    if text[end:].strip(_CLOSING) or (body and "\n" not in gap):
        return len(text)
    if not body:
        return 0
    own_lines = gap.find("\n") + 1
    return len(body) + own_lines + _leading_space(gap[own_lines:])


def _leading_space(text: str) -> int:
    return len(text) - len(text.lstrip())


def _segments(body: str) -> tuple[str, ...]:
    """The first way of cutting that yields two segments or more; segments keep the white space that follows them."""
    segments: tuple[str, ...] = ()
    for pattern in (_STEP_CUT, _SENTENCE_CUT, _WORD_CUT):
        segments = _cut(body, pattern)
        if len(segments) >= 2:
            break
    return segments


def _cut(body: str, pattern: re.Pattern[str]) -> tuple[str, ...]:
    if not body.strip():
        return ()
    inner = range(_leading_space(body) + 1, len(body.rstrip()))
    cuts = [0, *(m.end() for m in pattern.finditer(body) if m.end() in inner), len(body)]
    return tuple(body[a:b] for a, b in pairwise(cuts))


def revealed_count(alpha: float, segments: int, rounding: Rounding) -> int:
    """floor(α·m), or floor(α·m + ½) for "nearest", in 0…m; α·m within 1e-9 below a whole number counts as that number."""
    assert 0.0 <= alpha <= 1.0, f"alpha must be in [0, 1], is {alpha}"
    half = 0.5 if rounding == "nearest" else 0.0
    return min(segments, math.floor(alpha * segments + half + _TOLERANCE))


def reveal(problem: Problem, alpha: float, rounding: Rounding) -> Revealed:
    """The part of the reference that a teacher of exposure `alpha` sees, besides the boxed answer."""
    reference = split_reference(problem)
    count = revealed_count(alpha, len(reference.segments), rounding)
    return Revealed("".join(reference.segments[:count]), reference.answer, count, len(reference.segments))
