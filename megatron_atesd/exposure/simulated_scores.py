"""What mode aligned would measure on simulated students: how fast progress is at each exposure of its grid, with an error.

Nobody has measured how large that error is on a real student, nor how much of it stays: ρ and `lasting` are assumptions.
"""

import math
from collections.abc import Callable, Sequence
from statistics import fmean, pstdev

import torch

from megatron_atesd.config import ExposureConfig
from megatron_atesd.exposure.aligned import exposure_grid
from megatron_atesd.exposure.controller import seeded_generator
from megatron_atesd.exposure.simulated_student import BIN_SEED, StudentModel, share_of
from megatron_atesd.exposure.windows import hold_window

SCORE_SEED = 2**62  # the scores' error shares no seed with the student's noise
Scores = Callable[[int], Sequence[float] | None]


class SimulatedScores:
    """Scores of variance 1 whose correlation with the truth, over exposures and runs, is ρ.

    A score is ρ times the truth, standardised over the grid, plus √(1 − ρ²) times a normal error, independent from exposure to exposure.
    Of the error's variance the share `lasting` is drawn once for the run, the rest anew each time.
    """

    def __init__(self, models: Sequence[StudentModel], grid: Sequence[float], updates: int, seed: int) -> None:
        """models: the students that these scores are of, more than one where one exposure is for all bins; rho and lasting of the first."""
        self.models, self.grid, self.updates = models, grid, updates
        self.generator = seeded_generator(seed)
        self.bias = self._normals()

    def at(self, step: int) -> list[float]:
        """Scores of the grid before update step + 1."""
        share, model = share_of(step, self.updates), self.models[0]
        truth = [fmean(student.drop(alpha, share) for student in self.models) for alpha in self.grid]
        middle, spread = fmean(truth), pstdev(truth)
        error, kept, fresh = math.sqrt(1 - model.rho**2), math.sqrt(model.lasting), math.sqrt(1 - model.lasting)
        standard = [(drop - middle) / spread if spread else 0.0 for drop in truth]
        parts = zip(standard, self.bias, self._normals(), strict=True)
        return [model.rho * true + error * (kept * bias + fresh * new) for true, bias, new in parts]

    def _normals(self) -> list[float]:
        return torch.randn(len(self.grid), generator=self.generator, dtype=torch.float64).tolist()


def simulated_scores(config: ExposureConfig, students: Sequence[StudentModel], updates: int, seed: int) -> Scores:
    """The scores before update step + 1, at the starts of windows only: the grid of each bin's student, or one grid of them all.

    None of other modes, which do without.
    """
    if config.mode != "aligned":
        return lambda step: None
    parts = [students] if config.bins == 1 else [[student] for student in students]
    measured = [SimulatedScores(part, exposure_grid(config), updates, seed + SCORE_SEED + BIN_SEED * i) for i, part in enumerate(parts)]

    def scores(step: int) -> list[float] | None:
        window = hold_window(config, step)
        starts = window >= 0 and (step == 0 or window != hold_window(config, step - 1))
        return [score for part in measured for score in part.at(step)] if starts else None

    return scores
