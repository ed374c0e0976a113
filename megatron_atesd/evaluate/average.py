"""Average@K and pass@j with their 95 % intervals, from a matrix of right and wrong answers. Pure numpy.

`correct_NK`: N problems, K samples a problem, true where the sample's answer is right. Shares are in [0, 1].
"""

from collections.abc import Iterator, Mapping, Sequence
from math import comb
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.table import Table

from megatron_atesd.errors import DataError
from megatron_atesd.evaluate.uncertainty import mean_difference, mean_interval
from megatron_atesd.records import Problem


def average_at_k(correct_NK: ArrayLike) -> float:
    """Average@K: mean over problems of the mean over samples."""
    return float(_shares(correct_NK).mean())


def pass_at(correct_NK: ArrayLike, draws: int) -> float:
    """pass@j: probability that at least one of j = `draws` samples is right, unbiased: mean over problems of `pass_values`."""
    return float(pass_values(correct_NK, draws).mean())


def pass_values(correct_NK: ArrayLike, draws: int) -> NDArray[np.float64]:
    """1 − C(K − c, j) / C(K, j) of each problem, c right of K (Chen et al. 2021), [N] float64. Raises DataError unless 1 ≤ j ≤ K."""
    correct = _matrix(correct_NK)
    samples = correct.shape[1]
    if not 1 <= draws <= samples:
        raise DataError(f"pass@{draws} needs between 1 and K = {samples} draws: take more samples or fewer draws")
    table = np.array([1.0 - comb(samples - right, draws) / comb(samples, draws) for right in range(samples + 1)])
    return table[correct.sum(axis=1)]


def pass_draws(samples: int) -> list[int]:
    """The j of pass@j that are reported for K samples: 1, 2, 4, … and K itself."""
    return sorted({*(1 << power for power in range(samples.bit_length())), samples})


def interval(correct_NK: ArrayLike) -> tuple[float, float]:
    """95 % interval of Average@K over problems like these, see `uncertainty.mean_interval`."""
    low, high = mean_interval(_shares(correct_NK))
    return float(low), float(high)


def paired_difference(correct_NK: ArrayLike, other_NK: ArrayLike) -> dict[str, Any]:
    """Average@K of the first run minus the second's on the same problems, with interval and test, see `uncertainty.mean_difference`.

    The sample counts may differ. Raises DataError when the problem counts do.
    """
    return mean_difference(_shares(correct_NK), _shares(other_NK))


def difficulty_of(problems: Sequence[Problem], key: str) -> list[str]:
    """Each problem's difficulty label, from metadata `key`. Raises DataError naming the first problem without it."""
    for problem in problems:
        if key not in problem.metadata:
            known = ", ".join(sorted(problem.metadata)) or "none"
            raise DataError(f"problem {problem.id!r} has no metadata key {key!r} to bin by (its keys: {known}): choose another key")
    return [str(problem.metadata[key]) for problem in problems]


def summarize(
    correct_NK: ArrayLike,
    greedy_N: ArrayLike | None = None,
    difficulty: Sequence[str] | None = None,
) -> dict[str, Any]:
    """All figures of one evaluation, JSON-ready.

    greedy_N: whether the greedy answer of each problem is right, if there is one. difficulty: a label a problem.

        {"problems": N, "samples": K, "average_at_k": share, "ci95": [low, high], "greedy": share, "greedy_ci95": [low, high],
         "pass_at": {"1": share, …}, "pass_at_ci95": {"1": [low, high], …},
         "by_difficulty": {label: {"problems", "average_at_k", "ci95", "greedy", "greedy_ci95"}, …}}

    All intervals are those of `uncertainty.mean_interval`; greedy and greedy_ci95 are null without greedy answers.
    Labels that are all numbers are sorted as numbers. Raises DataError for an empty matrix and for lengths that do not match.
    """
    correct = _matrix(correct_NK)
    greedy = None if greedy_N is None else np.asarray(greedy_N, dtype=bool)
    for name, values in (("greedy", greedy), ("difficulty", difficulty)):
        if values is not None and len(values) != len(correct):
            raise DataError(f"{len(values)} {name} values for {len(correct)} problems: one a problem is needed")
    passed = {str(draws): pass_values(correct, draws) for draws in pass_draws(correct.shape[1])}
    return {
        **_figures(correct, greedy),
        "samples": correct.shape[1],
        "pass_at": {draws: float(values.mean()) for draws, values in passed.items()},
        "pass_at_ci95": {draws: [float(end) for end in mean_interval(values)] for draws, values in passed.items()},
        "by_difficulty": {
            label: _figures(correct[rows], None if greedy is None else greedy[rows]) for label, rows in _bins(difficulty or ())
        },
    }


def table(summaries: Mapping[str, Mapping[str, Any]], title: str | None = None) -> Table:
    """A rich table of several `summarize` results in percent: one row an evaluation, then one a difficulty of it."""
    result = Table(title=title)
    for column in ("", "problems", "Average@K", "95 %", "greedy", "pass@K"):
        result.add_column(column, justify="left" if column == "" else "right")
    for name, summary in summaries.items():
        best = list(summary["pass_at"].values())[-1]
        result.add_row(name, *_cells(summary), _percent(best))
        for label, part in summary["by_difficulty"].items():
            result.add_row(f"  {label}", *_cells(part), "", style="dim")
    return result


def _figures(correct: NDArray[np.bool_], greedy: NDArray[np.bool_] | None) -> dict[str, Any]:
    return {
        "problems": len(correct),
        "average_at_k": average_at_k(correct),
        "ci95": list(interval(correct)),
        "greedy": None if greedy is None else float(greedy.mean()),
        "greedy_ci95": None if greedy is None else list(interval(greedy[:, None])),
    }


def _bins(difficulty: Sequence[str]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    labels = np.array([str(label) for label in difficulty], dtype=np.str_)
    names = sorted({str(label) for label in labels})
    if all(_is_number(name) for name in names):
        names.sort(key=float)
    for name in names:
        yield name, labels == name


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _cells(figures: Mapping[str, Any]) -> tuple[str, str, str, str]:
    low, high = figures["ci95"]
    return str(figures["problems"]), _percent(figures["average_at_k"]), f"{100 * low:.1f} – {100 * high:.1f}", _percent(figures["greedy"])


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _matrix(correct_NK: ArrayLike) -> NDArray[np.bool_]:
    correct = np.asarray(correct_NK, dtype=bool)
    if correct.ndim != 2 or correct.size == 0:
        raise DataError(f"correctness has shape {correct.shape}: [problems, samples] with at least one of each is needed")
    return correct


def _shares(correct_NK: ArrayLike) -> NDArray[np.float64]:
    """Of each problem's samples, those that are right."""
    return _matrix(correct_NK).mean(axis=1)
