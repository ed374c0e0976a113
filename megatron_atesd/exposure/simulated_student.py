"""A student in miniature: how fast its probe NLL falls at each exposure.

The probe NLL falls fastest at one exposure, `optimum`, and by less the further away α is (a parabola). The default sizes are those of a
small distillation run: an update gains 2e-4 to 8e-4 nats, the probe's noise is 5e-4, and the training itself is so noisy that α and the
drop over a window of 5 updates correlate at about 0.4. By default exposure acts at once, never on later updates: that favours a short
look-ahead more than a real student may. A student under Adam is nearer to momentum 0.9, whose steps from one update to the next correlate
at 0.86 only if the probe is steady: take probe_noise 2e-5 with it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

BIN_SEED = 2**63  # between the seeds of two bins' students, as between their controllers'


@dataclass(frozen=True)
class StudentModel:
    """How a simulated student answers to exposure; nats per token an update.

    optimum: the α of fastest progress. final_optimum: where it has moved by the last update, in a straight line (None: it stays).
    best: drop of the probe NLL at the optimum. worst: drop at the exposure furthest from it; as large as best: α makes no difference.
    below, above: how far below and above the optimum the drop is down to `worst`, and stays there (None: at the furthest exposure).
    probe_noise: SD of one measurement. training_noise: SD of one update's true drop.
    start: NLL above its floor; the drop shrinks in proportion to what is left of it.
    momentum: share of an update's motion that the next one keeps, as an optimizer does; 0: exposure acts at once, and never later.
    delay: updates until an exposure acts. Before the first one does, the drop is what a random exposure has on average.
    rho, lasting: how well mode aligned's scores tell the truth, see simulated_scores.py.
    """

    optimum: float = 0.8
    final_optimum: float | None = None
    best: float = 8e-4
    worst: float = 2e-4
    below: float | None = None
    above: float | None = None
    probe_noise: float = 5e-4
    training_noise: float = 8e-4
    start: float = 0.2
    momentum: float = 0.0
    delay: int = 0
    rho: float = 0.3
    lasting: float = 0.25

    @property
    def flat(self) -> bool:
        """Whether no exposure is better than another: then there is nothing to regret."""
        return self.best == self.worst

    def best_exposure(self, share: float = 0.0) -> float:
        """The optimum at a share in [0, 1] of the training."""
        return self.optimum if self.final_optimum is None else self.optimum + (self.final_optimum - self.optimum) * share

    def drop(self, alpha: float, share: float = 0.0) -> float:
        """Expected drop of the probe NLL of one update at full distance from the floor."""
        return self.best - (self.best - self.worst) * self._lost(alpha, share)

    def random_drop(self, share: float = 0.0) -> float:
        """Mean of `drop` over a uniformly random exposure."""
        return self.best - (self.best - self.worst) * self._lost_at_random(share)

    def regret(self, alpha: float, share: float = 0.0) -> float:
        """Drop lost against the optimum, in units of what a uniformly random α loses on average: 0 is perfect, 1 is random."""
        return self._lost(alpha, share) / self._lost_at_random(share)

    def _lost(self, alpha: float, share: float) -> float:
        """Drop lost at α, as a share of best − worst."""
        optimum = self.best_exposure(share)
        width = (self.below if alpha < optimum else self.above) or max(optimum, 1 - optimum)
        return min(1.0, abs(alpha - optimum) / width) ** 2

    def _lost_at_random(self, share: float) -> float:
        optimum = self.best_exposure(share)
        sides = ((optimum, self.below), (1 - optimum, self.above))
        return sum(_side(length, width or max(optimum, 1 - optimum)) for length, width in sides)


def _side(length: float, width: float) -> float:
    """∫ min(1, x / width)² dx from 0 to length."""
    slope = min(length, width)
    return slope**3 / (3 * width**2) + length - slope


def in_bins(student: StudentModel, optima: Sequence[float]) -> tuple[StudentModel, ...]:
    """As many students as there are optima, one for each difficulty bin of equally many problems, that do not influence each other.

    A bin's figures come from its share of the problems, so that its noise is √bins times that of all; the mean over bins is as noisy as
    the one student's.
    """
    noisier = math.sqrt(len(optima))
    probe, training = student.probe_noise * noisier, student.training_noise * noisier
    return tuple(replace(student, optimum=optimum, probe_noise=probe, training_noise=training) for optimum in optima)


def share_of(step: int, updates: int) -> float:
    """How far a training of `updates` updates is in its update step + 1: 0 in the first, 1 in the last."""
    return step / max(1, updates - 1)
