"""Exact Bayesian regression of progress on exposure: one Kalman filter whose state holds the curve f(α) beside the student's motion.

    g_t = slope_t + f(α_t) + σ·ε              what update t adds: a trend that drifts, the effect of its exposure, noise
    v_t = m·v_{t−1} + (1 − m)·g_t             the optimizer's momentum spreads it over the updates that follow
    level_t = level_{t−1} − v_t               the true progress signal, lower is better
    ℓ_t = level_t + r·σ·ε'                    what was measured

f is given by its values at the nodes, linear between them. An update without a measurement moves the state and tells nothing. Momentum m
and relative measurement noise r are not known: there is one filter for each of DYNAMICS, weighted by how well it foretold the measurements.
Variances are in units of σ², so that gains do not depend on σ. A mean is its part for the data plus σ times its part for the prior, and σ
is the one of greatest likelihood.
"""

import math
from typing import Any

import torch
from torch import Tensor

NODES = 11
DYNAMICS = ((0.9, 0.03), (0.9, 0.3), (0.0, 0.6))  # m and r: Adam's momentum with a steady and with a noisy signal; an effect at once
SLOPE = 10.0  # prior SD of the trend, in σ: wide
DRIFT = 0.02  # SD of the trend's change in an update, in σ
DEPTHS = (0.25, 2.0)  # of the prior's peaks, in σ
WIDTHS = (0.15, 0.3, 0.6)  # of the prior's peaks, as shares of the range of exposures
TINY = 1e-12  # least σ: a signal that never changes has none
LEVEL, VELOCITY, TREND, CURVE = 0, 1, 2, 3  # places in the state; the curve's nodes are the last NODES


def curve_prior() -> tuple[Tensor, Tensor]:
    """Mean [NODES] and covariance [NODES, NODES] of f in units of σ: Gaussian peaks, middle and depth uniform, each width as likely."""
    node_N = torch.linspace(0, 1, NODES, dtype=torch.float64)
    middle_M = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    peak_PN = torch.cat([torch.exp(-((node_N - middle_M[:, None]) ** 2) / (2 * width**2)) for width in WIDTHS])
    low, high = DEPTHS
    depth, square = (low + high) / 2, (high**3 - low**3) / (3 * (high - low))
    mean_N = depth * peak_PN.mean(0)
    return mean_N, square * peak_PN.T @ peak_PN / len(peak_PN) - torch.outer(mean_N, mean_N)


def node_weights(position: float) -> Tensor:
    """Weights [NODES] by which f at a position in [0, 1] of the range follows from f at the nodes."""
    place = min(1.0, max(0.0, position)) * (NODES - 1)
    return (1 - (torch.arange(NODES, dtype=torch.float64) - place).abs()).clamp(min=0)


