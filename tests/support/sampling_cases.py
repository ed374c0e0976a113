"""A distribution, ways to sample from it, and the chi-square statistic of many draws."""

import numpy as np
import torch

from megatron_atesd.config import RolloutConfig
from megatron_atesd.model.vocabulary import VocabularyShard
from megatron_atesd.rollout.sampling import Sampler, uniforms
from tests.support.slow_generation import kept_probabilities

DRAWS = 8_000
EVERY = (torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS
LOGITS_V = (2 * torch.randn(60, generator=torch.Generator().manual_seed(1))).repeat_interleave(2)[:119]  # pairs of equal ones
WHOLE = VocabularyShard(0, 119, None)
PLAIN = {"top_k": 0, "top_p": 1.0}
CASES = {
    "0.7": RolloutConfig(temperature=0.7, **PLAIN),
    "1.0": RolloutConfig(temperature=1.0, **PLAIN),
    "1.3": RolloutConfig(temperature=1.3, **PLAIN),
    "top-k": RolloutConfig(temperature=1.0, top_k=20, top_p=1.0),
    "top-p": RolloutConfig(temperature=1.3, top_k=0, top_p=0.8),
    "min-p": RolloutConfig(temperature=1.0, **PLAIN, min_p=0.05),
    "all three": RolloutConfig(temperature=1.1, top_k=40, top_p=0.95, min_p=0.02),
}


def draws(sampling: RolloutConfig, shard: VocabularyShard = WHOLE) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and log-probabilities of one draw for each of DRAWS seeds. Collective over the shard's group."""
    logits_TV = LOGITS_V[shard.start : shard.start + shard.valid].repeat(DRAWS, 1)
    uniform_T = torch.tensor([uniforms(seed, 1)[0] for seed in range(DRAWS)])
    return Sampler(shard, sampling, 117, [0]).sample(logits_TV, uniform_T, [True] * DRAWS)


def probabilities(sampling: RolloutConfig) -> np.ndarray:
    """Of each id: two ids are beyond the tokenizer, and the stop id 0 is not allowed yet."""
    return kept_probabilities(LOGITS_V.double().numpy() / sampling.temperature, sampling, [0, 117, 118])


def statistic(sampling: RolloutConfig, expected: RolloutConfig | None = None) -> float:
    """Chi-square of the draws with `sampling` against what `expected` (None: the same) says; ids that few draws can hit are one class."""
    expected = expected or sampling
    counts = np.bincount(draws(sampling)[0].numpy(), minlength=len(LOGITS_V))
    seen, wanted = (np.array(_classes(x, expected)) for x in (counts, DRAWS * probabilities(expected)))
    return float(((seen - wanted) ** 2 / wanted).sum())


def chi_square_limit(sampling: RolloutConfig) -> float:
    """Exceeded by one right sampler in a thousand (Wilson and Hilferty's approximation of the quantile)."""
    freedom = len(_classes(probabilities(sampling), sampling)) - 1
    return freedom * (1 - 2 / (9 * freedom) + 3.0902 * (2 / (9 * freedom)) ** 0.5) ** 3


def _classes(values: np.ndarray, sampling: RolloutConfig) -> list[float]:
    often = DRAWS * probabilities(sampling) >= 20
    rest = values[~often].sum()
    return [*values[often], *([rest] if probabilities(sampling)[~often].sum() else [])]
