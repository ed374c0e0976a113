"""Average@K, pass@j and the other figures of an evaluation with their 95 % intervals, from what is known of each sample. Pure numpy.

`correct_NK`: N problems, K samples a problem, true where the sample's answer is right. Shares are in [0, 1].
"""

from collections.abc import Iterator, Sequence
from math import comb
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megatron_atesd.errors import DataError
from megatron_atesd.evaluate.response_figures import Sampled, response_figures
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
    sampled: Sampled | None = None,
) -> dict[str, Any]:
    """All figures of one evaluation, JSON-ready.

    greedy_N: whether the greedy answer of each problem is right, if there is one. difficulty: a label a problem.
    sampled: what else is known of the samples.

        {"problems": N, "average_at_k": share, "ci95": [low, high], "greedy": share, "greedy_ci95": [low, high],
         "pass_at": {"1": share, …, "K": share}, "pass_at_ci95": {"1": [low, high], …}, and those of `response_figures`,
         "samples": K, "by_difficulty": {label: {the same, but samples and by_difficulty}, …}}

    All intervals are those of `uncertainty.mean_interval`; greedy and greedy_ci95 are null without greedy answers. Without `sampled` the
    figures of `response_figures` are absent.
    Labels that are all numbers are sorted as numbers. Raises DataError for an empty matrix and for lengths that do not match.
    """
    correct = _matrix(correct_NK)
    greedy = None if greedy_N is None else np.asarray(greedy_N, dtype=bool)
    for name, values in (("greedy", greedy), ("difficulty", difficulty)):
        if values is not None and len(values) != len(correct):
            raise DataError(f"{len(values)} {name} values for {len(correct)} problems: one a problem is needed")

    def figures(rows: NDArray[np.bool_]) -> dict[str, Any]:
        of_responses = {} if sampled is None else response_figures(correct[rows], sampled.rows(rows))
        return _figures(correct[rows], None if greedy is None else greedy[rows]) | of_responses

    return {
        **figures(np.ones(len(correct), dtype=bool)),
        "samples": correct.shape[1],
        "by_difficulty": {label: figures(rows) for label, rows in _bins(difficulty or ())},
    }


def _figures(correct: NDArray[np.bool_], greedy: NDArray[np.bool_] | None) -> dict[str, Any]:
    passed = {str(draws): pass_values(correct, draws) for draws in range(1, correct.shape[1] + 1)}
    return {
        "problems": len(correct),
        "average_at_k": average_at_k(correct),
        "ci95": list(interval(correct)),
        "greedy": None if greedy is None else float(greedy.mean()),
        "greedy_ci95": None if greedy is None else list(interval(greedy[:, None])),
        "pass_at": {draws: float(values.mean()) for draws, values in passed.items()},
        "pass_at_ci95": {draws: [float(end) for end in mean_interval(values)] for draws, values in passed.items()},
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


def _matrix(correct_NK: ArrayLike) -> NDArray[np.bool_]:
    correct = np.asarray(correct_NK, dtype=bool)
    if correct.ndim != 2 or correct.size == 0:
        raise DataError(f"correctness has shape {correct.shape}: [problems, samples] with at least one of each is needed")
    return correct


def _shares(correct_NK: ArrayLike) -> NDArray[np.float64]:
    """Of each problem's samples, those that are right."""
    return _matrix(correct_NK).mean(axis=1)
