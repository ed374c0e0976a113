"""What is refused of engine.name vllm before the heavy work, how much memory it gets, and what it does with logits: all without vLLM."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_atesd.config import EngineConfig, ModelConfig, ParallelConfig, PrecisionConfig, PromptConfig, RolloutConfig, TrainConfig
from megatron_atesd.errors import ConfigError
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.rollout import vllm_check
from megatron_atesd.rollout.vllm_check import GIB, cache_bytes, check_vllm
from megatron_atesd.rollout.vllm_sampler import Sampling, choose_tokens, tempered

# A block of 128 tokens: keys and values of 3 layers with 2 query groups of size 32 in fp32, 196,608 bytes.
ARCH = Architecture("qwen3", 96, 288, 3, 4, 2, 32, 61, 4096, 1e4, 1e-6, tied=True, qk_norm=True)
BLOCK = 128 * 3 * 2 * 2 * 32 * 4
CONFIG = TrainConfig(
    model=ModelConfig(dtype="fp32"),
    prompt=PromptConfig(max_length=200),
    rollout=RolloutConfig(max_new_tokens=100),  # 300 tokens together: 3 blocks
    engine=EngineConfig("vllm", batch=4),
)


def test_without_vllm_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vllm_check, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"engine.name is vllm, but vLLM is not installed; pip install -e '.\[vllm\]' with a GPU"):
        check_vllm(CONFIG, ARCH)
    check_vllm(replace(CONFIG, engine=EngineConfig("training")), ARCH)  # which needs none


def test_fp8_rollouts_are_the_training_engines():
    with pytest.raises(ConfigError, match="is fp8_tensorwise with engine"):
        check_vllm(replace(CONFIG, precision=PrecisionConfig(rollout="fp8_tensorwise")), ARCH)


def test_the_cache_is_no_larger_than_all_sequences():
    assert cache_bytes(CONFIG, ARCH, free=GIB) == (4 * 3 + 1) * BLOCK
    assert cache_bytes(replace(CONFIG, engine=EngineConfig("vllm", batch=4, cache_gib=1.0)), ARCH, free=0) == (4 * 3 + 1) * BLOCK


def test_the_cache_is_a_share_of_what_is_free_or_what_is_given():
    assert cache_bytes(CONFIG, ARCH, free=20 * BLOCK) == 8 * BLOCK
    assert cache_bytes(replace(CONFIG, engine=EngineConfig("vllm", batch=4, cache_gib=5 * BLOCK / GIB)), ARCH, free=0) == 5 * BLOCK


def test_tensor_parallel_ranks_hold_their_query_groups_only():
    assert cache_bytes(replace(CONFIG, parallel=ParallelConfig(tensor=2)), ARCH, free=GIB) == (4 * 3 + 1) * BLOCK // 2


def test_a_cache_without_room_for_one_sequence_is_refused():
    with pytest.raises(ConfigError, match=r"engine.cache_gib is 0.0005, but keys and values of one sequence of prompt.max_length 200"):
        cache_bytes(replace(CONFIG, engine=EngineConfig("vllm", cache_gib=0.0005)), ARCH, free=GIB)


def test_logits_are_divided_by_the_temperature_in_fp32():
    sampling = Sampling(None, RolloutConfig(temperature=0.7))
    compute = tempered(lambda hidden: hidden.bfloat16(), sampling)
    hidden = torch.randn(3, 5)
    torch.testing.assert_close(compute(hidden), hidden.bfloat16().float() / 0.7)
    sampling.config = RolloutConfig(temperature=0.0)  # greedy: as they are
    assert torch.equal(compute(hidden), hidden.bfloat16().float())


def kept_by_hand(logits: list[float], config: RolloutConfig) -> list[int]:
    """Top-k, then top-p among these, then min-p, one token after the other, the most likely first."""
    order = sorted(range(len(logits)), key=lambda token: -logits[token])[: config.top_k or None]
    weights = torch.tensor([logits[token] for token in order]).double().softmax(dim=-1).tolist()
    kept, mass = [], 0.0
    for token, weight in zip(order, weights, strict=True):
        if mass >= config.top_p or weight < config.min_p * weights[0]:
            break
        kept.append(token)
        mass += weight
    return kept


@pytest.mark.parametrize("cut", [{"top_k": 4}, {"top_p": 0.7}, {"min_p": 0.2}, {"top_k": 6, "top_p": 0.8, "min_p": 0.1}, {}])
def test_the_uniform_number_runs_over_the_kept_tokens_by_probability(cut: dict[str, Any]):
    config = RolloutConfig(temperature=1.0, **({"top_k": 0, "top_p": 1.0} | cut))
    logits_V = torch.randn(12, generator=torch.Generator().manual_seed(3))
    kept = kept_by_hand(logits_V.tolist(), config)
    mass = logits_V[kept].double().softmax(dim=-1).cumsum(dim=-1)
    uniform_B = torch.linspace(0, 1, 401, dtype=torch.float64)[:-1]
    expected = [kept[int((mass <= number).sum())] for number in uniform_B]
    assert choose_tokens(logits_V.expand(400, -1), uniform_B, config).tolist() == expected
    assert set(expected) == set(kept)


def test_temperature_0_takes_the_most_likely_token():
    logits_BV = torch.tensor([[0.0, 2.0, 1.0], [3.0, -1.0, 1.0]])
    assert choose_tokens(logits_BV, torch.tensor([0.9, 0.9]), RolloutConfig(temperature=0.0)).tolist() == [1, 0]


def test_logits_that_are_nan_give_some_token():
    nothing_BV = torch.full((2, 5), torch.nan)
    assert all(0 <= token < 5 for token in choose_tokens(nothing_BV, torch.tensor([0.1, 0.9]), RolloutConfig(top_k=3)).tolist())
