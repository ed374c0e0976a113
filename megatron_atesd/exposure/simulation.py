"""Simulated students under any exposure mode, to see what it can learn in a given number of updates before paying for a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from megatron_atesd.config import ExposureConfig
from megatron_atesd.exposure.bins import bin_metric
from megatron_atesd.exposure.controller import seeded_generator
from megatron_atesd.exposure.modes import Mode, make_mode
from megatron_atesd.exposure.simulated_scores import Scores, simulated_scores
from megatron_atesd.exposure.simulated_student import BIN_SEED, StudentModel, share_of
from megatron_atesd.records import Exposure, UpdateStats

SEED_OFFSET = 1000  # the student's noise shares no seed with the mode


class SimulatedStudent:
    """A student under training. No exposure changes its noise, so that runs of one seed have the same noise whatever controls them."""

    def __init__(self, model: StudentModel, updates: int, seed: int) -> None:
        self.model, self.updates = model, updates
        self.generator = seeded_generator(seed)
        self.excess, self.velocity = model.start, 0.0
        self.alphas: list[float] = []  # of every update so far

    def update(self, exposure: Exposure) -> UpdateStats:
        """One update under `exposure`."""
        self.alphas.append(exposure.alpha)
        done, model = len(self.alphas), self.model
        push = (self._drop() + model.training_noise * _normal(self.generator)) * self.excess / model.start
        self.velocity = model.momentum * self.velocity + (1 - model.momentum) * push
        self.excess -= self.velocity
        return self.measure(done, exposure)

    def measure(self, update: int, exposure: Exposure) -> UpdateStats:
        """Statistics as a run would report them: KL, mismatch and the teacher's log-probability of the reference all rise with α."""
        nll = 0.2 + self.excess + self.model.probe_noise * _normal(self.generator)
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

    def _drop(self) -> float:
        """Expected drop of the update that `alphas` ends with."""
        step = len(self.alphas) - 1
        share, acting = share_of(step, self.updates), step - self.model.delay
        return self.model.random_drop(share) if acting < 0 else self.model.drop(self.alphas[acting], share)


@dataclass(frozen=True)
class SimulatedRun:
    """What one run did in every update: each student's α, and the mean of the policy that it was drawn from (α where there is none)."""

    alphas: list[tuple[float, ...]]
    means: list[tuple[float, ...]]


def simulate(mode: Mode, students: Sequence[StudentModel], updates: int, seed: int, scores: Scores = lambda step: None) -> SimulatedRun:
    """Train simulated students for `updates` updates under `mode`.

    students: one for each difficulty bin; a mode with one exposure for all plays it on each, and hears the mean of their figures.
    seed: of the noise of the students, not of the mode.
    scores: of mode aligned, before update step + 1.
    """
    trained = [SimulatedStudent(student, updates, seed + BIN_SEED * i) for i, student in enumerate(students)]
    start = Exposure(0.0, -1)
    mode.observe(_together(start, [student.measure(0, start) for student in trained]))
    run = SimulatedRun([], [])
    for step in range(updates):
        exposure = mode.propose(step, scores(step))
        parts = [student.update(Exposure(exposure.of(i), exposure.decision_id)) for i, student in enumerate(trained)]
        metrics = mode.observe(_together(exposure, parts))
        run.alphas.append(tuple(part.exposure.alpha for part in parts))
        run.means.append(tuple(_policy_mean(metrics, exposure, i) for i in range(len(parts))))
    return run


def run_of(config: ExposureConfig, students: Sequence[StudentModel], updates: int, seed: int) -> SimulatedRun:
    """The run of one seed, whose students have the same noise under every config."""
    mode = make_mode(config, updates, seed)
    return simulate(mode, students, updates, SEED_OFFSET + seed, simulated_scores(config, students, updates, SEED_OFFSET + seed))


def _together(exposure: Exposure, parts: Sequence[UpdateStats]) -> UpdateStats:
    """Figures of all students, and of each as those of a difficulty bin."""
    if len(parts) == 1:
        return parts[0]
    names = ("kl", "disagreement", "confidence", "progress", "probe_nll", "grounding")
    means = {name: fmean(getattr(part, name) for part in parts) for name in names}
    return UpdateStats(update=parts[0].update, exposure=exposure, by_bin=tuple(parts), **means)


def _policy_mean(metrics: Mapping[str, float], exposure: Exposure, number: int) -> float:
    name = bin_metric(number, "exposure/mean") if exposure.bins else "exposure/mean"
    return metrics.get(name, exposure.of(number))


def _normal(generator: torch.Generator) -> float:
    return torch.randn((), generator=generator, dtype=torch.float64).item()
