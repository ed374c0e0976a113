"""Temperature, top-k, top-p and the uniform number decide a token, and nothing else."""

import math

import numpy as np
import pytest
import torch

from megatron_atesd.config import RolloutConfig
from megatron_atesd.model.vocabulary import VocabularyShard
from megatron_atesd.rollout.sampling import Sampler, sequence_seed, uniforms
from tests.support.sampling_cases import CASES, EVERY, chi_square_limit, statistic

LOGITS = torch.log(torch.tensor([[0.1, 0.5, 0.15, 0.25]]))


def sample_tokens(
    logits_TV: torch.Tensor, uniform_T: torch.Tensor, temperature: float, top_p: float, top_k: int, min_p: float = 0.0
) -> torch.Tensor:
    sampling = RolloutConfig(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
    whole = VocabularyShard(0, logits_TV.shape[1], None)
    return Sampler(whole, sampling, logits_TV.shape[1], ()).sample(logits_TV.clone(), uniform_T, [False] * len(logits_TV))[0]


def draws(temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, count: int = 20_000) -> torch.Tensor:
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    ids = sample_tokens(LOGITS.expand(count, -1), uniform, temperature, top_p, top_k)
    return torch.bincount(ids, minlength=4).double() / count


def test_plain_sampling_follows_the_softmax() -> None:
    torch.testing.assert_close(draws(), torch.tensor([0.1, 0.5, 0.15, 0.25]).double(), rtol=0, atol=1e-3)


def test_temperature_divides_the_logits() -> None:
    expected = torch.softmax(LOGITS[0].double() / 2, dim=-1)
    torch.testing.assert_close(draws(temperature=2.0), expected, rtol=0, atol=1e-3)


def test_top_k_keeps_the_most_likely_and_renormalises() -> None:
    torch.testing.assert_close(draws(top_k=2), torch.tensor([0, 2 / 3, 0, 1 / 3]).double(), rtol=0, atol=1e-3)


def test_top_p_keeps_the_smallest_set_that_reaches_its_mass() -> None:
    torch.testing.assert_close(draws(top_p=0.6), torch.tensor([0, 2 / 3, 0, 1 / 3]).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(draws(top_p=0.4), torch.tensor([0, 1.0, 0, 0]).double())


def test_top_p_needs_one_more_token_just_above_a_cumulative_mass() -> None:
    torch.testing.assert_close(draws(top_p=0.5), torch.tensor([0, 1.0, 0, 0]).double())
    torch.testing.assert_close(draws(top_p=0.76), torch.tensor([0, 5 / 9, 1.5 / 9, 2.5 / 9]).double(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_top_p_stops_exactly_at_its_mass(kept: int) -> None:
    uniform = (torch.arange(100, dtype=torch.float64) + 0.5) / 100
    ids = sample_tokens(torch.zeros(100, 4), uniform, 1.0, kept / 4, 0)  # four masses of exactly ¼
    assert len(ids.unique()) == kept


def test_top_p_counts_mass_among_the_top_k() -> None:
    # After top-k 3 the masses are .556, .278, .167: 0.8 needs two of them (0.5 of the full vocabulary's mass would need one).
    torch.testing.assert_close(draws(top_p=0.8, top_k=3), torch.tensor([0, 2 / 3, 0, 1 / 3]).double(), rtol=0, atol=1e-3)


def test_min_p_drops_what_is_less_likely_than_a_share_of_the_first() -> None:
    drawn = torch.bincount(sample_tokens(LOGITS.expand(len(EVERY), -1), EVERY, 1.0, 1.0, 0, min_p=0.4), minlength=4) / len(EVERY)
    torch.testing.assert_close(drawn, torch.tensor([0, 2 / 3, 0, 1 / 3]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("sampling", CASES.values(), ids=CASES)
def test_draws_follow_the_distribution(sampling: RolloutConfig) -> None:
    """Chi-square of thousands of seeds against probabilities made without torch, at 0.1 percent."""
    assert statistic(sampling) < chi_square_limit(sampling)


def test_a_wrong_distribution_is_seen() -> None:
    assert statistic(CASES["0.7"], expected=CASES["1.0"]) > chi_square_limit(CASES["1.0"])


def test_temperature_zero_takes_the_most_likely() -> None:
    assert sample_tokens(LOGITS, torch.tensor([0.99]), 0.0, 0.1, 1).tolist() == [1]


@pytest.mark.parametrize("top_k", [1, 3, 20, 31])
def test_of_equally_likely_tokens_the_first_ids_are_kept(top_k: int) -> None:
    logits = torch.randint(3, (200, 32), generator=torch.Generator().manual_seed(2)).float()
    uniform = torch.rand(200, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    kept = [np.argsort(-row, kind="stable")[:top_k] for row in logits.numpy()]
    mass = [np.cumsum(np.exp(row[ids])) for row, ids in zip(logits.double().numpy(), kept, strict=True)]
    expected = [int(ids[np.searchsorted(m, float(u) * m[-1], side="right")]) for ids, m, u in zip(kept, mass, uniform, strict=True)]
    assert sample_tokens(logits, uniform, 1.0, 1.0, top_k).tolist() == expected


@pytest.mark.parametrize("temperature", [0.0, 1e-3])
def test_of_the_most_likely_tokens_the_first_is_taken(temperature: float) -> None:
    logits = torch.zeros(1, 40)
    logits[0, 9:] = 30.0
    assert sample_tokens(logits, torch.zeros(1, dtype=torch.float64), temperature, 0.01, 20).tolist() == [9]


def test_top_p_counts_all_that_are_as_likely_as_its_last() -> None:
    """A nucleus that ends among equals, of which there are more than the tokens that are looked at first: the first ids are in it."""
    random = torch.Generator().manual_seed(4)
    likely_TK = torch.stack([torch.randperm(5000, generator=random)[:2000].sort()[0] for _ in range(4)])
    logits_TV = torch.zeros(4, 5000).scatter(1, likely_TK, 1.0)
    last_T = sample_tokens(logits_TV, torch.full((4,), math.nextafter(1.0, 0.0), dtype=torch.float64), 1.0, 0.1, 0)
    kept = math.ceil(0.1 * (2000 + 3000 / math.e))
    assert last_T.tolist() == likely_TK[:, kept - 1].tolist()
    first_of_torch = logits_TV.topk(1024, sorted=False).indices.sort(dim=-1).values
    assert (first_of_torch[:, kept - 1] != last_T).all()  # or the test would show nothing: torch takes others of the equals


def test_the_largest_uniform_number_still_gives_a_kept_token() -> None:
    almost_one = torch.tensor([math.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert sample_tokens(LOGITS, almost_one, 1.0, 0.6, 0).tolist() == [3]


def test_logits_that_are_nan_give_some_token() -> None:
    nothing = torch.full((2, 5), torch.nan)
    assert all(0 <= token < 5 for token in sample_tokens(nothing, torch.tensor([0.1, 0.9]), 1.0, 0.9, 3).tolist())


def test_uniforms_of_a_row_depend_on_its_seed_alone() -> None:
    assert (uniforms(4, 8) == uniforms(4, 8)).all()
    assert (uniforms(4, 8) == uniforms(4, 12)[:8]).all()
    assert not (uniforms(3, 8) == uniforms(4, 8)).any()


@pytest.mark.parametrize(
    ("seed", "other"), [(5, 5 + 2**32), (0, 2**32), (7, 7 + 2**62), (2**63 - 1, 2**62 - 1), (123456789, 123456789 + 2**40), (3, 3 + 2**33)]
)
def test_every_bit_of_a_seed_counts(seed: int, other: int) -> None:
    assert not set(uniforms(seed, 64)) & set(uniforms(other, 64))


def test_uniforms_are_uniform() -> None:
    drawn = torch.from_numpy(np.stack([uniforms(seed, 1000) for seed in range(50)]))
    assert drawn.dtype == torch.float64
    assert 0 <= drawn.min() < drawn.max() < 1
    shares = torch.histc(drawn, bins=10, min=0, max=1) / drawn.numel()
    torch.testing.assert_close(shares, torch.full((10,), 0.1, dtype=torch.float64), rtol=0, atol=0.01)


def test_seeds_differ_in_every_part() -> None:
    seeds = {sequence_seed(run, update, name) for run in (1, 2) for update in (1, 12) for name in ("1", "2", "21")}
    assert len(seeds) == 12
    assert all(0 <= seed < 2**63 for seed in seeds)
