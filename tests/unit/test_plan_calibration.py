"""The planner's estimates against what a real model keeps on the CPU backend."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_atesd.config import RolloutConfig
from megatron_atesd.config.schema import LORA_TARGETS
from megatron_atesd.model.architecture import Architecture
from megatron_atesd.model.gpt import build_model
from megatron_atesd.model.lora import LoraSettings, add_adapters
from megatron_atesd.model.megatron_config import DTYPES, transformer_config
from megatron_atesd.parallel.session import parallel_session
from megatron_atesd.plan.kept import KeptForBackward
from megatron_atesd.plan.memory import activation_bytes, kv_cache_bytes
from megatron_atesd.plan.planned_update import Lengths, PlannedAdapters, PlannedUpdate, Recompute
from megatron_atesd.rollout.training_engine import TrainingEngine

WIDE = Architecture("qwen3", 256, 768, 4, 8, 4, 64, 1024, 1024, 1e6, 1e-6, tied=False, qk_norm=True)
DEEP = Architecture("qwen3", 128, 512, 8, 4, 1, 64, 1024, 1024, 1e6, 1e-6, tied=True, qk_norm=True)
LLAMA = Architecture("llama", 192, 512, 4, 3, 1, 64, 1024, 1024, 1e4, 1e-5, tied=True, qk_norm=False)
SEQUENCES, PROMPT, RESPONSE = 2, 32, 224
FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 2}
BLOCK = {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 1}


def workload(arch: Architecture, size: int, recompute: Recompute) -> PlannedUpdate:
    """One micro-batch on one rank."""
    return PlannedUpdate(
        arch=arch, gpus=1, tensor=1, pipeline=1, virtual=1, sequence=False, context=1, ring=False, size=size, micro_batch_tokens=4096,
        batch=SEQUENCES, rollout_batch=0, chunk=128, teacher="initial", offload=False, distributed=False, recompute=recompute, probe=64,
        probe_every=1, scored=(), probe_answers=0, compared=0, score_share=1.0, hold=1, texts=0, lengths=Lengths(PROMPT, PROMPT, RESPONSE),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arch", "dtype", "settings", "recompute"),
    [
        (WIDE, "bf16", {}, Recompute()),
        (WIDE, "fp32", {}, Recompute()),
        (DEEP, "bf16", {}, Recompute()),
        (LLAMA, "bf16", {}, Recompute()),
        (LLAMA, "fp32", {}, Recompute()),
        (DEEP, "bf16", FULL, Recompute(8, 2)),
        (WIDE, "fp32", FULL, Recompute(4, 2)),
        (WIDE, "bf16", BLOCK, Recompute(1, 1)),
    ],
)
def test_activations_are_within_five_percent_of_what_is_kept(
    arch: Architecture, dtype: str, settings: Mapping[str, Any], recompute: Recompute
):
    with parallel_session():
        model = build_model(arch, transformer_config(arch, 1, 1, False, dtype, settings))
        kept = KeptForBackward(model.parameters())
        with kept:
            model(torch.zeros(SEQUENCES, PROMPT + RESPONSE, dtype=torch.long)).sum().backward()
    estimate = activation_bytes(workload(arch, {"fp32": 4, "bf16": 2}[dtype], recompute), 0, fused_norm=False)
    assert estimate == pytest.approx(kept.peak, rel=0.05)


@pytest.mark.parametrize(
    ("arch", "dtype", "adapter_dtype", "dropout", "targets", "settings", "recompute"),
    [
        (WIDE, "bf16", "bf16", 0.0, LORA_TARGETS, {}, Recompute()),
        (WIDE, "fp32", "fp32", 0.0, LORA_TARGETS, {}, Recompute()),
        (DEEP, "bf16", "fp32", 0.0, LORA_TARGETS, {}, Recompute()),
        (LLAMA, "bf16", "bf16", 0.1, LORA_TARGETS, {}, Recompute()),
        (LLAMA, "bf16", "fp32", 0.1, LORA_TARGETS, {}, Recompute()),
        (LLAMA, "fp32", "fp32", 0.0, LORA_TARGETS, {}, Recompute()),
        (WIDE, "bf16", "bf16", 0.0, ("q_proj", "v_proj"), {}, Recompute()),
        (DEEP, "bf16", "fp32", 0.0, ("o_proj", "up_proj"), {}, Recompute()),
        (DEEP, "bf16", "bf16", 0.0, LORA_TARGETS, FULL, Recompute(8, 2)),
        (WIDE, "fp32", "fp32", 0.1, LORA_TARGETS, BLOCK, Recompute(1, 1)),
    ],
)
def test_activations_with_adapters_are_within_five_percent_of_what_is_kept(
    arch: Architecture,
    dtype: str,
    adapter_dtype: str,
    dropout: float,
    targets: tuple[str, ...],
    settings: Mapping[str, Any],
    recompute: Recompute,
):
    with parallel_session():
        model = build_model(arch, transformer_config(arch, 1, 1, False, dtype, settings))
        add_adapters(model, LoraSettings(48, dropout=dropout, targets=targets, dtype=DTYPES[adapter_dtype]))
        kept = KeptForBackward(model.parameters())
        with kept:
            model(torch.zeros(SEQUENCES, PROMPT + RESPONSE, dtype=torch.long)).sum().backward()
    sizes = {"fp32": 4, "bf16": 2}
    adapters = PlannedAdapters(48, targets, sizes[adapter_dtype], dropout > 0)
    work = replace(workload(arch, sizes[dtype], recompute), adapters=adapters)
    assert activation_bytes(work, 0, fused_norm=False) == pytest.approx(kept.peak, rel=0.05)


@pytest.mark.parametrize(("arch", "dtype"), [(WIDE, "bf16"), (LLAMA, "fp32")])
def test_the_kv_cache_is_what_generation_allocates(arch: Architecture, dtype: str):
    with parallel_session():
        engine = TrainingEngine(build_model(arch, transformer_config(arch, 1, 1, False, dtype)), [])
        engine.generate([[0] * PROMPT] * 3, range(3), RolloutConfig(max_new_tokens=RESPONSE))
    work = workload(arch, {"fp32": 4, "bf16": 2}[dtype], Recompute())
    assert engine.last.cache_peak_bytes == pytest.approx(kv_cache_bytes(work, 3, PROMPT, RESPONSE), rel=0.05)
