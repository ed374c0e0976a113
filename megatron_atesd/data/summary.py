"""A short account of a set of problems: how many, how long, how hard, and how finely their solutions can be revealed."""

import sys
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from statistics import median

from megatron_atesd.data.answers import final_answer, same_writing
from megatron_atesd.data.reveal import split_reference
from megatron_atesd.records import Problem


def report(name: str, problems: Sequence[Problem]) -> str:
    """Lines of text; lengths are in characters, segments are the m of the reveal ratio."""
    if not problems:
        return f"{name}: 0 problems"
    segments = [len(split_reference(p).segments) for p in problems]
    lines = [
        f"{name}: {len(problems)} problems",
        f"  problem length    {_spread([len(p.problem) for p in problems])} characters",
        f"  solution length   {_spread([len(p.solution) for p in problems])} characters",
        f"  worked solutions  {sum(count > 0 for count in segments)} of {len(problems)}; {_final_boxes(problems)}",
        f"  segments          {_histogram(segments)}",
    ]
    levels = [p.metadata["difficulty"] for p in problems if isinstance(p.metadata.get("difficulty"), int | float)]
    return "\n".join([*lines, f"  difficulty        {_histogram(levels)}"] if levels else lines)


def segments_account(problems: Sequence[Problem]) -> tuple[str, str]:
    """How many segments references have, and a warning of those with fewer than two, of which α shows all or nothing ('' for none)."""
    counts = [len(split_reference(p).segments) for p in problems]
    few = [p.id for p, count in zip(problems, counts, strict=True) if count < 2]
    if not few:
        return _spread(counts), ""
    warning = (
        f"{len(few)} of {len(problems)} training references have fewer than two segments (the first: problem {few[0]!r}), of which the "
        "teacher sees all or nothing, whatever α between: write each step of a solution on a line of its own, or leave it out"
    )
    return _spread(counts), warning


def _spread(values: Sequence[int]) -> str:
    return f"{min(values)} to {max(values)}, median {median(values):g}"


def _histogram(values: Sequence[float], shown: int = 12) -> str:
    """`value: count` in order of value; what exceeds `shown` values is summed up as the highest."""
    counts = sorted(Counter(values).items())
    text = ", ".join(f"{_short(value)}: {count}" for value, count in counts[:shown])
    rest = counts[shown:]
    return text + (f", {_short(rest[0][0])} to {_short(rest[-1][0])}: {sum(count for _, count in rest)}" if rest else "")


def _short(value: float) -> str:
    """The number in at most six digits; an integer may be too large for a float."""
    return f"{value:g}" if abs(value) <= sys.float_info.max else f"{Decimal(value):.5e}"


def _final_boxes(problems: Sequence[Problem]) -> str:
    finals = [(final_answer(p.solution), p.answer) for p in problems]
    equal = sum(same_writing(final, answer) for final, answer in finals if final)
    missing = sum(not final for final, _ in finals)
    return f"final box: {equal} the answer, {len(finals) - equal - missing} written otherwise, {missing} missing"
