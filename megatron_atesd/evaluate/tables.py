"""Evaluations for a person to read: shares in percent, one row an evaluation, then one a difficulty of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

Figures = Mapping[str, Any]


def table(summaries: Mapping[str, Figures], title: str | None = None) -> Table:
    """How much is right, of several `average.summarize` results."""
    return _table(("", "problems", "Average@K", "95 %", "greedy", "pass@K", "majority@K"), _right, summaries, title)


def response_table(summaries: Mapping[str, Figures], title: str | None = None) -> Table:
    """What the samples look like, of results that have the figures of `response_figures`: shares, and lengths in tokens."""
    return _table(("", "answer", "cut", "loops", "tokens", "p10", "p50", "p90", "max", "if right", "if wrong"), _look, summaries, title)


def comparison_table(found: Figures) -> Table:
    """The arms of a `comparison.compare` result, the baseline first; differences and intervals in points."""
    result = _empty(("", "runs", "Average@K", "95 % problems", "95 % seeds", "difference", "95 % difference", "p"))
    result.title = f"Average@K on {found['problems']} problems"
    for name, arm in found["arms"].items():
        within = [_interval(arm["ci95"]), "–" if arm["ci95_seeds"] is None else _interval(arm["ci95_seeds"])]
        result.add_row(name, str(len(arm["runs"])), percent(arm["average_at_k"]), *within, *_against(found["differences"].get(name)))
    return result


def arm_table(found: Figures) -> Table:
    """What else the evaluations of the arms say, means over runs; nothing of this is tested."""
    result = _empty(("", "greedy", "majority@K", "answer", "cut", "loops", "tokens"))
    for name, arm in found["arms"].items():
        shares = [percent(arm[figure]) for figure in ("greedy", "majority_at_k", "with_answer", "truncated", "loops")]
        result.add_row(name, *shares, "–" if arm["mean_tokens"] is None else f"{arm['mean_tokens']:.0f}")
    return result


def _against(entry: Figures | None) -> tuple[str, str, str]:
    if entry is None:
        return "", "", ""
    low, high = entry["ci95"]
    p_value = entry["p_value_corrected"]
    return signed(entry["difference"]), f"{signed(low)} … {signed(high)}", "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def pass_line(summary: Figures) -> str:
    """pass@1 … pass@K in percent."""
    return "pass@j: " + ", ".join(f"{draws}: {percent(share)}" for draws, share in summary["pass_at"].items())


def percent(share: float | None) -> str:
    """One decimal, or – for none."""
    return "–" if share is None else f"{100 * share:.1f}"


def _empty(columns: Sequence[str]) -> Table:
    result = Table()
    for column in columns:
        result.add_column(column, justify="left" if column == "" else "right", overflow="fold")
    return result


def signed(share: float) -> str:
    """In points, with its sign."""
    return f"{100 * share:+.1f}".replace("-", "−")


def _interval(ends: Sequence[float]) -> str:
    return f"{100 * ends[0]:.1f} – {100 * ends[1]:.1f}"


def _table(columns: Sequence[str], cells: Callable[[Figures], Sequence[str]], summaries: Mapping[str, Figures], title: str | None) -> Table:
    result = _empty(columns)
    result.title = title
    for name, summary in summaries.items():
        result.add_row(name, *cells(summary))
        for label, part in summary["by_difficulty"].items():
            result.add_row(f"  {label}", *cells(part), style="dim")
    return result


def _right(figures: Figures) -> list[str]:
    shares = (figures["greedy"], list(figures["pass_at"].values())[-1], figures.get("majority_at_k"))
    return [str(figures["problems"]), percent(figures["average_at_k"]), _interval(figures["ci95"]), *map(percent, shares)]


def _look(figures: Figures) -> list[str]:
    tokens, means = figures["tokens"], (figures["tokens_right"], figures["tokens_wrong"])
    shares = [percent(figures[name]) for name in ("with_answer", "truncated", "loops")]
    lengths = [f"{tokens[name]:.0f}" for name in ("mean", "p10", "p50", "p90", "max")]
    return [*shares, *lengths, *("–" if part is None else f"{part['mean']:.0f}" for part in means)]
