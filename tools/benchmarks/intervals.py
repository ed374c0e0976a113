"""Simulated evaluations, whose truth is known: how often intervals cover it, and how often equal models are called different."""

from collections.abc import Callable, Iterator, Sequence
from math import comb, exp, lgamma
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_atesd.evaluate.comparison import compare
from megatron_atesd.evaluate.finished import Finished
from megatron_atesd.evaluate.uncertainty import mean_interval

Rates = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Rates]
PROBLEMS, SAMPLES, SHARES = (30, 90, 210), (4, 12), (0.1, 0.5, 0.95)
SPREADS = (0.3, 1.0, 3.0, 10.0)  # a + b of a Beta distribution: from nearly all or nothing to nearly equal
KINDS = {  # of problems, by the mean: the rates at which two kinds of problems are solved
    0.1: ((0.0, 1.0), (0.0, 0.4), (0.05, 0.15), (0.02, 0.9)),
    0.5: ((0.0, 1.0), (0.1, 0.9), (0.3, 0.7), (0.0, 0.6)),
    0.95: ((0.0, 1.0), (0.6, 1.0), (0.9, 1.0), (0.2, 0.98)),
}


class Difficulty(NamedTuple):
    """A distribution of the rate at which a problem is solved. chances: of each count of K right samples, exactly, [K + 1]."""

    draw: Draw
    chances: Callable[[int], Rates]


def difficulties(share: float) -> dict[str, Difficulty]:
    """Those with the mean `share`, by name."""
    betas = {f"Beta, a + b = {spread:g}": _beta(share * spread, (1 - share) * spread) for spread in SPREADS}
    return betas | {f"{low:g} or {high:g}": _two_kinds(low, high, (share - low) / (high - low)) for low, high in KINDS[share]}


def _beta(a: float, b: float) -> Difficulty:
    def log_beta(a: float, b: float) -> float:
        return lgamma(a) + lgamma(b) - lgamma(a + b)

    def chances(samples: int) -> Rates:
        counts = range(samples + 1)
        return np.array([comb(samples, c) * exp(log_beta(a + c, b + samples - c) - log_beta(a, b)) for c in counts])

    return Difficulty(lambda rng, shape: rng.beta(a, b, size=shape), chances)


def _two_kinds(low: float, high: float, share_high: float) -> Difficulty:
    def chances(samples: int) -> Rates:
        kinds = [np.array([comb(samples, c) * rate**c * (1 - rate) ** (samples - c) for c in range(samples + 1)]) for rate in (low, high)]
        return (1 - share_high) * kinds[0] + share_high * kinds[1]

    return Difficulty(lambda rng, shape: np.where(rng.random(shape) < share_high, high, low), chances)


def coverage(
    difficulty: Difficulty, figures: Sequence[str], cell: tuple[int, int], repeats: int, seed: int
) -> dict[str, tuple[float, float]]:
    """By figure (truth, share of `repeats` evaluations whose 95 % interval contains it). cell: problems and samples.

    figures: average, majority, or passN for pass@N. majority: of answers of which all wrong ones are the same, so that the vote is right
    with more than half of the samples.
    """
    rng = np.random.default_rng(seed)
    counts = rng.binomial(cell[1], difficulty.draw(rng, (repeats, cell[0])))
    likely_C = difficulty.chances(cell[1])
    found: dict[str, tuple[float, float]] = {}
    for figure in figures:
        values_C = values_of_counts(figure, cell[1])
        (low, high), truth = mean_interval(values_C[counts]), float(likely_C @ values_C)
        found[figure] = truth, float(np.mean((low <= truth + 1e-9) & (truth <= high + 1e-9)))
    return found


def values_of_counts(figure: str, samples: int) -> Rates:
    """What a problem counts with 0, 1, … K right samples, [K + 1]."""
    counts = range(samples + 1)
    if figure == "average":
        return np.array([count / samples for count in counts])
    if figure == "majority":
        return np.array([0.0 if 2 * count < samples else 0.5 if 2 * count == samples else 1.0 for count in counts])
    draws = int(figure.removeprefix("pass"))
    return np.array([1 - comb(samples - count, draws) / comb(samples, draws) for count in counts])


def coverage_rows(figures: Callable[[int], Sequence[str]], repeats: int, seed: int) -> Iterator[dict[str, Any]]:
    """All cells. figures: those to look at for K samples."""
    for samples in SAMPLES:
        for problems in PROBLEMS:
            for share in SHARES:
                for name, difficulty in difficulties(share).items():
                    cell = {"samples": samples, "problems": problems, "share": share, "difficulty": name}
                    for figure, (truth, covered) in coverage(difficulty, figures(samples), (problems, samples), repeats, seed).items():
                        yield cell | {"figure": figure, "truth": truth, "covered": covered}


def false_alarms(difficulty: Difficulty, arms: int, runs: int, seeds: float, problems: int, samples: int, repeats: int, seed: int) -> float:
    """Share of `repeats` comparisons in which `compare` calls any of the arms more than noise, though all are equal.

    arms: with the baseline; each of as many `runs`. seeds: how far a run's seed moves its log-odds of being right (standard deviation); a
    third of the variance moves all problems together, the rest each problem alone.
    """
    rng, found = np.random.default_rng(seed), 0
    for _ in range(repeats):
        rates = difficulty.draw(rng, (problems,)).clip(1e-9, 1 - 1e-9)
        odds = np.log(rates / (1 - rates))
        together, alone = rng.normal(size=(arms, runs, 1)), rng.normal(size=(arms, runs, problems))
        moved = 1 / (1 + np.exp(-odds - seeds * (together / np.sqrt(3) + alone * np.sqrt(2 / 3))))
        right = rng.random((samples, arms, runs, problems)) < moved
        result = compare({str(arm): [finished(right[:, arm, run].T, (arm, run)) for run in range(runs)] for arm in range(arms)})
        found += any(not entry["within_noise"] for entry in result["differences"].values())
    return found / repeats


def finished(correct_NK: NDArray[np.bool_], place: tuple[int, int]) -> Finished:
    """An evaluation that there might have been."""
    return Finished(Path(f"{place[0]}-{place[1]}"), tuple(map(str, range(len(correct_NK)))), correct_NK, {}, {})
