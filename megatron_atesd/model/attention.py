"""Core attention inside Megatron's GPTModel: plain causal, over packed sequences, over context-parallel ranks."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from megatron_atesd.model.packed_sequences import PackedSequences
from megatron_atesd.parallel.context import Bounds, context_place, join_sequences


class CausalAttention(torch.nn.Module):
    """Parameter-free core attention on torch's scaled_dot_product_attention; causal, grouped queries.

    The interface is megatron.core's `core_attention`: query [S, B, heads, D], key and value [S, B, groups, D] → [S, B, heads·D]; packed
    sequences have no B. Each is attended by itself. Under context parallelism every rank gathers keys and values.
    """

    def __init__(self, config: TransformerConfig, **_: Any) -> None:
        super().__init__()
        self.scale = config.softmax_scale

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *_: Any, packed_seq_params: PackedSequences | None = None, **__: Any
    ) -> Tensor:
        if packed_seq_params is not None:
            query, key, value = (t[:, None] for t in (query, key, value))
        bounds = packed_seq_params.bounds if packed_seq_params is not None else (0, len(query) * context_place()[1])
        if context_place()[1] > 1:
            key, value = join_sequences(torch.cat((key, value), dim=-1), bounds).chunk(2, dim=-1)
        outs = list(self._by_sequence(bounds, *_heads_first(query, key, value)))
        out = outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)  # a copy of one would be kept beside it for the backward pass
        return out.permute(2, 0, 1, 3).flatten(2)

    def _by_sequence(self, bounds: Bounds, query: Tensor, key: Tensor, value: Tensor) -> Iterator[Tensor]:
        """Of each sequence what this rank has: all of it, or two chunks, each of which sees the keys up to its own last."""
        rank, size = context_place()
        lengths = [stop - start for start, stop in pairwise(bounds)]
        parts = (query.split([n // size for n in lengths], dim=2), key.split(lengths, dim=2), value.split(lengths, dim=2))
        for q, k, v in zip(*parts, strict=True):
            if size == 1:
                yield self._attend(q, k, v)
                continue
            for chunk, number in zip(q.chunk(2, dim=2), (rank, 2 * size - 1 - rank), strict=True):
                mask = _last_of(chunk.shape[2], seen := (number + 1) * chunk.shape[2], chunk.device)
                yield self._attend(chunk, k[:, :, :seen], v[:, :, :seen], mask)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, heads, S, D] of queries of this form, keys and values [B, groups, S, D]; causal without a mask."""
        grouped = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=self.scale, enable_gqa=grouped
        )


def _last_of(queries: int, keys: int, device: torch.device) -> Tensor:
    """Causal mask of the last `queries` of `keys` positions; for CUDA's flash attention one that takes no memory."""
    if device.type == "cuda":
        return causal_lower_right(queries, keys)
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def _heads_first(*tensors: Tensor) -> Iterator[Tensor]:
    """[S, B, heads, D] → [B, heads, S, D]."""
    return (t.permute(1, 2, 0, 3) for t in tensors)
