r"""How much of a reference solution the teacher sees: (solution, α) → revealed prefix (ATESD, teacher context).

A reference y* = (r_1 … r_m, boxed answer) is cut into segments r_i (`segments.cut`), and the teacher sees the first floor(α·m) of
them, or the nearest number, and always the boxed answer: the one that grading wants.

The final answer is not a segment when it stands on lines of its own (`\boxed{5}`, `$$\boxed{5}$$`): it is what every exposure
shows. When it sits inside a sentence, as in "so x is $\boxed{5}$.", that sentence is a segment like every other, hidden until
its turn: α=0 shows only the bare `\boxed{5}`, and α=1 the whole solution, after which the answer is shown again.
"""

import math
from dataclasses import dataclass
from typing import Literal

from megatron_atesd.data.boxes import Box, boxes
from megatron_atesd.data.markup import is_open, open_spans
from megatron_atesd.data.segments import cut
from megatron_atesd.records import Problem

Rounding = Literal["floor", "nearest"]

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
    r"""The whole reference solution; `\boxed{answer}` is appended as a last line where the solution boxes nothing."""
    return problem.solution if boxes(problem.solution) else f"{problem.solution.rstrip()}\n{_boxed(problem)}"


def _boxed(problem: Problem) -> str:
    return f"\\boxed{{{problem.answer}}}"


def split_reference(problem: Problem) -> Reference:
    """Cut the reference into segments and the final-answer part; no character is lost."""
    text = reference_text(problem)
    spans = open_spans(text)
    end = len(text)
    if found := boxes(text):
        own_lines = _answer_part(text, found[-1])
        end = end if is_open(spans, own_lines) else own_lines
    return Reference(cut(text, end, spans), text[end:], _boxed(problem))


def _answer_part(text: str, box: Box) -> int:
    """Where the lines of the last box begin if nothing else stands on them, else the end of the text."""
    body = text[: box.start].rstrip(_OPENING)
    gap = text[len(body) : box.start]
    if text[box.end :].strip(_CLOSING) or (body and "\n" not in gap):
        return len(text)
    if not body:
        return 0
    own_lines = gap.find("\n") + 1
    return len(body) + own_lines + _leading_space(gap[own_lines:])


def _leading_space(text: str) -> int:
    return len(text) - len(text.lstrip())


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
