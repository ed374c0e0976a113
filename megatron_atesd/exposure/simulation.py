"""A student in miniature, to see what exposure settings can learn in a given number of updates before paying for a run.

The simulated student's probe NLL falls fastest at one exposure, `optimum`, and by less the further away α is (a parabola). The default
sizes are those of a small distillation run: an update gains 2e-4 to 8e-4 nats, the probe's noise is 5e-4, and the training itself is so
noisy that α and the drop over a window of 5 updates correlate at about 0.4. By default exposure acts at once, never on later updates: that
favours a short look-ahead more than a real student may. A student under Adam is nearer to momentum 0.9, whose steps from one update to the
next correlate at 0.86 only if the probe is steady: take probe_noise 2e-5 with it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import fmean, stdev
from typing import Any

import torch

from megatron_atesd.config import ExposureConfig, validate_exposure
from megatron_atesd.errors import ConfigError
from megatron_atesd.exposure.modes import Mode, make_mode
from megatron_atesd.records import Exposure, UpdateStats

SEED_OFFSET = 1000  # the student's noise shares no seed with the mode


@dataclass(frozen=True)
class StudentModel:
    """How a simulated student answers to exposure; nats per token an update.

    optimum: the α of fastest progress.
    best: drop of the probe NLL at the optimum. worst: drop at the exposure furthest from it.
    probe_noise: SD of one measurement. training_noise: SD of one update's true drop.
    start: NLL above its floor; the drop shrinks in proportion to what is left of it.
    momentum: share of an update's motion that the next one keeps, as an optimizer does; 0: exposure acts at once, and never later.
    """

    optimum: float = 0.8
    best: float = 8e-4
    worst: float = 2e-4
    probe_noise: float = 5e-4
    training_noise: float = 8e-4
    start: float = 0.2
    momentum: float = 0.0

    def drop(self, alpha: float) -> float:
        """Expected drop of the probe NLL of one update at full distance from the floor."""
        distance = abs(alpha - self.optimum) / max(self.optimum, 1 - self.optimum)
        return self.best - (self.best - self.worst) * distance**2

    def regret(self, alpha: float) -> float:
        """Drop lost against the optimum, in units of what a uniformly random α loses on average: 0 is perfect, 1 is random."""
        lowest, highest = -self.optimum, 1 - self.optimum
        random_square = (highest**3 - lowest**3) / 3
        return (alpha - self.optimum) ** 2 / random_square


@dataclass(frozen=True)
class SimulatedRun:
    """What one run did: α of every update, and the policy's mean at every update (empty for a mode without policy)."""

    alphas: list[float]
    means: list[float]


def simulate(mode: Mode, student: StudentModel, updates: int, seed: int) -> SimulatedRun:
    """Train a simulated student for `updates` updates under `mode`; `seed` draws the noise of the student, not of the mode."""
    generator = torch.Generator().manual_seed(seed)
    run, excess, velocity = SimulatedRun([], []), student.start, 0.0
    mode.observe(_measure(student, 0, Exposure(0.0, -1), excess, generator))
    for step in range(updates):
        exposure = mode.propose(step)
        push = (student.drop(exposure.alpha) + student.training_noise * _normal(generator)) * excess / student.start
        velocity = student.momentum * velocity + (1 - student.momentum) * push
        excess -= velocity
        metrics = mode.observe(_measure(student, step + 1, exposure, excess, generator))
        run.alphas.append(exposure.alpha)
        if "exposure/mean" in metrics:
            run.means.append(metrics["exposure/mean"])
    return run


def summarize(config: ExposureConfig, student: StudentModel, updates: int, seeds: int) -> dict[str, float]:
    """Means over `seeds` runs: regret of all updates (and its standard error), regret and α of the last fifth of the updates."""
    runs = [simulate(make_mode(config, updates, seed), student, updates, SEED_OFFSET + seed) for seed in range(seeds)]
    tail = max(1, updates // 5)
    regrets = [fmean(map(student.regret, run.alphas)) for run in runs]
    return {
        "regret": fmean(regrets),
        "regret_error": stdev(regrets) / math.sqrt(seeds) if seeds > 1 else 0.0,
        "final_regret": fmean(student.regret(alpha) for run in runs for alpha in run.alphas[-tail:]),
        "final_alpha": fmean(alpha for run in runs for alpha in run.alphas[-tail:]),
    }


def compare(
    base: ExposureConfig, vary: Mapping[str, Sequence[Any]], student: StudentModel, optima: Sequence[float], updates: int, seeds: int
) -> Iterator[dict[str, Any]]:
    """One row for every combination of the varied settings: the settings, the figures at each optimum, and their mean regrets.

    Raises ConfigError at once, before the first simulation, when a combination breaks a rule of the settings.
    """
    combinations = [dict(zip(vary, values, strict=True)) for values in product(*vary.values())]
    for settings in combinations:
        _check(replace(base, **settings), settings, updates)
    return (_row(base, settings, student, optima, updates, seeds) for settings in combinations)


def _check(config: ExposureConfig, settings: Mapping[str, Any], updates: int) -> None:
    try:
        validate_exposure(config, updates)
    except ConfigError as error:
        spelled = " ".join(f"{name}={value}" for name, value in settings.items()) or "the defaults"
        raise ConfigError(f"{spelled}: {error}") from None
    if config.bins > 1:
        raise ConfigError(f"exposure.bins is {config.bins}, but simulated students have problems of one difficulty; set it to 1")


def _row(
    base: ExposureConfig, settings: dict[str, Any], student: StudentModel, optima: Sequence[float], updates: int, seeds: int
) -> dict[str, Any]:
    config = replace(base, **settings)
    at = {optimum: summarize(config, replace(student, optimum=optimum), updates, seeds) for optimum in optima}
    means = {name: fmean(figures[name] for figures in at.values()) for name in ("regret", "final_regret")}
    return {"settings": settings, **means, "at": {f"{optimum:g}": figures for optimum, figures in at.items()}}


def _measure(student: StudentModel, update: int, exposure: Exposure, excess: float, generator: torch.Generator) -> UpdateStats:
    """Statistics as a run would report them: KL, mismatch and the teacher's log-probability of the reference all rise with α."""
    nll = 0.2 + excess + student.probe_noise * _normal(generator)
    return UpdateStats(
        update=update,
        exposure=exposure,
        kl=0.003 + 0.05 * exposure.alpha**2,
        disagreement=0.016 * exposure.alpha,
        confidence=0.85,
        progress=nll,
        probe_nll=nll,
        grounding=-0.3 * (1 - exposure.alpha) - 0.1,
    )


def _normal(generator: torch.Generator) -> float:
    return torch.randn((), generator=generator, dtype=torch.float64).item()