class ProgressModel:
    """What the measurements so far say about f. count: measurements that told something, all but the first."""

    def __init__(self) -> None:
        mean_N, covariance_NN = curve_prior()
        # K hypotheses, state of D; the mean's two parts: for the data, and for the prior (to be multiplied by σ).
        size = CURVE + NODES
        self.mean_KD2 = torch.zeros(len(DYNAMICS), size, 2, dtype=torch.float64)
        self.mean_KD2[:, CURVE:, 1] = mean_N
        self.covariance_KDD = torch.zeros(len(DYNAMICS), size, size, dtype=torch.float64)
        self.covariance_KDD[:, TREND, TREND] = SLOPE**2
        self.covariance_KDD[:, CURVE:, CURVE:] = covariance_NN
        self.sums_K4 = torch.zeros(len(DYNAMICS), 4, dtype=torch.float64)  # of ν_data², ν_data·ν_prior, ν_prior², ln S
        self.measured, self.count = False, 0
        self.momentum_K, self.noise_K = torch.tensor(DYNAMICS, dtype=torch.float64).unbind(-1)
        self.move_KDD, self.noise_KDD = _motion(self.momentum_K, size)

    def advance(self, position: float) -> None:
        """One update under the exposure at `position`, a share of the range of exposures."""
        effect_KN = (1 - self.momentum_K)[:, None] * node_weights(position)
        move_KDD = self.move_KDD.clone()
        move_KDD[:, VELOCITY, CURVE:] = effect_KN
        move_KDD[:, LEVEL, CURVE:] = -effect_KN
        self.mean_KD2 = move_KDD @ self.mean_KD2
        self.covariance_KDD = move_KDD @ self.covariance_KDD @ move_KDD.mT + self.noise_KDD
        self.covariance_KDD[:, TREND, TREND] += DRIFT**2

    def measure(self, progress: float) -> None:
        """Take in the progress signal as it is now. The first value says where the level is, and no more."""
        if not self.measured:
            self._start(progress)
            return
        level_KD = self.covariance_KDD[:, LEVEL].clone()
        variance_K = level_KD[:, LEVEL] + self.noise_K**2
        gain_KD = level_KD / variance_K[:, None]
        data_K, prior_K = progress - self.mean_KD2[:, LEVEL, 0], -self.mean_KD2[:, LEVEL, 1]
        self.mean_KD2 = self.mean_KD2 + gain_KD[:, :, None] * torch.stack([data_K, prior_K], -1)[:, None]
        self.covariance_KDD = self.covariance_KDD - gain_KD[:, :, None] * level_KD[:, None]
        squares_3K = torch.stack([data_K**2, data_K * prior_K, prior_K**2]) / variance_K
        self.sums_K4 = self.sums_K4 + torch.cat([squares_3K, variance_K.log()[None]]).T
        self.count += 1

    def curve(self) -> tuple[Tensor, Tensor]:
        """Posterior mean [NODES] and covariance [NODES, NODES] of f, in the signal's units (in σ until two measurements tell σ)."""
        scale_K = self._scale()
        mean_KN = self.mean_KD2[:, CURVE:, 0] + scale_K[:, None] * self.mean_KD2[:, CURVE:, 1]
        covariance_KNN = scale_K[:, None, None] ** 2 * self.covariance_KDD[:, CURVE:, CURVE:]
        weight_K = self._log_likelihood(scale_K).softmax(0)
        mean_N = weight_K @ mean_KN
        apart_KN = mean_KN - mean_N
        spread_KNN = covariance_KNN + apart_KN[:, :, None] * apart_KN[:, None, :]
        return mean_N, (weight_K[:, None, None] * spread_KNN).sum(0)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {
            "mean": self.mean_KD2.clone(),
            "covariance": self.covariance_KDD.clone(),
            "sums": self.sums_K4.clone(),
            "measured": self.measured,
            "count": self.count,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken."""
        self.mean_KD2, self.covariance_KDD, self.sums_K4 = (state[name].clone() for name in ("mean", "covariance", "sums"))
        self.measured, self.count = state["measured"], state["count"]

    def _start(self, progress: float) -> None:
        self.mean_KD2[:, LEVEL, 0], self.mean_KD2[:, LEVEL, 1] = progress, 0.0
        self.covariance_KDD[:, LEVEL, :] = 0.0
        self.covariance_KDD[:, :, LEVEL] = 0.0
        self.covariance_KDD[:, LEVEL, LEVEL] = self.noise_K**2
        self.measured = True

    def _scale(self) -> Tensor:
        """σ [K] of greatest likelihood, each hypothesis its own."""
        if self.count < 2:
            return torch.ones(len(DYNAMICS), dtype=torch.float64)
        data_K, cross_K, *_ = self.sums_K4.T
        return ((cross_K + (cross_K**2 + 4 * self.count * data_K).sqrt()) / (2 * self.count)).clamp(min=TINY)

    def _log_likelihood(self, scale_K: Tensor) -> Tensor:
        data_K, cross_K, prior_K, spread_K = self.sums_K4.T
        misfit_K = data_K / scale_K**2 + 2 * cross_K / scale_K + prior_K
        return -(misfit_K + spread_K + self.count * math.log(2 * math.pi)) / 2 - self.count * scale_K.log()


def _motion(momentum_K: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """What one update does to the state, but for the effect of its exposure: its matrix, and the covariance of its noise in units of σ²."""
    own_K = 1 - momentum_K
    velocity_KD, noise_KD = torch.zeros(2, len(own_K), size, dtype=torch.float64)
    velocity_KD[:, VELOCITY], velocity_KD[:, TREND] = momentum_K, own_K
    noise_KD[:, LEVEL], noise_KD[:, VELOCITY] = -own_K, own_K
    move_KDD = torch.eye(size, dtype=torch.float64).repeat(len(own_K), 1, 1)
    move_KDD[:, VELOCITY] = velocity_KD
    move_KDD[:, LEVEL] -= velocity_KD
    return move_KDD, noise_KD[:, :, None] * noise_KD[:, None, :]
