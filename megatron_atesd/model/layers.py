"""The layers of ours inside Megatron's GPTModel: attention with a KV cache, rotary by position, RMSNorm.

The model that trains is the model that samples: while a `KVCache` is in the shared `CacheSlot`, attention appends to it and rotary
embedding uses each sequence's own positions; with an empty slot both are the plain causal training forward, of which a context-parallel
rank has its part (context.py). Generation is not divided over context parallelism.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from megatron_atesd.model.packed_sequences import PackedSequences
from megatron_atesd.parallel.context import Bounds, context_place, join_sequences


class KVCache:
    """Keys and values of one generation batch, one [B, G, capacity, D] pair a layer (G query groups of this TP rank).

    Call 1 stores whole right-padded prompts; each later call appends one token a sequence at that sequence's own length.
    """

    def __init__(self, prompt_lengths_B: Tensor, capacity: int) -> None:
        self.lengths_B = prompt_lengths_B
        self.capacity = capacity
        self.longest = int(prompt_lengths_B.max())
        self.prefilled = False
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def positions(self, steps: int) -> Tensor:
        """Positions [S, B] of the tokens now fed: 0…S-1 while the prompts are stored, then each sequence's length."""
        if self.prefilled:
            return self.lengths_B[None, :]
        return torch.arange(steps, device=self.lengths_B.device)[:, None].expand(-1, len(self.lengths_B))

    def advance(self) -> None:
        """One decoding step is finished in every layer."""
        if self.prefilled:
            self.lengths_B = self.lengths_B + 1
            self.longest += 1
        self.prefilled = True

    def keep(self, rows: Tensor) -> None:
        """Drop the sequences that are not in `rows` (indices): finished ones cost nothing further."""
        self.lengths_B = self.lengths_B[rows]
        self._layers = {layer: (keys[rows], values[rows]) for layer, (keys, values) in self._layers.items()}

    def store_prompt(self, layer: int, keys_BGSD: Tensor, values_BGSD: Tensor) -> None:
        batch, groups, steps, size = keys_BGSD.shape
        pair = keys_BGSD.new_zeros(batch, groups, self.capacity, size), values_BGSD.new_zeros(batch, groups, self.capacity, size)
        pair[0][:, :, :steps], pair[1][:, :, :steps] = keys_BGSD, values_BGSD
        self._layers[layer] = pair

    def append(self, layer: int, keys_BGSD: Tensor, values_BGSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Store one token a sequence; returns keys and values up to the longest sequence, and the mask [B, 1, 1, S] of valid ones."""
        keys, values = self._layers[layer]
        rows = torch.arange(len(self.lengths_B), device=keys.device)
        keys[rows, :, self.lengths_B] = keys_BGSD[:, :, 0]
        values[rows, :, self.lengths_B] = values_BGSD[:, :, 0]
        stop = self.longest + 1
        valid = torch.arange(stop, device=keys.device)[None, :] <= self.lengths_B[:, None]
        return keys[:, :, :stop], values[:, :, :stop], valid[:, None, None, :]


class CacheSlot:
    """Where all layers of one model look for the KV cache in use."""

    def __init__(self) -> None:
        self.cache: KVCache | None = None

    @contextmanager
    def use(self, cache: KVCache) -> Iterator[KVCache]:
        self.cache = cache
        try:
            yield cache
        finally:
            self.cache = None


class CachedAttention(torch.nn.Module):
    """Parameter-free core attention on torch's scaled_dot_product_attention; causal, grouped queries.

    The interface is megatron.core's `core_attention`: query [S, B, heads, D], key and value [S, B, groups, D] → [S, B, heads·D]; packed
    sequences have no B. Each is attended by itself. Under context parallelism every rank gathers keys and values.
    """

    def __init__(self, config: TransformerConfig, layer_number: int, slot: CacheSlot, **_: Any) -> None:
        super().__init__()
        self.layer_number, self.slot, self.scale = layer_number, slot, config.softmax_scale

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *_: Any, packed_seq_params: PackedSequences | None = None, **__: Any
    ) -> Tensor:
        if packed_seq_params is not None:
            query, key, value = (t[:, None] for t in (query, key, value))
        if (cache := self.slot.cache) is not None:
            outs = [self._cached(cache, *_heads_first(query, key, value))]
        else:
            bounds = packed_seq_params.bounds if packed_seq_params is not None else (0, len(query) * context_place()[1])
            if context_place()[1] > 1:
                key, value = join_sequences(torch.cat((key, value), dim=-1), bounds).chunk(2, dim=-1)
            outs = list(self._by_sequence(bounds, *_heads_first(query, key, value)))
        out = outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)  # a copy of one would be kept beside it for the backward pass
        return out.permute(2, 0, 1, 3).flatten(2)

    def _cached(self, cache: KVCache, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if cache.prefilled:
            return self._decode(query, *cache.append(self.layer_number, key, value))
        cache.store_prompt(self.layer_number, key, value)
        return self._attend(query, key, value)

    def _decode(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """One token a sequence, [B, heads, 1, D]: the heads of a group go as positions of one head, [B, groups, heads / groups, D].

        Asked for grouped queries and a mask at once, torch has no fused kernel on a GPU: it would copy all keys and values for every head,
        in fp32.
        """
        out = F.scaled_dot_product_attention(
            query.squeeze(2).unflatten(1, (key.shape[1], -1)), key, value, attn_mask=mask, scale=self.scale
        )
        return out.flatten(1, 2).unsqueeze(2)

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


class PositionedRotary(RotaryEmbedding):
    """Megatron's rotary embedding; while a cache is in use, at each cached sequence's positions: [S, B, 1, D], not [S, 1, 1, D]."""

    def __init__(self, slot: CacheSlot, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.slot = slot

    def forward(self, max_seq_len: int, *args: Any, **kwargs: Any) -> Tensor:
        if self.slot.cache is None:
            return super().forward(max_seq_len, *args, **kwargs)
        # megatron.core multiplies the number of tokens by CP, but here they are whole sequences.
        positions_SB = self.slot.cache.positions(max_seq_len // context_place()[1])
        angles = positions_SB[..., None] * self.inv_freq.to(positions_SB.device)
        return torch.cat((angles, angles), dim=-1)[:, :, None, :]


class RMSNorm(torch.nn.Module):
    """Root-mean-square norm over the last dimension, usable under sequence parallelism (torch's own is refused there).

    Under SP each rank sees part of the tokens: the flag on the weight makes megatron.core's finalize_model_grads sum its gradient over TP.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=torch.cuda.current_device()))
        self.weight.sequence_parallel = config.sequence_parallel  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
