"""Generation with a KV cache gives what repeated full forward passes of the training model give."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import Qwen3Config

from megatron_atesd.config import EngineConfig, RolloutConfig
from megatron_atesd.errors import ConfigError
from megatron_atesd.model import decoding
from megatron_atesd.model.decoding import Decoder
from megatron_atesd.model.gpt import HiddenStateGPT, build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.lora import LoraSettings, adapters_off, add_adapters
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.rollout import stream
from megatron_atesd.rollout.engine import Response
from megatron_atesd.rollout.training_engine import TrainingEngine
from tests.support.lora_ranks import fill
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


CONFIGS = {
    "as the papers": CONFIG,
    "greedy": replace(CONFIG, temperature=0.0),
    "the whole vocabulary": replace(CONFIG, top_k=0, top_p=1.0, temperature=1.3),
    "top-p of the whole vocabulary": replace(CONFIG, top_k=0, top_p=0.8),
    "min-p": replace(CONFIG, top_k=0, top_p=1.0, min_p=0.2),
    "all three": replace(CONFIG, top_k=9, top_p=0.7, min_p=0.1, temperature=0.7),
    "not before the ninth": replace(CONFIG, min_new_tokens=9),
}


def generate(model: HiddenStateGPT, prompts: list[list[int]], seeds: Sequence[int], config: RolloutConfig, **engine: Any) -> list[Response]:
    return TrainingEngine(model, [STOP], config=EngineConfig(**engine)).generate(prompts, seeds, config)


@pytest.mark.parametrize("batch", [0, 3])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_equals_full_forward_passes(model: HiddenStateGPT, config: RolloutConfig, batch: int) -> None:
    seeds = range(16)
    for response, prompt, seed in zip(generate(model, PROMPTS * 4, seeds, config, batch=batch), PROMPTS * 4, seeds, strict=True):
        ids, logprobs = slowly(model, prompt, seed, config)
        assert list(response.ids) == ids
        assert response.logprobs == pytest.approx(logprobs, abs=1e-4)
        assert response.text_end == len(ids) - (ids[-1] == STOP)


ADAPTERS = {
    "all": LoraSettings(rank=4, alpha=6.0),
    "some, rslora": LoraSettings(rank=16, alpha=6.0, targets=("k_proj", "o_proj", "up_proj"), rslora=True),
}


def adapted(model: HiddenStateGPT, settings: LoraSettings) -> HiddenStateGPT:
    """A copy of the model, with adapters whose B is not zero."""
    other = build_model(model.arch, model.config)
    other.load_state_dict(model.state_dict())
    add_adapters(other, settings)
    fill(other, "lora_B")
    return other


@pytest.mark.parametrize("config", ["as the papers", "greedy", "the whole vocabulary"])
@pytest.mark.parametrize("settings", ADAPTERS.values(), ids=ADAPTERS)
def test_with_adapters_it_equals_full_forward_passes(model: HiddenStateGPT, settings: LoraSettings, config: str) -> None:
    lora, prompts = adapted(model, settings), PROMPTS * 2
    responses = generate(lora, prompts, range(8), CONFIGS[config])
    for response, prompt, seed in zip(responses, prompts, range(8), strict=True):
        ids, logprobs = slowly(lora, prompt, seed, CONFIGS[config])
        assert list(response.ids) == ids
        assert response.logprobs == pytest.approx(logprobs, abs=1e-4)
    base = generate(model, prompts, range(8), CONFIGS[config])
    assert [r.ids for r in base] != [r.ids for r in responses]
    with adapters_off(lora):
        assert generate(lora, prompts, range(8), CONFIGS[config]) == base


def test_a_product_with_adapters_is_the_module_s_also_where_it_rounds(model: HiddenStateGPT) -> None:
    """A bf16 base, fp32 adapters: their sum is rounded once. The modules compute in FP8, too."""
    lora = adapted(model, ADAPTERS["all"])
    layer = lora.chunks[0].get_submodule("decoder.layers.0")
    for place in ("self_attention.linear_qkv", "mlp.linear_fc2"):
        module: Any = layer.get_submodule(place)
        module.weight.data = module.weight.data.bfloat16()
        x = torch.randn(5, module.weight.shape[1], generator=torch.Generator().manual_seed(1)).bfloat16()
        expected = module(x)[0]
        product = decoding._Product(module, None, 1e-6, model.config)
        assert product.adapters is not None
        assert product.adapters[0].dtype == torch.float32
        torch.testing.assert_close(product(x), expected, rtol=2**-8, atol=0)  # one place in the last of bf16's digits
        assert (product(x) == expected).float().mean() > 0.98
        product.fused = True
        assert torch.equal(product(x), expected)


def test_a_response_ends_with_the_stop_id_or_is_truncated(model: HiddenStateGPT) -> None:
    responses = generate(model, PROMPTS * 8, range(32), CONFIG)
    assert {r.truncated for r in responses} == {True, False}
    for response in responses:
        assert (response.ids[-1] == STOP) is not response.truncated
        assert STOP not in response.ids[:-1]
        assert response.truncated is False or len(response.ids) == CONFIG.max_new_tokens


@pytest.mark.parametrize("batch", [1, 2, 5, 40])
def test_a_response_depends_on_its_prompt_and_seed_only(model: HiddenStateGPT, batch: int) -> None:
    prompts, seeds, config = PROMPTS * 10, list(range(40)), replace(CONFIG, max_new_tokens=40)
    alone = [generate(model, [prompt], [seed], config)[0].ids for prompt, seed in zip(prompts, seeds, strict=True)]
    assert [r.ids for r in generate(model, prompts[::-1], seeds[::-1], config, batch=batch)] == alone[::-1]


def test_samples_of_one_prompt_are_read_once(model: HiddenStateGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [generate(model, [PROMPTS[2]], [seed], CONFIG)[0].ids for seed in range(5)]
    read: list[int] = []
    forward = Decoder.forward

    def seen(self: Decoder, ids_T: torch.Tensor, *rest: Any) -> torch.Tensor | None:
        read.append(len(ids_T))
        return forward(self, ids_T, *rest)

    monkeypatch.setattr(Decoder, "forward", seen)
    monkeypatch.setattr(stream, "PROMPT_TOKENS", 2 * len(PROMPTS[2]))
    assert [r.ids for r in generate(model, [PROMPTS[2]] * 5, range(5), CONFIG)] == alone
    assert read[0] == len(PROMPTS[2])
    assert max(read[1:]) <= 5


def test_ids_beyond_the_tokenizer_are_never_sampled(model: HiddenStateGPT) -> None:
    engine = TrainingEngine(model, [STOP], id_limit=7)
    responses = engine.generate(PROMPTS * 4, range(16), replace(CONFIG, top_k=0, top_p=1.0))
    assert {i for r in responses for i in r.ids} == set(range(7))


def test_a_stop_text_ends_a_response_and_is_part_of_its_text(model: HiddenStateGPT) -> None:
    engine = TrainingEngine(model, [STOP], decode=lambda ids: "".join(chr(97 + i) for i in ids))
    free = engine.generate(PROMPTS * 4, range(16), CONFIG)
    text = "".join(chr(97 + i) for i in free[0].ids[2:4])
    first, *_ = engine.generate(PROMPTS * 4, range(16), replace(CONFIG, stop=[text, "never"]))
    assert (first.ids, first.truncated, first.text_end) == (free[0].ids[:4], False, 4)


def test_a_stop_text_before_min_new_tokens_does_not_count(model: HiddenStateGPT) -> None:
    engine = TrainingEngine(model, [STOP], decode=lambda ids: "".join(chr(97 + i) for i in ids))
    longer = replace(CONFIG, min_new_tokens=6)
    free = engine.generate(PROMPTS * 4, range(16), longer)
    early = next(r for r in free if not set(r.ids[1:3]) & {*r.ids[:1], *r.ids[3:]})
    text = "".join(chr(97 + i) for i in early.ids[1:3])
    assert engine.generate(PROMPTS * 4, range(16), replace(longer, stop=[text]))[free.index(early)] == early


def test_each_response_is_told_when_it_is_finished(model: HiddenStateGPT) -> None:
    told: dict[int, Response] = {}
    responses = TrainingEngine(model, [STOP], config=EngineConfig(batch=3)).generate(PROMPTS * 4, range(16), CONFIG, told.__setitem__)
    assert [told[i] for i in range(16)] == responses
    assert list(told) != sorted(told)  # long ones come after short ones that began later


@pytest.mark.parametrize("batch", [0, 6])
def test_a_small_cache_makes_small_batches_of_the_same_responses(model: HiddenStateGPT, batch: int) -> None:
    config, prompts = replace(CONFIG, max_new_tokens=40, min_new_tokens=2), PROMPTS * 6
    expected = generate(model, prompts, range(24), config)
    token = 3 * 2 * 2 * 16 * 4  # bytes: layers, key and value, query groups, head size, fp32
    for tokens in (56, 120, 400):
        engine = TrainingEngine(model, [STOP], config=EngineConfig(batch=batch, cache_gib=tokens * token / 2**30))
        assert [r.ids for r in engine.generate(prompts, range(24), config)] == [r.ids for r in expected]
        assert engine.last.cache_peak_bytes <= tokens * token


def test_a_cache_that_cannot_hold_one_sequence_is_refused(model: HiddenStateGPT) -> None:
    engine = TrainingEngine(model, [STOP], config=EngineConfig(cache_gib=1e-6))
    with pytest.raises(ConfigError, match=r"engine.cache_gib is 1e-06, which holds 1 tokens .* need 19: set it to 1.587e-05 or more, or 0"):
        engine.generate(PROMPTS, range(4), CONFIG)


def test_places_are_taken_by_the_next_prompts(model: HiddenStateGPT) -> None:
    engine = TrainingEngine(model, [STOP], config=EngineConfig(batch=8))
    engine.generate(PROMPTS * 40, range(160), replace(CONFIG, max_new_tokens=60))
    assert engine.last.tokens / engine.last.slots > 0.8
    assert engine.last.steps < 1.3 * engine.last.tokens / 8


def test_rows_that_fill_a_multiple_change_nothing(model: HiddenStateGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """As FP8 needs it, with the modules of the layers for products."""
    expected, rows = generate(model, PROMPTS * 5, range(20), CONFIG), set[int]()
    call = decoding.F.pad

    def seen(x: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        padded = call(x, *rest, **options)
        rows.add(len(padded))
        return padded

    class Alike(decoding._Product):
        def __init__(self, module: Any, norm: torch.Tensor | None, eps: float, *rest: Any, **more: Any) -> None:
            super().__init__(module, norm, eps, *rest, **more)
            self.fused, self.multiple = True, 16
            self.module = lambda x: (F.linear(x if norm is None else F.rms_norm(x, norm.shape, norm, eps), module.weight),)

    monkeypatch.setattr(decoding, "_Product", Alike)
    monkeypatch.setattr(decoding.F, "pad", seen)
    assert [r.ids for r in generate(model, PROMPTS * 5, range(20), CONFIG)] == [r.ids for r in expected]
    assert {size % 16 for size in rows} == {0}


def test_a_decoding_step_needs_no_copies_of_keys_for_every_head(model: HiddenStateGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a mask, a GPU has fused kernels only where queries and keys have equally many heads."""
    seen: list[tuple[int, int, bool]] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
        if options.get("attn_mask") is not None:
            seen.append((query.shape[1], key.shape[1], options.get("enable_gqa", False)))
        return attend(query, key, value, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    generate(model, PROMPTS, [1, 2, 3, 4], CONFIG)
    assert set(seen) == {(2, 2, False)}


def test_training_mode_is_put_back(model: HiddenStateGPT) -> None:
    model.train()
    generate(model, PROMPTS, [1, 2, 3, 4], CONFIG)
    assert model.training
