"""The Hugging Face tensors of an undivided Megatron model, written out by hand: what conversion and gradients are held to."""

import re

import torch
from torch import Tensor

from megatron_atesd.model.gpt import HiddenStateGPT

_PLAIN = {
    "embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "output_layer.weight": "lm_head.weight",
    "decoder.final_layernorm.weight": "model.norm.weight",
    "input_layernorm.weight": "input_layernorm.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    "self_attention.q_layernorm.weight": "self_attn.q_norm.weight",
    "self_attention.k_layernorm.weight": "self_attn.k_norm.weight",
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}


def by_hf_name(model: HiddenStateGPT) -> dict[str, Tensor]:
    """A copy of every parameter, in its own type, under the name and in the layout of transformers. TP = PP = 1."""
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        layer = re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", name)
        prefix, key = (f"model.layers.{layer[1]}.", layer[2]) if layer else ("", name)
        weight = parameter.detach().clone()
        if key == "self_attention.linear_qkv.weight":
            q, k, v = _unpacked(weight, model.arch.heads, model.arch.query_groups, model.arch.head_size)
            found |= {f"{prefix}self_attn.{which}_proj.weight": part for which, part in (("q", q), ("k", k), ("v", v))}
        elif key == "mlp.linear_fc1.weight":
            rows = len(weight) // 2
            found |= {f"{prefix}mlp.gate_proj.weight": weight[:rows].clone(), f"{prefix}mlp.up_proj.weight": weight[rows:].clone()}
        else:
            found[prefix + _PLAIN[key]] = weight[: model.arch.vocabulary].clone() if "word_emb" in key or "output" in key else weight
    return found


def _unpacked(weight: Tensor, heads: int, groups: int, head_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value rows: each group lies there as its heads, then its key, then its value."""
    rows = list(weight)
    q, k, v = [], [], []
    for _ in range(groups):
        for place in (*[q] * (heads // groups), k, v):
            place += [rows.pop(0) for _ in range(head_size)]
    assert not rows
    return torch.stack(q), torch.stack(k), torch.stack(v)
