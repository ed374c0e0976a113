"""Every rank of a model holds the same rollouts, and they are those of one process."""

from pathlib import Path

import torch
import torch.distributed as dist
from transformers import Qwen3Config, Qwen3ForCausalLM

from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.config import RolloutConfig
from megatron_atesd.distill.likelihood import mean_nll
from megatron_atesd.model.gpt import build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.rollout import training_engine as generation
from megatron_atesd.rollout.training_engine import Response, generate
from tests.support.launch import run_distributed

PROMPTS = [[5, 7, 9], [1], [2, 3, 4, 5, 6], [9, 9], [8, 1, 8], [30, 31], [4, 4, 4, 4], [12]]
SEEDS = [1, 2, 3, 4, 5, 6, 7, 8]
STOP = 11
CONFIG = RolloutConfig(max_new_tokens=16, temperature=1.0, top_p=0.9, top_k=12)
# TP, PP, VP, SP, CP
LAYOUTS = {
    1: [(1, 1, 1, False, 1)],
    2: [(2, 1, 1, False, 1), (2, 1, 1, True, 1), (1, 2, 1, False, 1), (1, 2, 2, False, 1), (1, 1, 1, False, 2)],
    4: [(2, 2, 1, True, 1), (2, 2, 2, True, 1), (1, 4, 2, False, 1), (1, 2, 2, False, 2)],
}


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
            responses = generate(model, PROMPTS, SEEDS, [STOP], CONFIG)
            if context > 1:  # of one prompt, all ranks but one have none
                assert generate(model, PROMPTS[:1], SEEDS[:1], [STOP], CONFIG) == responses[:1]
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
    assert len({response.ids for response in expected}) == len(PROMPTS)
    for world in (2, 4):
        for rank in run_distributed(sample_and_score, world, tmp_path, world):
            for responses, nll in rank:
                assert responses == expected
                assert abs(nll - expected_nll) < 1e-5


def disagree(folder: Path) -> tuple[list[Response], list[Response]]:
    """Responses of two tensor ranks, as they are, and when the second one would sample other tokens."""
    dist.init_process_group("gloo")
    with parallel_session(2):
        architecture = read_architecture(folder)
        model = build_model(architecture, transformer_config(architecture, 2, 1, False, "fp32"))
        load_hf_weights(model, folder)
        alike = generate(model, PROMPTS, SEEDS, [STOP], CONFIG)
        if dist.get_rank() == 1:
            generation.sample_tokens = lambda logits_BV, *_: torch.full(logits_BV.shape[:1], 7)
        return alike, generate(model, PROMPTS, SEEDS, [STOP], CONFIG)


def test_tensor_ranks_go_on_with_the_same_tokens_even_if_they_would_sample_others(tmp_path: Path) -> None:
    save_model(tmp_path)
    for alike, corrected in run_distributed(disagree, 2, tmp_path):
        assert corrected == alike
