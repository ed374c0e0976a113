"""Sets of real numbers with rational ends, exactly: intervals, points, and what unions, intersections and differences make of them."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple


class RealSet(NamedTuple):
    """The line cut at `cuts`, in order. inside: whether each gap and each cut belongs, in turns from the left (2·cuts + 1 values)."""

    cuts: tuple[Fraction, ...]
    inside: tuple[bool, ...]


def interval(start: Fraction | None, end: Fraction | None, left_open: bool, right_open: bool) -> RealSet:
    """None: no end on that side."""
    if start is not None and end is not None and start >= end:
        return points([start]) if start == end and not left_open and not right_open else points([])
    above = RealSet((), (True,)) if start is None else RealSet((start,), (False, not left_open, True))
    below = RealSet((), (True,)) if end is None else RealSet((end,), (True, not right_open, False))
    return combined(lambda both: all(both), [above, below])


def points(values: Sequence[Fraction]) -> RealSet:
    """The set of these numbers."""
    cuts = tuple(sorted(set(values)))
    return RealSet(cuts, (*(place % 2 == 1 for place in range(2 * len(cuts))), False))


def combined(belongs: Callable[[list[bool]], bool], sets: Sequence[RealSet]) -> RealSet:
    """The numbers of which `belongs` is true, given whether each set has them; without cuts that cut nothing, so equal sets are equal."""
    cuts = sorted({cut for each in sets for cut in each.cuts})
    marks = [(cut, on_cut) for cut in cuts for on_cut in (False, True)]
    inside = [belongs([_has(each, *mark) for each in sets]) for mark in marks] + [belongs([each.inside[-1] for each in sets])]
    kept = [place for place in range(len(cuts)) if len({*inside[2 * place : 2 * place + 3]}) > 1]
    return RealSet(tuple(cuts[place] for place in kept), (*(inside[2 * place + on] for place in kept for on in (0, 1)), inside[-1]))


def _has(each: RealSet, cut: Fraction, on_cut: bool) -> bool:
    """Whether the set has the cut, or else the numbers just below it."""
    place = bisect_left(each.cuts, cut)
    return each.inside[2 * place + (on_cut and place < len(each.cuts) and each.cuts[place] == cut)]
