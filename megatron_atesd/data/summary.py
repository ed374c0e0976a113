"""A short account of a set of problems: how many, how long, how hard, and how finely their solutions can be revealed."""

from collections import Counter
from collections.abc import Sequence
from statistics import median

from megatron_atesd.data.reveal import split_reference
from megatron_atesd.records import Problem


def report(name: str, problems: Sequence[Problem]) -> str:
    """Lines of text; lengths are in characters, segments are the m of the reveal ratio."""
    if not problems:
        return f"{name}: 0 problems"
    lines = [
        f"{name}: {len(problems)} problems",
        f"  problem length    {_spread([len(p.problem) for p in problems])} characters",
        f"  solution length   {_spread([len(p.solution) for p in problems])} characters",
        f"  segments          {_histogram([len(split_reference(p).segments) for p in problems])}",
    ]
    levels = [p.metadata["difficulty"] for p in problems if isinstance(p.metadata.get("difficulty"), int | float)]
    return "\n".join([*lines, f"  difficulty        {_histogram(levels)}"] if levels else lines)


def _spread(values: Sequence[int]) -> str:
    return f"{min(values)} to {max(values)}, median {median(values):g}"


def _histogram(values: Sequence[float], shown: int = 12) -> str:
    """`value: count` in order of value; what exceeds `shown` values is summed up as the highest."""
    counts = sorted(Counter(values).items())
    text = ", ".join(f"{value:g}: {count}" for value, count in counts[:shown])
    rest = counts[shown:]
    return text + (f", {rest[0][0]:g} to {rest[-1][0]:g}: {sum(count for _, count in rest)}" if rest else "")
