"""Transformer Engine's attention, except while a KV cache is in use. Importable only where Transformer Engine is."""

from typing import Any

from megatron.core.extensions.transformer_engine import TEDotProductAttention
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_atesd.model.attention import CachedAttention
from megatron_atesd.model.kv_cache import CacheSlot
from megatron_atesd.model.packed_sequences import PackedSequences


class CachedTEAttention(TEDotProductAttention):
    """megatron.core's `core_attention` on Transformer Engine (flash or cuDNN kernels) in training and scoring passes.

    Under context parallelism keys and values go round the ranks (megatron.cp_comm_type), and no rank holds all.
    Generation goes through the same `CachedAttention` as without Transformer Engine.
    """

    def __init__(self, config: TransformerConfig, layer_number: int, *args: Any, slot: CacheSlot, **kwargs: Any) -> None:
        super().__init__(config, layer_number, *args, **kwargs)
        self.generating = CachedAttention(config, layer_number, slot)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *args: Any, packed_seq_params: PackedSequences | None = None, **kwargs: Any
    ) -> Tensor:
        if self.generating.slot.cache is not None:
            return self.generating(query, key, value)
        packed = None if packed_seq_params is None else packed_seq_params.on_device
        return super().forward(query, key, value, *args, packed_seq_params=packed, **kwargs)
