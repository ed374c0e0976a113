"""A bf16 model: gradients add up in fp32, and masters in fp32 keep what bf16 weights cannot."""

from pathlib import Path

import torch
from transformers import Qwen3Config

from megatron_atesd.config import ScheduleConfig
from megatron_atesd.distill.divergence import Divergence
from megatron_atesd.distill.readings import Example
from megatron_atesd.distill.step import distill_step
from megatron_atesd.distill.teacher import Teacher
from megatron_atesd.model.gpt import HiddenStateGPT, build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.megatron_config import transformer_config
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.train.optimizer import Optimization, build_optimization

DIVERGENCE = Divergence(temperature=1.1, chunk=16)


def examples() -> list[Example]:
    random = torch.Generator().manual_seed(3)
    ids = torch.randint(41, (16, 3, 12), generator=random).tolist()
    return [Example(prompt, prompt + reference, response) for prompt, reference, response in ids]


def built(folder: Path, dtype: str, lr: float = 1e-3) -> tuple[HiddenStateGPT, Teacher, Optimization]:
    """Model, a teacher away from it, and the optimizer; the same bf16-representable weights for each dtype."""
    architecture = read_architecture(folder)
    model = build_model(architecture, transformer_config(architecture, 1, 1, False, dtype))
    teacher_model = []
    for seed in (1, 2):
        random = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            noise = 0.2 * torch.randn(parameter.shape, generator=random)
            parameter.data.copy_((noise + 1 if "norm" in name else noise).bfloat16())
        teacher_model.append(Teacher(model, "initial"))
    return model, teacher_model[0], build_optimization(model, {"lr": lr, "clip_grad": 0.0}, {}, ScheduleConfig(), 10)


def gradients(folder: Path, dtype: str, tokens: int) -> dict[str, torch.Tensor]:
    model, teacher, optimization = built(folder, dtype)
    optimization.zero_grad()
    distill_step(optimization.wrapped, model, teacher, examples(), DIVERGENCE, tokens)
    return {name: p.main_grad.clone() for name, p in model.named_parameters()}  # pyright: ignore[reportAttributeAccessIssue]


def describe(folder: Path) -> Path:
    Qwen3Config(
        vocab_size=41, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, max_position_embeddings=64, tie_word_embeddings=True, architectures=["Qwen3ForCausalLM"],
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_gradients_are_those_of_fp32_within_bf16_and_added_up_in_fp32(tmp_path: Path) -> None:
    describe(tmp_path)
    with parallel_session():
        exact, whole, parts = (gradients(tmp_path, dtype, tokens) for dtype, tokens in (("fp32", 1000), ("bf16", 1000), ("bf16", 1)))
    for name, expected in exact.items():
        for got in (whole[name], parts[name]):  # one micro-batch, and sixteen
            assert got.dtype == torch.float32
            assert float((got - expected).norm() / expected.norm()) <= 0.03, name


def test_updates_below_a_bf16_weights_resolution_are_not_lost(tmp_path: Path) -> None:
    describe(tmp_path)
    with parallel_session():
        model, teacher, optimization = built(tmp_path, "bf16", lr=1e-5)
        before = model.head_weight().detach().float().clone()
        for _ in range(30):
            optimization.zero_grad()
            distill_step(optimization.wrapped, model, teacher, examples(), DIVERGENCE, 1000)
            optimization.step()
        moved = (model.head_weight().detach().float() - before).abs()
    # Adam moves each weight by about 1e-5 an update: 30 updates are a fifth of the spacing of bf16 near 0.2, 2⁻¹⁰.
    assert 1e-4 < float(moved.mean()) < 1e-3
