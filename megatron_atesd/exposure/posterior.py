"""Exposure by Bayesian regression of progress: each window plays what it is best to try, given what there is left to gain from knowing.

The knowledge gradient, not REINFORCE: a run has too few updates to learn a policy from rewards, but enough to learn one curve
(docs/exposure.md).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron_atesd.config import ExposureConfig
from megatron_atesd.exposure import policy
from megatron_atesd.exposure.advice import enough_to_explore
from megatron_atesd.exposure.aligned import score_name
from megatron_atesd.exposure.controller import check_mode, seeded_generator
from megatron_atesd.exposure.progress_model import NODES, ProgressModel
from megatron_atesd.exposure.windows import hold_window
from megatron_atesd.records import Exposure, UpdateStats

SPREAD = 0.05  # SD of the Beta that a window's α is drawn from
LOWEST_MEAN = 0.053  # there, and at its mirror, the Beta of that SD has a, b ≥ 1: no density grows without bound at an edge
DRAWS = 64
# Half the value of knowing counts for each twelfth of the training that is left. A twelfth is the window advised for this mode.
# It is a share of the training, not a number of windows, so that a shorter window does not explore more.
PERIODS = 12
SHARE = 0.5
NODE_G, WEIGHT_G = (torch.from_numpy(values) for values in np.polynomial.hermite_e.hermegauss(7))


def value_of_knowing(mean_N: Tensor, covariance_NN: Tensor) -> Tensor:
    """How much higher, [N], the best mean is expected to be once f at a node is known exactly (7-point Gauss-Hermite quadrature)."""
    shift_NN = covariance_NN / covariance_NN.diagonal().sqrt()  # column j: one SD of node j
    best_NG = (mean_N[:, None, None] + shift_NN[:, :, None] * NODE_G).amax(0)
    return best_NG @ (WEIGHT_G / WEIGHT_G.sum()) - mean_N.max()


def best_place(mean_N: Tensor, covariance_NN: Tensor, worth: float, generator: torch.Generator) -> float:
    """Where to play, from 0 to NODES − 1: the node most worth knowing, else the mean place of the best node of DRAWS draws of f.

    worth: how often the gain from knowing is earned.
    """
    worthiest = int((mean_N + worth * value_of_knowing(mean_N, covariance_NN)).argmax())
    if worth > 0 and worthiest != int(mean_N.argmax()):
        return worthiest
    variance_N, vectors_NN = torch.linalg.eigh(covariance_NN)
    normal_SN = torch.randn(DRAWS, len(mean_N), generator=generator, dtype=torch.float64)
    draw_SN = mean_N + (normal_SN * variance_N.clamp(min=0).sqrt()) @ vectors_NN.T
    return draw_SN.argmax(1).double().mean().item()


def beta_around(mean: float) -> tuple[float, float]:
    """a and b, 1 or more, of the Beta distribution with this mean and SD 0.05; a mean too near an edge is moved off it."""
    mean = min(1 - LOWEST_MEAN, max(LOWEST_MEAN, mean))
    total = mean * (1 - mean) / SPREAD**2 - 1
    return mean * total, (1 - mean) * total


class PosteriorExposure:
    """Learns f(α) on NODES exposures from clip_low to clip_high, from the first update on; decides at each window start."""

    def __init__(self, config: ExposureConfig, updates: int, seed: int) -> None:
        """updates: length of training, for what knowing is still worth. seed: of the draws."""
        self.config, self.updates = config, updates
        self.explores = enough_to_explore(config, updates)
        self.generator = seeded_generator(seed)
        self.model = ProgressModel()
        self.current = Exposure(config.warmup_exposure, -1)
        self.decided: dict[str, float] = {}  # metrics of the current decision

    def propose(self, step: int, scores: Sequence[float] | None = None) -> Exposure:
        """See Mode."""
        window = hold_window(self.config, step)
        if window != self.current.decision_id:
            self.current = Exposure(self._decide(step), window)
        return self.current

    def observe(self, stats: UpdateStats) -> dict[str, float]:
        """Learn from one update; returns `exposure/alpha` and what the decision in force was taken by.

        A progress of None gives no evidence; the update itself is known to have moved the student.
        """
        if stats.update > 0:
            self.model.advance(self._position(stats.exposure.alpha))
        if stats.progress is not None:
            self.model.measure(stats.progress)
        return {"exposure/alpha": stats.exposure.alpha} | self.decided if stats.update > 0 else {}

    def state_dict(self) -> dict[str, Any]:
        """See Mode."""
        return {
            "mode": "posterior",
            "model": self.model.state_dict(),
            "alpha": self.current.alpha,
            "decision_id": self.current.decision_id,
            "decided": dict(self.decided),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken. Raises CheckpointError when it is of another mode."""
        check_mode(state, "posterior")
        self.model.load_state_dict(state["model"])
        self.current = Exposure(state["alpha"], state["decision_id"])
        self.decided = dict(state["decided"])
        self.generator.set_state(state["generator"])

    def _decide(self, step: int) -> float:
        mean_N, covariance_NN = self.model.curve()
        worth = SHARE * PERIODS * max(0.0, 1 - step / self.updates) if self.explores else 0.0
        place = best_place(mean_N, covariance_NN, worth, self.generator)
        a, b = beta_around(self._alpha(place))
        a_N, b_N = torch.tensor([[a], [b]], dtype=torch.float64).unbind()
        drawn = policy.sample(a_N, b_N, self.generator).item()
        self.decided = {"exposure/a": a, "exposure/b": b, "exposure/mean": a / (a + b)} | self._describe(mean_N, covariance_NN)
        return min(self.config.clip_high, max(self.config.clip_low, drawn))

    def _describe(self, mean_N: Tensor, covariance_NN: Tensor) -> dict[str, float]:
        """The curve in the signal's units an update; higher is better."""
        scores = {score_name(self._alpha(place)): value for place, value in enumerate(mean_N.tolist())}
        best, sd = self._alpha(int(mean_N.argmax())), covariance_NN.diagonal().sqrt().mean().item()
        return {"controller/posterior_best": best, "controller/posterior_sd": sd} | scores

    def _alpha(self, place: float) -> float:
        return self.config.clip_low + (self.config.clip_high - self.config.clip_low) * place / (NODES - 1)

    def _position(self, alpha: float) -> float:
        width = self.config.clip_high - self.config.clip_low
        return (alpha - self.config.clip_low) / width if width else 0.5
