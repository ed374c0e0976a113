"""How far a mean over problems may lie from the mean over all problems of their kind. Pure numpy.

Problems are the sample; the answers drawn for one problem belong together, and say less than as many answers to different problems.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from math import atan, cos, pi, sin, sqrt
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megatron_atesd.errors import DataError

_TAILS = 0.05  # outside an interval of 95 %
_Z = 1.959964  # of a standard normal variable, 95 % lie within
_DOUBT = 3.0  # chosen by simulation, see tests/unit/test_uncertainty.py
_EQUAL = 1e-9  # differences of shares that differ by less are the same
_MISSED = 0.2  # share of comparisons in which a difference as large as `detectable_difference` is not found


class Spread(NamedTuple):
    """A variance that was estimated with so many degrees of freedom."""

    variance: float
    freedom: int


def wilson_interval(share: ArrayLike, count: ArrayLike, z: float = _Z) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Interval of a share of `count` yes-or-no outcomes, float64, elementwise (Wilson 1927); sensible at 0 and 1.

    z: of a standard normal variable, within which what is to be covered lies (default: 95 %).
    """
    share, count = np.asarray(share, dtype=np.float64), np.asarray(count, dtype=np.float64)
    centre, spread = share + z * z / (2 * count), z * np.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return (centre - spread) / (1 + z * z / count), (centre + spread) / (1 + z * z / count)


