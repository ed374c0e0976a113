"""How many tokens engine.cache_gib holds on the pipeline stage with the most layers; too few for a sequence are refused at the start."""

from pathlib import Path
from typing import Any

import pytest

from examples.quickstart.warm_start import describe_model
from megatron_atesd.config import EngineConfig, load_config
from megatron_atesd.data.problems import save_problems
from megatron_atesd.data.sources.chain import chain_splits
from megatron_atesd.errors import ConfigError
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.rollout.cache_room import cache_tokens
from megatron_atesd.train.checks import check_before_work
from tests.support.small_run import arguments

ARCH = Architecture("qwen3", 32, 48, 8, 4, 2, 16, 33, 64, 1e4, 1e-6, tied=True, qk_norm=True)
LAYER = 2 * 2 * 16 * 4  # bytes of a token: key and value, query groups, head size, fp32


@pytest.mark.parametrize(
    ("layout", "user", "groups", "layers"),
    [
        ((1, 1, 1), {}, 1, 8),
        ((1, 2, 1), {}, 2, 4),
        ((1, 2, 2), {}, 1, 4),
        ((1, 4, 1), {"num_layers_in_first_pipeline_stage": 1, "num_layers_in_last_pipeline_stage": 1}, 4, 3),
        ((1, 2, 1), {"pipeline_model_parallel_layout": "Ettt|tttttL"}, 2, 5),
        ((1, 2, 2), {"pipeline_model_parallel_layout": "Et|tt|ttt|ttL"}, 1, 4),
    ],
)
def test_the_stage_with_the_most_layers_decides(layout: tuple[int, int, int], user: dict[str, Any], groups: int, layers: int) -> None:
    tensor, pipeline, virtual = layout
    megatron = transformer_config(ARCH, tensor, pipeline, False, "fp32", user, virtual)
    token = groups * (layers * LAYER + LAYER // 2)  # while rows move, keys or values of one layer are there twice
    exactly, less = EngineConfig(cache_gib=20 * token / 2**30), EngineConfig(cache_gib=(20 * token - 1) / 2**30)
    assert cache_tokens(exactly, ARCH, megatron, 20, "both") == 20
    with pytest.raises(ConfigError, match=r"holds 19 tokens of keys and values.*; both need 20: set it to"):
        cache_tokens(less, ARCH, megatron, 20, "both")


def test_tensor_parallel_ranks_and_bf16_hold_twice_as_much_each() -> None:
    def held(tensor: int, dtype: str) -> int | None:
        return cache_tokens(
            EngineConfig(cache_gib=400.5 * 8.5 * LAYER / 2**30), ARCH, transformer_config(ARCH, tensor, 1, False, dtype), 1, ""
        )

    assert (held(1, "fp32"), held(2, "fp32"), held(1, "bf16"), held(2, "bf16")) == (400, 801, 801, 1602)


def test_without_a_bound_any_length_has_room() -> None:
    assert cache_tokens(EngineConfig(), ARCH, transformer_config(ARCH, 1, 1, False, "fp32"), 10**9, "") is None


def test_a_run_is_refused_before_its_work_by_its_longest_prompt_and_response(tmp_path: Path) -> None:
    describe_model(tmp_path / "hf")  # without weights
    for name, problems in chain_splits({"train": 8, "probe": 4}, seed=1).items():
        save_problems(problems, tmp_path / f"{name}.jsonl")

    def check(*overrides: str) -> None:
        lengths = ("--prompt.max_length=200", "--rollout.max_new_tokens=24", "--parallel.tensor=1")
        check_before_work(load_config(arguments(tmp_path, tmp_path / "run", *lengths, *overrides)), 1)

    with pytest.raises(
        ConfigError, match=r"engine.cache_gib is 1e-05, .*; prompt.max_length 200 and rollout.max_new_tokens 24 need 224: set"
    ):
        check("--engine.cache_gib=1e-05")
    check("--engine.cache_gib=0.1")
