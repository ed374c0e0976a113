"""Generation with a KV cache gives what repeated full forward passes of the training model give."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3Config

from megatron_atesd.config import RolloutConfig
from megatron_atesd.model.gpt import HiddenStateGPT, build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.rollout import training_engine as generation
from megatron_atesd.rollout.training_engine import generate
from tests.support.slow_generation import CONFIG, PROMPTS, STOP, slowly


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HiddenStateGPT]:
    folder: Path = tmp_path_factory.mktemp("hf")
    Qwen3Config(
        vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, tie_word_embeddings=False, max_position_embeddings=64, architectures=["Qwen3ForCausalLM"],
    ).save_pretrained(folder)  # fmt: skip
    with parallel_session(seed=3):
        architecture = read_architecture(folder)
        model = build_model(architecture, transformer_config(architecture, 1, 1, False, "fp32"))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        yield model


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, temperature=0.0), replace(CONFIG, batch=3)])
def test_equals_full_forward_passes(model: HiddenStateGPT, config: RolloutConfig) -> None:
    responses = generate(model, PROMPTS, [10, 11, 12, 13], [STOP], config)
    assert [list(r.ids) for r in responses] == [slowly(model, p, s, config) for p, s in zip(PROMPTS, [10, 11, 12, 13], strict=True)]


def test_a_response_ends_with_the_stop_id_or_is_truncated(model: HiddenStateGPT) -> None:
    responses = generate(model, PROMPTS * 8, list(range(32)), [STOP], CONFIG)
    assert {r.truncated for r in responses} == {True, False}
    for response in responses:
        assert (response.ids[-1] == STOP) is not response.truncated
        assert STOP not in response.ids[:-1]
        assert response.truncated is False or len(response.ids) == CONFIG.max_new_tokens


def test_a_response_does_not_depend_on_its_batch(model: HiddenStateGPT) -> None:
    alone = [generate(model, [prompt], [seed], [STOP], CONFIG)[0] for prompt, seed in zip(PROMPTS, range(4), strict=True)]
    assert generate(model, PROMPTS[::-1], [3, 2, 1, 0], [STOP], CONFIG) == alone[::-1]


def test_rows_that_fill_a_multiple_change_nothing(model: HiddenStateGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    config, seeds, rows = replace(CONFIG, max_new_tokens=40), range(20), list[int]()
    expected = generate(model, PROMPTS * 5, seeds, [STOP], config)

    def seen(model: HiddenStateGPT, ids_BS: torch.Tensor) -> torch.Tensor | None:
        rows.append(len(ids_BS))
        return forward(model, ids_BS)

    forward = generation._forward_stages
    monkeypatch.setattr(generation, "_forward_stages", seen)
    monkeypatch.setattr(generation, "token_multiple", lambda config: 16)
    assert generate(model, PROMPTS * 5, seeds, [STOP], config) == expected
    assert set(rows) == {32, 16}


def test_a_decoding_step_needs_no_copies_of_keys_for_every_head(model: HiddenStateGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a mask, a GPU has fused kernels only where queries and keys have equally many heads."""
    seen: list[tuple[int, int, bool]] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
        if options.get("attn_mask") is not None:
            seen.append((query.shape[1], key.shape[1], options.get("enable_gqa", False)))
        return attend(query, key, value, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    generate(model, PROMPTS, [1, 2, 3, 4], [], CONFIG)
    assert set(seen) == {(2, 2, False)}


def test_training_mode_and_cache_are_put_back(model: HiddenStateGPT) -> None:
    model.train()
    generate(model, PROMPTS, [1, 2, 3, 4], [STOP], CONFIG)
    assert model.training
    assert model.slot.cache is None
