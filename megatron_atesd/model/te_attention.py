"""Transformer Engine's attention in Megatron's GPTModel. Importable only where Transformer Engine is."""

from typing import Any

from megatron.core.extensions.transformer_engine import TEDotProductAttention
from torch import Tensor

from megatron_atesd.model.packed_sequences import PackedSequences


class PackedTEAttention(TEDotProductAttention):
    """megatron.core's `core_attention` on Transformer Engine (flash or cuDNN kernels), given our bounds of packed sequences.

    Under context parallelism keys and values go round the ranks (megatron.cp_comm_type), and no rank holds all.
    """

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *args: Any, packed_seq_params: PackedSequences | None = None, **kwargs: Any
    ) -> Tensor:
        packed = None if packed_seq_params is None else packed_seq_params.on_device
        return super().forward(query, key, value, *args, packed_seq_params=packed, **kwargs)
