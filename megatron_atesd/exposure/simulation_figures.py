"""What many simulated runs come to: means and standard errors over seeds, and settings compared by them."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from statistics import fmean, stdev
from typing import Any

from megatron_atesd.config import ExposureConfig, validate_exposure
from megatron_atesd.errors import ConfigError
from megatron_atesd.exposure.simulated_student import StudentModel, share_of
from megatron_atesd.exposure.simulation import SimulatedRun, run_of

Figures = dict[str, float | None]  # by name; None where a figure has no meaning
EDGE = 0.05  # a policy that ends so near to 0 or 1 is saturated


def summarize(config: ExposureConfig, students: Sequence[StudentModel], updates: int, seeds: int) -> Figures:
    """`summary` of `seeds` runs."""
    return summary(run_figures(config, students, updates, range(seeds)), students)


def run_figures(config: ExposureConfig, students: Sequence[StudentModel], updates: int, seeds: Iterable[int]) -> list[dict[str, float]]:
    """The figures of one run for each seed."""
    return [_figures(run_of(config, students, updates, seed), students) for seed in seeds]


def summary(runs: Sequence[Mapping[str, float]], students: Sequence[StudentModel]) -> Figures:
    """Means over runs, and the standard error of each mean as `<name>_error` (0 of a single run).

    regret, alpha: of all updates; of a flat student regret is None. final_regret, final_alpha: of the last fifth of the updates.
    saturated: share of the runs (and bins) whose mean policy in the last fifth of the updates is within EDGE of 0 or 1.
    """
    found: Figures = {}
    for name in runs[0]:
        values = [run[name] for run in runs]
        known = not (name.endswith("regret") and any(student.flat for student in students))
        found[name] = fmean(values) if known else None
        found[f"{name}_error"] = (stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0) if known else None
    return found


def compare(
    base: ExposureConfig,
    vary: Mapping[str, Sequence[Any]],
    students: Mapping[str, Sequence[StudentModel]],
    updates: int,
    seeds: int,
) -> Iterator[dict[str, Any]]:
    """One row for every combination of the varied settings: the settings, the figures with each of the students, and their mean regrets.

    students: by name, one for each difficulty bin. Raises ConfigError at once, before the first simulation, when a combination breaks a
    rule of the settings.
    """
    combinations = [dict(zip(vary, values, strict=True)) for values in product(*vary.values())]
    for settings in combinations:
        _check(replace(base, **settings), settings, students, updates)
    return (_row(base, settings, students, updates, seeds) for settings in combinations)


def _check(config: ExposureConfig, settings: Mapping[str, Any], students: Mapping[str, Sequence[StudentModel]], updates: int) -> None:
    try:
        validate_exposure(config, updates)
    except ConfigError as error:
        spelled = " ".join(f"{name}={value}" for name, value in settings.items()) or "the defaults"
        raise ConfigError(f"{spelled}: {error}") from None
    for name, bins in students.items():
        if config.bins not in (1, len(bins)):
            raise ConfigError(
                f"exposure.bins is {config.bins}, but student {name} has {len(bins)}: give one optimum a bin, such as 0.9/0.2"
            )


def _row(
    base: ExposureConfig, settings: dict[str, Any], students: Mapping[str, Sequence[StudentModel]], updates: int, seeds: int
) -> dict[str, Any]:
    config = replace(base, **settings)
    at = {name: summarize(config, bins, updates, seeds) for name, bins in students.items()}
    means = {name: _mean_of(figures[name] for figures in at.values()) for name in ("regret", "final_regret")}
    return {"settings": settings, **means, "at": at}


def _mean_of(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _figures(run: SimulatedRun, students: Sequence[StudentModel]) -> dict[str, float]:
    """Of one run; means over its updates and students."""
    updates = len(run.alphas)
    alphas = [fmean(each) for each in run.alphas]
    regrets = alphas if any(student.flat for student in students) else [_regret(run, students, step) for step in range(updates)]
    tail = max(1, updates // 5)
    ends = [fmean(means) for means in zip(*run.means[-tail:], strict=True)]
    return {
        "regret": fmean(regrets),
        "final_regret": fmean(regrets[-tail:]),
        "alpha": fmean(alphas),
        "final_alpha": fmean(alphas[-tail:]),
        "saturated": fmean(min(end, 1 - end) <= EDGE for end in ends),
    }


def _regret(run: SimulatedRun, students: Sequence[StudentModel], step: int) -> float:
    share = share_of(step, len(run.alphas))
    return fmean(student.regret(alpha, share) for student, alpha in zip(students, run.alphas[step], strict=True))
