"""Where this TP rank's rows of the vocabulary lie, and the two ways to use them outside the loss: logits and log-likelihood."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state, tensor_parallel
from torch import Tensor

from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.model.products import product


@dataclass(frozen=True)
class VocabularyShard:
    """Rows [start, start + valid) of the vocabulary are this rank's; further rows of its weight are TP padding."""

    start: int
    valid: int
    group: dist.ProcessGroup | None  # None when the vocabulary is whole on this rank


def vocabulary_shard(model: HiddenStateGPT) -> VocabularyShard:
    """The shard of this TP rank in `model`'s (padded) vocabulary."""
    size, rank = parallel_state.get_tensor_model_parallel_world_size(), parallel_state.get_tensor_model_parallel_rank()
    rows = model.vocab_size // size
    start = rank * rows
    valid = min(rows, max(0, model.arch.vocabulary - start))
    group: Any = parallel_state.get_tensor_model_parallel_group()
    return VocabularyShard(start, valid, group if size > 1 else None)


def shard_logits(model: HiddenStateGPT, hidden_TH: Tensor) -> Tensor:
    """Logits [T, valid], fp32, of this TP rank's part of the vocabulary without its padding. No gradient; last pipeline stage only."""
    return product(hidden_TH, model.head_weight().detach()[: vocabulary_shard(model).valid]).float()


def whole_logits(model: HiddenStateGPT, hidden_TH: Tensor) -> Tensor:
    """Logits [T, V] over the whole unpadded vocabulary, fp32, equal on every TP rank. No gradient; last pipeline stage only."""
    logits_TV = F.linear(hidden_TH, model.head_weight().detach()).float()
    if vocabulary_shard(model).group is not None:
        logits_TV = tensor_parallel.gather_from_tensor_model_parallel_region(logits_TV)
    return logits_TV[:, : model.arch.vocabulary]


def token_nll(hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor, shard: VocabularyShard) -> Tensor:
    """Negative log-likelihood [T] of `targets_T` (fp32, nats), differentiable in hidden states and weight at any TP.

    Relies on megatron.core's vocab_parallel_cross_entropy; TP padding is masked out of the softmax.
    """
    if shard.group is not None:
        hidden_TH = tensor_parallel.copy_to_tensor_model_parallel_region(hidden_TH)
    logits_TV = torch.matmul(hidden_TH, weight_VH.t()).float()
    if shard.valid < weight_VH.shape[0]:
        padding = torch.arange(weight_VH.shape[0], device=logits_TV.device) >= shard.valid
        logits_TV = logits_TV.masked_fill(padding, torch.finfo(torch.float32).min)
    return tensor_parallel.vocab_parallel_cross_entropy(logits_TV[:, None, :], targets_T[:, None])[:, 0]
