"""megatron.core's own engine (docs/megatron_engine.md): with our draws, and torch in place of flash-attn, it is the training engine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from megatron.core import __version__
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer import attention
from packaging.version import Version
from torch import Tensor

from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.config import RolloutConfig
from megatron_atesd.model.chunk import ModelChunk
from megatron_atesd.model.gpt import HiddenStateGPT, build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.rollout.sampling import uniforms
from megatron_atesd.rollout.training_engine import TrainingEngine
from megatron_atesd.rollout.vllm_sampler import Draw, Draws
from tests.support.convert_models import save_model

pytestmark = pytest.mark.skipif(Version(__version__).release < (0, 19), reason="the engine's sampler has these arguments since 0.19")

STOP, STEPS = 7, 12
SAMPLING = RolloutConfig(max_new_tokens=STEPS, temperature=1.1, top_k=20, top_p=0.95)
BLOCK_BYTES = 16 * 2 * 2 * 2 * 16 * 4  # tokens, keys and values, layers, groups, head_dim, fp32
BLOCKS = 10  # eight responses of up to 37 tokens want 24


def paged_attention(_: Any, query: Tensor, keys: Tensor, values: Tensor, *places: Any, softmax_offset: None) -> Tensor:
    """flash-attn's work. query [T, 1, heads, D] of several requests, keys and values [blocks, tokens of a block, groups, D] → as query."""
    _, _, cu_query, _, lengths, table, one_each, *_ = places
    out, start = torch.zeros_like(query), 0
    counts = [1] * len(lengths) if one_each else cu_query.diff().tolist()
    for count, length, blocks in zip(counts, lengths.tolist(), table.long(), strict=True):
        if count and length:
            k, v = (t[blocks[: -(-length // t.shape[1])]].flatten(0, 1)[:length].transpose(0, 1) for t in (keys, values))
            mask, q = torch.ones(count, length, dtype=torch.bool).tril(length - count), query[start : start + count, 0].transpose(0, 1)
            out[start : start + count, 0] = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(0, 1)
        start += count
    return out


class OurDraws:
    """In place of the engine's sampler: which response and which of its tokens a row is, the context knows."""

    def __init__(self, draws: Draws, prompts: Sequence[Sequence[int]]) -> None:
        self.draws, self.prompts = draws, prompts

    def sample_kernel(self, logits: Tensor, n: int, context: Any, *, output: Tensor, **_: Any) -> None:
        active = slice(context.paused_request_count, context.total_request_count)
        places = context.request_ids[active].tolist()
        ends = (context.request_kv_length_offsets + context.request_query_lengths)[active].tolist()
        rows = [(self.draws.by_place[p], end - len(self.prompts[p])) for p, end in zip(places, ends, strict=True)]
        output.copy_(self.draws.draw(logits[:n].float().clone(), rows))


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine lacks on a CPU, and logits of our model."""
    context = pytest.importorskip("megatron.core.inference.contexts.dynamic_context")
    monkeypatch.setattr(context, "triton_append_key_value_cache", None)
    monkeypatch.setattr(attention, "HAVE_FA3", True)
    monkeypatch.setattr(attention, "rearrange", lambda out, _: out.flatten(2))
    monkeypatch.setattr(attention.Attention, "flash_decode_and_prefill", paged_attention)
    for name in ("forward", "_postprocess"):
        monkeypatch.setattr(ModelChunk, name, getattr(GPTModel, name))


def engine_of(model: HiddenStateGPT) -> Any:
    wrapper: Any = pytest.importorskip("megatron.core.inference.model_inference_wrappers.gpt.gpt_inference_wrapper")
    controller: Any = pytest.importorskip("megatron.core.inference.text_generation_controllers.text_generation_controller")
    engine: Any = pytest.importorskip("megatron.core.inference.engines.dynamic_engine")
    config: Any = pytest.importorskip("megatron.core.inference.config").InferenceConfig
    sizes = config(
        buffer_size_gb=BLOCKS * BLOCK_BYTES / 2**30, max_sequence_length=64, block_size_tokens=16, max_requests=8, max_tokens=256
    )
    context = engine.DynamicInferenceContext(model.config, sizes)
    wrapped = wrapper.GPTInferenceWrapper(model.chunks[0], context)
    wrapped.prep_model_for_inference()

    class Tokenizer:
        def detokenize(self, ids: Sequence[int]) -> str:
            return ""

    return engine.DynamicInferenceEngine(controller.TextGenerationController(wrapped, Tokenizer()), context)


def responses(engine: Any, prompts: Sequence[Sequence[int]], draws: Draws) -> list[list[int]]:
    params: Any = pytest.importorskip("megatron.core.inference.sampling_params").SamplingParams
    draws.by_place = {i: Draw(uniforms(i, STEPS), np.zeros(STEPS)) for i in range(len(prompts))}
    engine.controller._sampling = OurDraws(draws, prompts)
    for i, prompt in enumerate(prompts):
        engine.add_request(i, list(prompt), params(num_tokens_to_generate=STEPS, termination_id=STOP))
    done: dict[int, list[int]] = {}
    while engine.has_unfinished_requests():
        for record in engine.step_modern()["finished_request_records"]:
            done[record.request_id] = record.merge().generated_tokens
    return [done[i] for i in range(len(prompts))]


def test_it_gives_the_training_engines_responses_also_where_its_cache_is_too_small(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    save_model(tmp_path)
    ids = np.random.default_rng(5)
    prompts = [ids.integers(61, size=size).tolist() for size in ids.integers(3, 26, size=12)]
    with parallel_session():
        arch = read_architecture(tmp_path)
        model = build_model(arch, transformer_config(arch, 1, 1, False, "fp32"))
        load_hf_weights(model, tmp_path)
        draws = Draws(arch.vocabulary, None, [STOP])
        draws.begin(SAMPLING)
        expected = [list(r.ids) for r in TrainingEngine(model, [STOP]).generate(prompts, range(12), SAMPLING)]
        request.getfixturevalue("without_gpu")
        mode: Any = pytest.importorskip("megatron.core.inference.utils").InferenceMode
        request.addfinalizer(mode.unset_active)
        engine = engine_of(model)
        assert responses(engine, prompts, draws) == expected
        assert engine.evicted_request_count > 0
