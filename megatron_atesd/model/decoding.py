"""Megatron's layers as generation walks them: the same parameters, one call a matrix product, no gradient.

A decoding step has few tokens, so that the way through megatron.core's modules costs more than the products. Here a layer is its
functions on [T, H] tokens, of any number of sequences. In FP8 the products stay Transformer Engine's modules.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from torch import Tensor

from megatron_atesd.model.chunk import ModelChunk
from megatron_atesd.model.fp8 import layer_context, token_multiple
from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.model.kv_cache import CacheBlock
from megatron_atesd.model.lora_layers import AdaptedLinear
from megatron_atesd.model.products import product
from megatron_atesd.parallel.groups import sum_over_tensor_ranks
from megatron_atesd.parallel.mailbox import Mailbox

# layer number, queries [T, G, heads / groups, D], keys and values [T, G, D] → [T, heads · D]
Attention = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class Decoder:
    """The layers of this rank's chunks, for one call of generation, whose weights do not change."""

    def __init__(self, model: HiddenStateGPT) -> None:
        self.model, self.mailbox = model, Mailbox()
        self.chunks = [(chunk, [_Layer(layer, model) for layer in _layers(chunk)]) for chunk in model.chunks]

    @property
    def layers(self) -> int:
        """On this rank."""
        return sum(len(layers) for _, layers in self.chunks)

    def forward(self, ids_T: Tensor, positions_T: Tensor, attend: Attention) -> Tensor | None:
        """States [T, H] after the last layer, before the final norm, on the last pipeline stage; None on the others.

        Activations pass chunk by chunk, round the stages.
        """
        turn = self._rotation(positions_T)
        for chunk, layers in self.chunks:
            if chunk.pre_process:
                hidden_TH = _embedded(cast("Any", chunk).embedding.word_embeddings, ids_T)
            else:
                shape, config = (len(ids_T), self.model.arch.hidden), self.model.config
                hidden_TH = torch.empty(shape, dtype=config.params_dtype, device=ids_T.device)
                self.mailbox.receive(hidden_TH, parallel_state.get_pipeline_model_parallel_prev_rank())
            for layer in layers:
                hidden_TH = layer(hidden_TH, turn, attend)
            if chunk.post_process:
                return hidden_TH
            self.mailbox.send(hidden_TH, parallel_state.get_pipeline_model_parallel_next_rank())
        return None

    def final_norm(self, hidden_TH: Tensor) -> Tensor:
        """What the vocabulary projection takes."""
        norm = cast("Any", self.model.chunks[-1]).decoder.final_layernorm
        return F.rms_norm(hidden_TH, norm.weight.shape, norm.weight, self.model.arch.norm_eps)

    def _rotation(self, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine [T, 1, 1, D] by which rotary embedding turns queries and keys."""
        frequencies = self.model.chunks[0].rotary_pos_emb.inv_freq.to(positions_T.device)
        angles = positions_T[:, None] * frequencies
        cos, sin = angles.cos(), angles.sin()
        dtype = self.model.config.params_dtype
        return (torch.cat((cos, cos), dim=-1)[:, None, None].to(dtype), torch.cat((-sin, sin), dim=-1)[:, None, None].to(dtype))


class _Layer:
    """One transformer layer. TP: each rank its heads and its part of the FFN, summed twice."""

    def __init__(self, layer: Any, model: HiddenStateGPT) -> None:
        config, arch = model.config, model.arch
        attention, self.eps, self.config = layer.self_attention, arch.norm_eps, config
        self.number = layer.layer_number
        self.groups, self.size = arch.query_groups // config.tensor_model_parallel_size, arch.head_size
        self.scale = config.softmax_scale
        attention_norm, mlp_norm = (getattr(norm, "weight", None) for norm in (layer.input_layernorm, layer.pre_mlp_layernorm))
        self.qkv = _Product(attention.linear_qkv, attention_norm, self.eps, config)
        self.proj = _Product(attention.linear_proj, None, self.eps, config, summed=True)
        self.fc1 = _Product(layer.mlp.linear_fc1, mlp_norm, self.eps, config)
        self.fc2 = _Product(layer.mlp.linear_fc2, None, self.eps, config, summed=True)
        self.head_norm_HD = None  # of the query heads of a group, then of its key
        if arch.qk_norm:
            query_D, key_D = attention.q_layernorm.weight.detach(), attention.k_layernorm.weight.detach()
            self.head_norm_HD = torch.stack([query_D] * (arch.heads // arch.query_groups) + [key_D]).float()

    def __call__(self, hidden_TH: Tensor, turn: tuple[Tensor, Tensor], attend: Attention) -> Tensor:
        with layer_context(self.config, self.number) if self.config.fp8 else nullcontext():
            qkv = self.qkv(hidden_TH).view(len(hidden_TH), self.groups, -1, self.size)
            heads = qkv[:, :, :-1]  # a group's queries and its key, which are treated alike
            if self.head_norm_HD is not None:
                heads = (F.rms_norm(heads.float(), (self.size,), None, self.eps) * self.head_norm_HD).to(qkv.dtype)
            heads = _turned(heads, turn)
            out = attend(self.number, heads[:, :, :-1], heads[:, :, -1], qkv[:, :, -1])
            hidden_TH = self.proj(out) + hidden_TH
            gate, up = self.fc1(hidden_TH).chunk(2, dim=-1)
            return self.fc2(F.silu(gate) * up) + hidden_TH


class _Product:
    """A norm, where there is one before it, and a linear layer. summed: over TP, of which each rank holds a part of the columns.

    Adapters that are on join before that sum, all projections' in two products.
    """

    def __init__(self, module: Any, norm: Tensor | None, eps: float, config: Any, summed: bool = False) -> None:
        self.module, self.eps, self.summed = module, eps, summed
        self.weight, self.norm = module.weight, getattr(module, "layer_norm_weight", norm)
        self.multiple = token_multiple(config)
        self.fused = bool(config.fp8)
        adapted = isinstance(module, AdaptedLinear) and module.lora_on and not self.fused
        self.adapters = module.factors(module.lora_dtype) if adapted else None

    def __call__(self, x_TH: Tensor) -> Tensor:
        if self.fused:
            return self.module(F.pad(x_TH, (0, 0, 0, -len(x_TH) % self.multiple)))[0][: len(x_TH)]
        if self.norm is not None:
            x_TH = F.rms_norm(x_TH, self.norm.shape, self.norm, self.eps)
        out = product(x_TH, self.weight)
        if self.adapters is not None:
            a_RH, b_OR = self.adapters
            out = (out + product(product(x_TH.to(a_RH.dtype), a_RH), b_OR)).to(out.dtype)
        if self.summed:
            sum_over_tensor_ranks(out)
        return out


class PromptAttention:
    """Causal attention of prompts [B, S] padded on the right, whose keys and values go to a block.

    rows: for each sequence of the block, which of the prompts it has.
    """

    def __init__(self, prompts: int, block: CacheBlock, rows: Tensor | None, scale: float | None) -> None:
        self.prompts, self.block, self.rows, self.scale = prompts, block, rows, scale

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (x.unflatten(0, (self.prompts, -1)).transpose(1, 2) for x in (query.flatten(1, 2), key, value))
        self.block.store_prompts(layer, k, v, self.rows)
        grouped = q.shape[1] != k.shape[1]
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale, enable_gqa=grouped)
        return out.transpose(1, 2).flatten(0, 1).flatten(1)


class StepAttention:
    """One new token a sequence, block after block: the heads of a group go as positions of one head.

    Asked for grouped queries and a mask at once, torch has no fused kernel on a GPU: it would copy all keys and values for every head, in
    fp32.
    """

    def __init__(self, blocks: list[CacheBlock], scale: float | None) -> None:
        self.blocks, self.scale = blocks, scale
        self.sizes, self.masks = [len(block.starts) for block in blocks], [block.mask() for block in blocks]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if len(self.blocks) == 1:
            keys, values = self.blocks[0].append(layer, key, value)
            return F.scaled_dot_product_attention(query, keys, values, attn_mask=self.masks[0], scale=self.scale).flatten(1)
        parts = zip(self.blocks, self.masks, *(x.split(self.sizes) for x in (query, key, value)), strict=True)
        outs = [F.scaled_dot_product_attention(q, *b.append(layer, k, v), attn_mask=m, scale=self.scale) for b, m, q, k, v in parts]
        return torch.cat(outs).flatten(1)


def _embedded(embedding: Any, ids_T: Tensor) -> Tensor:
    """megatron.core's VocabParallelEmbedding of tokens [T], whose rows are divided over TP."""
    rows_T = ids_T - embedding.vocab_start_index
    here_T1 = ((rows_T >= 0) & (ids_T < embedding.vocab_end_index))[:, None]
    hidden_TH = F.embedding(rows_T.clamp(0, len(embedding.weight) - 1), embedding.weight).masked_fill(~here_T1, 0.0)
    sum_over_tensor_ranks(hidden_TH)
    return hidden_TH


def _turned(x_TGRD: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding: x · cos + (second half, first half) · signed sin."""
    cos, sin = turn
    return torch.addcmul(x_TGRD * cos, x_TGRD.roll(x_TGRD.shape[-1] // 2, -1), sin)


def _layers(chunk: ModelChunk) -> Iterator[Any]:
    yield from cast("Any", chunk).decoder.layers
