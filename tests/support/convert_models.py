"""Small random models for the conversion tests, written by transformers itself."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

FAMILIES: dict[str, tuple[Any, Any]] = {"qwen3": (Qwen3Config, Qwen3ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}
SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": True,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def save_model(folder: Path, family: str = "qwen3", dtype: torch.dtype = torch.float32, shard_size: str = "1GB", **sizes: Any) -> Path:
    """A random model in `folder`; every parameter, norms included, is random, so that a swapped or forgotten one shows."""
    torch.manual_seed(0)
    values = SIZES | sizes
    config_class, model_class = FAMILIES[family]
    model = model_class(config_class(**values))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter.dim() == 1))
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    return folder


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors in the safetensors files of `folder`."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def end_process_groups() -> None:
    """A refusal leaves the process groups to the end of the process; the next test of a file needs them gone."""
    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
