"""Layers of ours inside Megatron's GPTModel: rotary embedding by position, RMSNorm."""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_atesd.model.kv_cache import CacheSlot
from megatron_atesd.parallel.context import context_place


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
