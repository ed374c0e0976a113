"""Models of the GPU checks: small, with random weights, built from settings as training builds them, on the device of this process."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3ForCausalLM

from megatron_atesd.checkpoint.hf_weights import load_hf_weights
from megatron_atesd.config import load_config
from megatron_atesd.model.gpt import HiddenStateGPT, build_model
from megatron_atesd.model.hf_config import read_architecture
from megatron_atesd.model.megatron_config import megatron_settings
from megatron_atesd.model.vocabulary import whole_logits
from tests.support import convert_models

# Grouped queries, a head of 64 as fused attention kernels like it, and a vocabulary that no tile of a kernel divides.
SIZES: dict[str, Any] = {
    "vocab_size": 2003, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 512,
}  # fmt: skip


def save_model(folder: Path, **sizes: Any) -> Path:
    """Weights of std 0.05 beside norms about 1, so that hidden states keep their size through the layers."""
    convert_models.save_model(folder, **SIZES | sizes)
    model = Qwen3ForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.dim() > 1):
            parameter.div_(6)
    model.save_pretrained(folder)
    return folder


def layers(kind: str) -> tuple[str, ...]:
    """The setting for layers of this kind, te or sdpa; skips the test where they cannot be.

    fp32 checks need sdpa: Transformer Engine multiplies fp32 matrices in TF32.
    """
    if kind == "te":
        need_transformer_engine()
    return (f"--model.attention={kind}",)


def need_transformer_engine() -> None:
    """Skip where Transformer Engine is missing or has no GPU."""
    if not torch.cuda.is_available():
        pytest.skip("Transformer Engine computes on a GPU only")
    pytest.importorskip("transformer_engine.pytorch", reason="Transformer Engine is not installed (the gpu extra)")


def built(folder: Path, *settings: str) -> HiddenStateGPT:
    """The model of `folder` as training with these settings would have it; inside `parallel_session`."""
    architecture = read_architecture(folder)
    model = build_model(architecture, megatron_settings(load_config(list(settings)), architecture))
    load_hf_weights(model, folder)
    return model


def token_ids(*shape: int) -> Tensor:
    """Random ids, on the device."""
    ids = torch.randint(SIZES["vocab_size"], shape, generator=torch.Generator().manual_seed(5))
    return ids.to(torch.cuda.current_device())


@torch.no_grad()
def our_logits(model: HiddenStateGPT, ids_BS: Tensor) -> Tensor:
    return whole_logits(model, model(ids_BS).flatten(0, 1))


@torch.no_grad()
def their_logits(folder: Path, dtype: torch.dtype, ids_BS: Tensor) -> Tensor:
    model: Any = Qwen3ForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    return model.to(ids_BS.device)(ids_BS).logits.float().flatten(0, 1)


def error(got: Tensor, exact: Tensor) -> float:
    """Relative, in the Euclidean norm."""
    return float((got.double() - exact.double()).norm() / exact.double().norm())
