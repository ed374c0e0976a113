"""Every rank of a model holds the same rollouts, and they are those of one process."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from transformers import Qwen3Config, Qwen3ForCausalLM

from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.config import EngineConfig, RolloutConfig
from megatron_atesd.distill.likelihood import mean_nll
from megatron_atesd.errors import ConfigError
from megatron_atesd.model.gpt import HiddenStateGPT, build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.lora import LoraSettings, add_adapters
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.model.vocabulary import VocabularyShard
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.records import Problem, Rollout
from megatron_atesd.rollout.engine import Response
from megatron_atesd.rollout.training_engine import TrainingEngine
from megatron_atesd.train.logprob_gap import logprob_gap
from tests.support import greedy_case
from tests.support.launch import run_distributed
from tests.support.lora_ranks import Layout, built, fill
from tests.support.sampling_cases import CASES, draws

PROMPTS = [[5, 7, 9], [1], [2, 3, 4, 5, 6], [9, 9], [8, 1, 8], [30, 31], [4, 4, 4, 4], [12]]
SEEDS = [1, 2, 3, 4, 5, 6, 7, 8]
STOP = 11
CONFIG = RolloutConfig(max_new_tokens=16, temperature=1.2, top_p=0.9, top_k=12)
# TP, PP, VP, SP, CP
LAYOUTS = {
    1: [(1, 1, 1, False, 1)],
    2: [(2, 1, 1, False, 1), (2, 1, 1, True, 1), (1, 2, 1, False, 1), (1, 2, 2, False, 1), (1, 1, 1, False, 2)],
    4: [(2, 2, 1, True, 1), (2, 2, 2, True, 1), (1, 4, 2, False, 1), (1, 2, 2, False, 2)],
}


CONFIGS = [CONFIG, replace(CONFIG, temperature=0.0), replace(CONFIG, top_k=0, top_p=1.0), replace(CONFIG, top_k=0, min_p=0.1)]


def sampled(model: HiddenStateGPT, prompts: list[list[int]], seeds: list[int], config: RolloutConfig, **engine: Any) -> list[Response]:
    return TrainingEngine(model, [STOP], config=EngineConfig(**engine)).generate(prompts, seeds, config)


def ids_and_logprobs(responses: list[Response]) -> list[Rollout]:
    problem = Problem("1", "", "", "")
    pairs = zip(PROMPTS, responses, strict=True)
    return [Rollout(problem, tuple(prompt), r.ids, r.truncated, r.logprobs) for prompt, r in pairs]


def check_gap(model: HiddenStateGPT, rollouts: list[Rollout]) -> None:
    """Every layout's passes agree with its generation, and see it where one response's log-probabilities are wrong."""
    gap = logprob_gap(model, rollouts, CONFIG.temperature, 64)
    assert gap["rollout/logprob_gap"] < gap["rollout/logprob_gap_max"] < 1e-3
    assert 1 <= gap["rollout/response_ratio"] < 1.01
    wrong = replace(rollouts[2], logprobs=tuple(value - 0.25 for value in rollouts[2].logprobs))
    seen = logprob_gap(model, [*rollouts[:2], wrong, *rollouts[3:]], CONFIG.temperature, 64)
    tokens = [len(rollout.response_ids) for rollout in rollouts]
    assert abs(seen["rollout/logprob_gap"] - 0.25 * tokens[2] / sum(tokens)) < 1e-3
    assert abs(seen["rollout/logprob_gap_max"] - 0.25) < 1e-3
    assert abs(seen["rollout/response_ratio"] / math.exp(0.25 * tokens[2]) - 1) < 0.01


def check_told(model: HiddenStateGPT, responses: list[Response]) -> None:
    """One pipeline stage is told of each response, by the context-parallel rank that makes it."""
    told: dict[int, Response] = {}
    TrainingEngine(model, [STOP]).generate(PROMPTS, SEEDS, CONFIG, told.__setitem__)
    first = parallel_state.get_pipeline_model_parallel_rank() == 0
    assert {i: r.ids for i, r in told.items()} == {i: responses[i].ids for i in range(*_share(len(PROMPTS))) if first}


def _share(count: int) -> tuple[int, int, int]:
    return parallel_state.get_context_parallel_rank(), count, parallel_state.get_context_parallel_world_size()


def refused(model: HiddenStateGPT) -> str:
    """What is said of a cache that holds any sequence of this context-parallel rank's share, but not the call's longest."""
    try:
        sampled(model, [[1], [2, 3, 4, 5, 6, 7]] * 2, SEEDS[:4], CONFIG, cache_gib=20 * 8 * 2 * 32 * 4 / 2**30)
    except ConfigError as error:
        return str(error)
    return ""


def sample_and_score(folder: Path, world: int) -> list[tuple[list[Response], float]]:
    """Responses and the mean NLL of fixed pairs, at each layout of this world size."""
    dist.init_process_group("gloo")
    results = []
    for tensor, pipeline, virtual, sequence, context in LAYOUTS[world]:
        with parallel_session(tensor, pipeline, virtual_pipeline=virtual, context=context):
            architecture = read_architecture(folder)
            sizes = (tensor, pipeline, sequence)
            config = transformer_config(architecture, *sizes, "fp32", virtual_pipeline=virtual, context=context)
            model = build_model(architecture, config)
            load_hf_weights(model, folder)
            pairs = [(prompt, [3, 1, 4, 1, 5][: 1 + i % 5]) for i, prompt in enumerate(PROMPTS)]
            responses = [rolled for config in CONFIGS for rolled in sampled(model, PROMPTS, SEEDS, config)]
            # Of one prompt, all context-parallel ranks but one have none, and of the groups of rows in a pipeline all but one.
            ids = [r.ids for r in responses[: len(PROMPTS)]]
            assert [r.ids for r in sampled(model, PROMPTS[:1], SEEDS[:1], CONFIG)] == ids[:1]
            check_told(model, responses[: len(PROMPTS)])
            for batch, step in ((1, 1), (3, 1), (0, -1), (5, -1)):
                assert [r.ids for r in sampled(model, PROMPTS[::step], SEEDS[::step], CONFIG, batch=batch)] == ids[::step]
            assert [r.ids for r in sampled(model, PROMPTS, SEEDS, CONFIG, cache_gib=100 * 8 * 2 * 32 * 4 / 2**30)] == ids
            assert tensor * pipeline > 1 or "the longest prompt" in refused(model)
            check_gap(model, ids_and_logprobs(responses[: len(PROMPTS)]))
            results.append((responses, mean_nll(model, pairs, micro_batch_tokens=64)))
    return results


def save_model(folder: Path) -> None:
    torch.manual_seed(0)
    shape = Qwen3Config(
        vocab_size=33, hidden_size=32, intermediate_size=48, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, tie_word_embeddings=True, max_position_embeddings=64,
    )  # fmt: skip
    model = Qwen3ForCausalLM(shape)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)


def test_rollouts_and_likelihoods_do_not_depend_on_the_layout(tmp_path: Path) -> None:
    save_model(tmp_path)
    ((expected, expected_nll),) = run_distributed(sample_and_score, 1, tmp_path, 1)[0]
    assert len({response.ids for response in expected[: len(PROMPTS)]}) == len(PROMPTS)
    for world in (2, 4):
        for rank in run_distributed(sample_and_score, world, tmp_path, world):
            for responses, nll in rank:
                assert [r.ids for r in responses] == [r.ids for r in expected]
                gaps = [abs(a - b) for r, e in zip(responses, expected, strict=True) for a, b in zip(r.logprobs, e.logprobs, strict=True)]
                assert max(gaps) < 1e-3
                assert abs(nll - expected_nll) < 1e-5


ADAPTED = {
    1: [Layout()],
    2: [Layout(tensor=2), Layout(tensor=2, sequence=True), Layout(pipeline=2), Layout(pipeline=2, virtual=2)],
    4: [Layout(tensor=2, pipeline=2, sequence=True)],
}


def sample_with_adapters(folder: Path, world: int) -> list[list[Response]]:
    dist.init_process_group("gloo")
    results = []
    for layout in ADAPTED[world]:
        with parallel_session(layout.tensor, layout.pipeline, virtual_pipeline=layout.virtual):
            model = built(layout, folder)
            add_adapters(model, LoraSettings(rank=4, alpha=6.0, targets=("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj")))
            fill(model)
            results.append([rolled for config in CONFIGS[:2] for rolled in sampled(model, PROMPTS, SEEDS, config)])
            check_gap(model, ids_and_logprobs(results[-1][: len(PROMPTS)]))
    return results


def test_rollouts_of_a_model_with_adapters_do_not_depend_on_the_layout(tmp_path: Path) -> None:
    save_model(tmp_path)
    ((expected,),) = run_distributed(sample_with_adapters, 1, tmp_path, 1)
    for world in (2, 4):
        for rank in run_distributed(sample_with_adapters, world, tmp_path, world):
            for responses in rank:
                assert [r.ids for r in responses] == [r.ids for r in expected]
                gaps = [abs(a - b) for r, e in zip(responses, expected, strict=True) for a, b in zip(r.logprobs, e.logprobs, strict=True)]
                assert max(gaps) < 1e-3


def test_greedy_from_vocabulary_shards_equals_transformers_token_for_token(tmp_path: Path) -> None:
    greedy_case.save_model(tmp_path)
    expected = greedy_case.of_transformers(tmp_path)
    assert run_distributed(greedy_case.of_the_training_engine, 2, tmp_path, 2) == [expected, expected]


def sample_in_unequal_stages(folder: Path) -> list[tuple[int, ...]]:
    """With two layers on the first of two stages and six on the second, and memory for hardly more than one sequence."""
    dist.init_process_group("gloo")
    with parallel_session(1, 2):
        architecture = read_architecture(folder)
        model = build_model(architecture, transformer_config(architecture, 1, 2, False, "fp32", {"num_layers_in_first_pipeline_stage": 2}))
        load_hf_weights(model, folder)
        token = 2 * 6 * 2 * 2 * 16 * 4  # bytes: groups of rows, layers, key and value, query groups, head size, fp32
        responses = sampled(model, PROMPTS * 3, list(range(24)), CONFIG, cache_gib=40 * token / 2**30)
        return [r.ids for r in responses]


def test_unequal_stages_share_their_cache_alike(tmp_path: Path) -> None:
    save_model(tmp_path)
    first, second = run_distributed(sample_in_unequal_stages, 2, tmp_path)
    assert first == second
    assert len(first) == 24


def draw_from_shards(folder: Path) -> dict[str, list[list[float]]]:
    """Every case of the whole vocabulary, from two shards, the second of which has the odd id less."""
    dist.init_process_group("gloo")
    shard = (VocabularyShard(0, 60, dist.group.WORLD), VocabularyShard(60, 59, dist.group.WORLD))[dist.get_rank()]
    return {name: [x.tolist() for x in draws(sampling, shard)] for name, sampling in CASES.items()}


def test_draws_from_vocabulary_shards_are_those_of_the_whole(tmp_path: Path) -> None:
    for rank in run_distributed(draw_from_shards, 2, tmp_path):
        for name, (ids, logprobs) in rank.items():
            expected_ids, expected = draws(CASES[name])
            assert sum(a != b for a, b in zip(ids, expected_ids.tolist(), strict=True)) <= 2  # a uniform number on a boundary
            assert (torch.tensor(logprobs) - expected).abs().quantile(0.999) < 1e-6