def mean_interval(values_N: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """95 % interval of the mean over all problems like these, from one value in [0, 1] a problem: a 0 or 1, a share, a probability.

    It covers both the choice of problems and the sampling of answers. It is Wilson's interval, with N / d in place of the number of
    problems. d is the design effect s² / (m (1 − m)), m mean and s² variance of the values: 1 for values of 0 and 1 (greedy answers), so
    that nothing differs from Wilson's there; 1 / K when K samples a problem tell as much as K problems (Korn & Graubard 1998).
    Near 0 and 1 a few problems make up s². With c the effective number of those (Kish 1965: (Σx)² / Σx², of x or of 1 − x, the smaller), d
    is drawn towards 1, its value when nothing is known: (c² d + 3) / (c² + 3). Equal values need no rule of their own.
    Returns low and high, float64; `values_N` [..., N] gives [...].
    """
    values = np.asarray(values_N, dtype=np.float64)
    mean, weight = values.mean(axis=-1), np.minimum(_effective_number(values), _effective_number(1 - values)) ** 2
    room = mean * (1 - mean)
    effect = np.divide(values.var(axis=-1), room, out=np.ones_like(mean), where=room > 0)
    return wilson_interval(mean, values.shape[-1] * (weight + _DOUBT) / (weight * effect + _DOUBT))


def mean_difference(first_N: ArrayLike, second_N: ArrayLike, comparisons: int = 1, seeds: Sequence[Spread] = ()) -> dict[str, Any]:
    """Mean of the first run's values minus the second's, each in [0, 1], of the same problems in the same order, JSON-ready.

    comparisons: so many are made together. ci95 and p_value are corrected for it (Bonferroni): with 95 % all their intervals hold.
    seeds: the `seed_spread` of each side whose values are means over runs; interval and test then cover other seeds as well.
    Keys: difference, ci95 [low, high], p_value, by the paired t test (Student 1908) of the N differences, N − 1 degrees of freedom.
    ci95: where the mean difference over all problems like these lies; 0 is outside if and only if p_value is below 0.05.
    p_value: two-sided; were that mean 0, a difference at least this large in either direction would be found with this probability.
    Differences that are all equal leave the t test no spread to judge by. Then p_value is the sign test's, 2^(1 − N), or 1 when they are 0;
    and ci95 allows for a share of problems on which anything may happen, as many as Wilson's interval does when N showed none.
    Raises DataError when the numbers of problems differ.
    """
    differences, spread = _paired(first_N, second_N, seeds)
    mean, count, doubt = float(differences.mean()), len(differences), _TAILS / comparisons
    if spread is None:
        others = float(wilson_interval(0.0, count, NormalDist().inv_cdf(1 - doubt / 2))[1])
        reach, p_value = ((1 - others) * mean, others), 1.0 if abs(mean) < _EQUAL else 2.0 ** (1 - count)
    else:
        error = sqrt(spread.variance)
        reach, p_value = (mean, t_quantile(spread.freedom, doubt) * error), t_tails(abs(mean) / error, spread.freedom)
    low, high = max(-1.0, reach[0] - reach[1]), min(1.0, reach[0] + reach[1])
    return {"difference": mean, "ci95": [low, high], "p_value": min(1.0, comparisons * p_value)}


def detectable_difference(first_N: ArrayLike, second_N: ArrayLike, comparisons: int = 1, seeds: Sequence[Spread] = ()) -> float | None:
    """The true difference that such a `mean_difference` finds, with p_value below 0.05, in 80 % of cases; None without any spread."""
    _, spread = _paired(first_N, second_N, seeds)
    if spread is None:
        return None
    return (t_quantile(spread.freedom, _TAILS / comparisons) + t_quantile(spread.freedom, 2 * _MISSED)) * sqrt(spread.variance)


def _paired(first_N: ArrayLike, second_N: ArrayLike, seeds: Sequence[Spread]) -> tuple[NDArray[np.float64], Spread | None]:
    """The differences, [N], and the variance of their mean; None where they are all equal and so are the seeds.

    Variances over problems and over seeds are added. Each holds what problem and seed do together, so the sum is rather too large. Its
    degrees of freedom are those of Satterthwaite (1946), rounded down.
    """
    first, second = np.asarray(first_N, dtype=np.float64), np.asarray(second_N, dtype=np.float64)
    if len(first) != len(second):
        raise DataError(f"paired comparison of {len(first)} with {len(second)} problems: both runs must be graded on the same problems")
    differences, count = first - second, len(first)
    of_problems = [] if np.ptp(differences) < _EQUAL else [Spread(float(differences.var(ddof=1)) / count, count - 1)]
    parts = [part for part in (*of_problems, *seeds) if part.variance > _EQUAL**2]
    if not parts:
        return differences, None
    variance = sum(part.variance for part in parts)
    freedom = variance**2 / sum(part.variance**2 / part.freedom for part in parts)
    return differences, Spread(variance, int(freedom + _EQUAL))


def seed_spread(means_S: ArrayLike) -> Spread:
    """Of the mean over S ≥ 2 runs with different seeds, from each run's mean."""
    means = np.asarray(means_S, dtype=np.float64)
    return Spread(float(means.var(ddof=1)) / len(means), len(means) - 1)


def seed_interval(means_S: ArrayLike) -> tuple[float, float]:
    """95 % interval of the mean over all seeds, on these very problems, from each of S ≥ 2 runs' mean share; Student's t."""
    spread, mean = seed_spread(means_S), float(np.asarray(means_S, dtype=np.float64).mean())
    reach = t_quantile(spread.freedom) * sqrt(spread.variance)
    return max(0.0, mean - reach), min(1.0, mean + reach)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p values corrected for each other (Holm 1979): with 95 % none below 0.05 is of a comparison without a difference."""
    corrected: dict[str, float] = {}
    highest = 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[name]))
        corrected[name] = highest
    return {name: corrected[name] for name in p_values}


def mean_a_token(sums_N: ArrayLike, tokens_N: ArrayLike) -> tuple[float, float]:
    """Σ sums / Σ tokens, and its standard error over N ≥ 2 problems: that of a ratio of two means (Cochran 1977, 2.11).

    sums_N: of a problem's tokens. With as many tokens each it is the standard error of the mean over problems.
    """
    sums, tokens = np.asarray(sums_N, dtype=np.float64), np.asarray(tokens_N, dtype=np.float64)
    mean, count = float(sums.sum() / tokens.sum()), len(sums)
    return mean, sqrt(count / (count - 1) * float(np.square(sums - mean * tokens).sum())) / float(tokens.sum())


def rise_p_value(sums_N: ArrayLike, tokens_N: ArrayLike) -> float:
    """One-sided: were `mean_a_token` 0 or less over all problems like these, one at least this large would be found with this probability.

    The t test with N − 1 degrees of freedom; with as many tokens each the paired t test, of differences. Problems without any spread
    leave it nothing to judge by: then the sign test's 2^−N where the mean is above 0, else 1.
    """
    mean, error = mean_a_token(sums_N, tokens_N)
    count = len(np.asarray(sums_N))
    if error <= _EQUAL * abs(mean):
        return 2.0**-count if mean > 0 else 1.0
    above = t_tails(abs(mean) / error, count - 1) / 2
    return above if mean > 0 else 1 - above


def t_tails(t: float, freedom: int) -> float:
    """Probability that |T| is above t ≥ 0, T of Student's distribution with `freedom` ≥ 1 degrees (Abramowitz & Stegun 26.7.3, 26.7.4)."""
    angle, odd = atan(t / sqrt(freedom)), freedom % 2
    term, total = 1.0, 0.0
    for index in range(1 + odd, freedom, 2):
        total += term
        term *= cos(angle) ** 2 * index / (index + 1)
    inside = (angle + sin(angle) * cos(angle) * total) * 2 / pi if odd else sin(angle) * total
    return max(0.0, 1.0 - inside)


@cache
def t_quantile(freedom: int, tails: float = _TAILS) -> float:
    """The t beyond which the share `tails` of Student's distribution lies, half of it on either side."""
    low, high = 0.0, 1.0
    while t_tails(high, freedom) > tails:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tails(middle, freedom) > tails else (low, middle)
    return high


def _effective_number(values_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the problems that a sum of values ≥ 0 comes from: N when all are equal, 1 when one holds everything, 0 when nothing is there."""
    total, squares = values_N.sum(axis=-1), (values_N**2).sum(axis=-1)
    return np.divide(total**2, squares, out=np.zeros_like(total), where=squares > 0)
