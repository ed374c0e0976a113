"""Average@K, pass@j and their uncertainty, from a matrix of right and wrong answers. Pure numpy.

Every function takes `correct_NK`: N problems, K samples a problem, true where the sample's answer is right. Shares are in [0, 1].
"""

from collections.abc import Iterator, Mapping, Sequence
from math import comb, sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.table import Table

from megatron_atesd.errors import DataError
from megatron_atesd.records import Problem

RESAMPLES = 10_000
_DRAWS_AT_ONCE = 4_000_000  # bounds the memory of a bootstrap to about 64 MB


def average_at_k(correct_NK: ArrayLike) -> float:
    """Average@K: mean over problems of the mean over samples."""
    return float(_means(correct_NK).mean())


def pass_at(correct_NK: ArrayLike, draws: int) -> float:
    """pass@j: probability that at least one of `draws` samples is right, unbiased: mean of 1 - C(K - c, j) / C(K, j), c right of K."""
    correct = _matrix(correct_NK)
    samples = correct.shape[1]
    if not 1 <= draws <= samples:
        raise DataError(f"pass@{draws} needs between 1 and K = {samples} draws: take more samples or fewer draws")
    table = np.array([1.0 - comb(samples - right, draws) / comb(samples, draws) for right in range(samples + 1)])
    return float(table[correct.sum(axis=1)].mean())


def pass_draws(samples: int) -> list[int]:
    """The j of pass@j that are reported for K samples: 1, 2, 4, … and K itself."""
    return sorted({*(1 << power for power in range(samples.bit_length())), samples})


def bootstrap_means(values_N: ArrayLike, seed: int, resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """Means of `resamples` resamples of the values with replacement, [resamples] float64; the same for the same seed."""
    values = np.asarray(values_N, dtype=np.float64)
    rng = np.random.default_rng(seed)
    rows = max(1, _DRAWS_AT_ONCE // len(values))
    sizes = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    return np.concatenate([values[rng.integers(len(values), size=(size, len(values)))].mean(axis=1) for size in sizes])


def interval(correct_NK: ArrayLike, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % percentile-bootstrap interval of Average@K over problems: it covers the choice of problems and the sampling of answers.

    When every problem has the same mean, as at 0 or 1, resampling sees no spread at all: then it is Wilson's, of N outcomes.
    """
    means = _means(correct_NK)
    if np.ptp(means) == 0:
        return wilson_interval(float(means[0]), len(means))
    low, high = np.quantile(bootstrap_means(means, seed, resamples), [0.025, 0.975])
    return float(low), float(high)


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 % Wilson interval of a share of `count` yes-or-no outcomes; sensible at 0 and 1, unlike share ± 2 standard errors."""
    z = 1.959964
    centre, spread = share + z * z / (2 * count), z * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (centre - spread) / (1 + z * z / count), (centre + spread) / (1 + z * z / count)


def paired_difference(correct_NK: ArrayLike, other_NK: ArrayLike, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Average@K of the first run minus the second's on the same problems in the same order, resampling problems, JSON-ready.

    Keys: difference, ci95 [low, high], p_value (two-sided: share of resamples beyond zero, at least 1 / (resamples + 1)).
    The sample counts may differ. Raises DataError when the problem counts do.
    """
    first, second = _means(correct_NK), _means(other_NK)
    if len(first) != len(second):
        raise DataError(f"paired comparison of {len(first)} with {len(second)} problems: both runs must be graded on the same problems")
    means = bootstrap_means(first - second, seed, resamples)
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "difference": float((first - second).mean()),
        "ci95": [float(low), float(high)],
        "p_value": min(1.0, 2 * (tail + 1) / (resamples + 1)),
    }


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
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """All figures of one evaluation, JSON-ready.

    greedy_N: whether the greedy answer of each problem is right, if there is one. difficulty: a label a problem.

        {"problems": N, "samples": K, "average_at_k": share, "ci95": [low, high], "greedy": share, "greedy_ci95": [low, high],
         "pass_at": {"1": share, …}, "by_difficulty": {label: {"problems", "average_at_k", "ci95", "greedy", "greedy_ci95"}, …}}

    ci95 is the bootstrap's and greedy_ci95 Wilson's interval; greedy and greedy_ci95 are null without greedy answers.
    Labels that are all numbers are sorted as numbers. Raises DataError for an empty matrix and for lengths that do not match.
    """
    correct = _matrix(correct_NK)
    greedy = None if greedy_N is None else np.asarray(greedy_N, dtype=bool)
    for name, values in (("greedy", greedy), ("difficulty", difficulty)):
        if values is not None and len(values) != len(correct):
            raise DataError(f"{len(values)} {name} values for {len(correct)} problems: one a problem is needed")
    return {
        **_figures(correct, greedy, seed, resamples),
        "samples": correct.shape[1],
        "pass_at": {str(draws): pass_at(correct, draws) for draws in pass_draws(correct.shape[1])},
        "by_difficulty": {
            label: _figures(correct[rows], None if greedy is None else greedy[rows], seed, resamples)
            for label, rows in _bins(difficulty or ())
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


def _figures(correct: NDArray[np.bool_], greedy: NDArray[np.bool_] | None, seed: int, resamples: int) -> dict[str, Any]:
    return {
        "problems": len(correct),
        "average_at_k": average_at_k(correct),
        "ci95": list(interval(correct, seed, resamples)),
        "greedy": None if greedy is None else float(greedy.mean()),
        "greedy_ci95": None if greedy is None else list(wilson_interval(float(greedy.mean()), len(greedy))),
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


def _means(correct_NK: ArrayLike) -> NDArray[np.float64]:
    return _matrix(correct_NK).mean(axis=1)
