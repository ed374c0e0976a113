"""The look-ahead reward of a decision and the advantages of a batch of rewards. Pure functions on plain numbers.

The decision taken after t0 updates is judged by ℓ_t0 … ℓ_t0+L (progress signal) and g_t0+1 … g_t0+L (grounding). Sums are math.fsum's: the
last bits of `sum` depend on the version of Python, and a run may go on under another one.
"""

import math
from collections.abc import Sequence
from itertools import pairwise


def learning_progress(progress: Sequence[float], discount: float, positive_part: bool = True) -> float:
    """G_lp = Σ_i γ^{i−1}·max(0, ℓ_{t0+i−1} − ℓ_{t0+i}), in the unit of ℓ (ATESD, learning term).

    progress: ℓ at the decision and after each of the L updates, L + 1 values, lower is better.
    positive_part: False keeps the sign of each change. Positive parts alone grow with noise (0.56 σ a term for white noise of SD σ);
        signed terms cancel it, and at γ = 1 telescope to ℓ_t0 − ℓ_{t0+L}.
    """
    drops = [before - after for before, after in pairwise(progress)]
    return math.fsum(discount**i * (max(0.0, drop) if positive_part else drop) for i, drop in enumerate(drops))


def grounding_level(grounding: Sequence[float], discount: float) -> float:
    """G_gt = Σ_i γ^{i−1}·g_{t0+i} / Σ_i γ^{i−1}, in the unit of g (ATESD, grounding term).

    grounding: g after each of the L updates, L values.
    """
    weights = [discount**i for i in range(len(grounding))]
    return math.fsum(w * g for w, g in zip(weights, grounding, strict=True)) / math.fsum(weights)


def combine(
    learning: Sequence[float], grounding: Sequence[float], grounding_weight: float, scales: tuple[float, float] = (1.0, 1.0)
) -> list[float]:
    """R = G_lp / σ_lp + λ_gt·G_gt / σ_gt of each decision (ATESD, R; scales of 1 give the literal sum)."""
    return [lp / scales[0] + grounding_weight * gt / scales[1] for lp, gt in zip(learning, grounding, strict=True)]


def running_std(values: Sequence[float]) -> float:
    """Population standard deviation of the values so far; 1 while it is 0 or a single value leaves it unknown."""
    std = _weighted_moments(values, [1.0] * len(values))[1]
    return std if std > 0 else 1.0


def batch_advantages(rewards: Sequence[float], epsilon: float = 1e-6) -> list[float]:
    """A_j = (R_j − mean R) / (std R + ε) within the batch, population std (ATESD, policy update)."""
    mean, std = _weighted_moments(rewards, [1.0] * len(rewards))
    return [(reward - mean) / (std + epsilon) for reward in rewards]


def ema_advantages(rewards: Sequence[float], count: int, decay: float, epsilon: float = 1e-6) -> list[float]:
    """Advantages of the last `count` rewards against the exponentially weighted mean and std of all of them.

    The newest reward has weight 1 and each older one `decay` times its successor's. Unlike the batch form it keeps how good a reward was
    when the batch is small, and works for a batch of one; the very first reward has advantage 0.
    """
    weights = [decay**age for age in reversed(range(len(rewards)))]
    mean, std = _weighted_moments(rewards, weights)
    return [(reward - mean) / (std + epsilon) for reward in rewards[-count:]]


def _weighted_moments(values: Sequence[float], weights: Sequence[float]) -> tuple[float, float]:
    total = math.fsum(weights)
    mean = math.fsum(w * v for w, v in zip(weights, values, strict=True)) / total
    variance = math.fsum(w * (v - mean) ** 2 for w, v in zip(weights, values, strict=True)) / total
    return mean, math.sqrt(variance)
