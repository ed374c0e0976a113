"""A live teacher that sees the student's own prompt agrees exactly: KL and gradient are 0, not merely small."""

from pathlib import Path

import pytest
from transformers import Qwen3Config

from megatron_atesd.config import ScheduleConfig
from megatron_atesd.distill.divergence import Divergence
from megatron_atesd.distill.readings import Example
from megatron_atesd.distill.step import distill_step
from megatron_atesd.distill.teacher import Teacher
from megatron_atesd.model.gpt import build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.train.optimizer import build_optimization
from tests.support.launch import run_distributed


def steps_with_equal_roles(folder: Path, tensor: int, pipeline: int, sequence: bool) -> list[tuple[float, float, float]]:
    """(KL, loss, largest gradient) of one step on random weights, for each divergence."""
    results = []
    with parallel_session(tensor, pipeline, seed=5):
        architecture = read_architecture(folder)
        model = build_model(architecture, transformer_config(architecture, tensor, pipeline, sequence, "fp32"))
        optimization = build_optimization(model, {}, {}, ScheduleConfig(), 10)
        rollouts = [Example((1, 2, 3), (1, 2, 3), (4, 5, 6, 7)), Example((8, 9), (8, 9), (3, 1))]
        for kind in ("forward_kl", "reverse_kl", "jsd"):
            optimization.zero_grad()
            divergence = Divergence(kind, clip=0.05, temperature=1.1, chunk=3)
            result = distill_step(optimization.wrapped, model, Teacher(model, "live"), rollouts, divergence, micro_batch_tokens=1)
            largest = max(float(p.main_grad.abs().max()) for p in model.parameters())  # pyright: ignore[reportAttributeAccessIssue]
            results.append((result.kl, result.loss, largest))
    return results


@pytest.mark.parametrize(("tensor", "pipeline", "sequence"), [(1, 1, False), (2, 1, False), (2, 1, True), (1, 2, False)])
def test_kl_and_gradient_are_exactly_zero(tensor: int, pipeline: int, sequence: bool, tmp_path: Path) -> None:
    Qwen3Config(
        vocab_size=21, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, max_position_embeddings=64, architectures=["Qwen3ForCausalLM"],
    ).save_pretrained(tmp_path)  # fmt: skip
    results = run_distributed(steps_with_equal_roles, tensor * pipeline, tmp_path, tensor, pipeline, sequence)
    assert results == [[(0.0, 0.0, 0.0)] * 3] * (tensor * pipeline)
