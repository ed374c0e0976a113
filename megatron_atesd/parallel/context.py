"""Context parallelism: which tokens of a sequence a rank has, and whole sequences from the ranks' parts.

A sequence is cut into 2·CP chunks, and rank r has chunks r and 2·CP - 1 - r, so that causal attention is as much work on every rank.
megatron.core's rotary embedding and Transformer Engine's attention count on this order. `bounds` are the positions at which sequences that
lie one after the other begin, and the end of the last: (0, S) is a single one. Their lengths are multiples of 2·CP.
"""

from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from megatron.core import parallel_state, tensor_parallel
from torch import Tensor

Bounds = tuple[int, ...]


def context_place() -> tuple[int, int]:
    """(rank, size) in context parallelism: which part of each sequence, and which share of its response tokens, is this process's."""
    return parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()


def own_tokens(bounds: Bounds, rank: int, size: int) -> Tensor:
    """Positions [S / CP] of the tokens that this rank of `size` ranks has, in its order."""
    chunks = 2 * size
    lengths = [(stop - start) // chunks for start, stop in pairwise(bounds)]
    firsts = [(start + i * n, n) for start, n in zip(bounds, lengths, strict=False) for i in (rank, chunks - 1 - rank)]
    return torch.cat([torch.arange(first, first + n) for first, n in firsts])


def split_sequences(whole_BS: Tensor, bounds: Bounds) -> Tensor:
    """This rank's part [B, S / CP] of whole sequences [B, S]."""
    rank, size = context_place()
    return whole_BS if size == 1 else whole_BS[:, own_tokens(bounds, rank, size).to(whole_BS.device)]


def join_sequences(part: Tensor, bounds: Bounds) -> Tensor:
    """Whole sequences [S, …] from every rank's part [S / CP, …]; the gradient of each part is summed over the ranks. Collective."""
    group: Any = parallel_state.get_context_parallel_group()
    if group.size() == 1:
        return part
    rank_after_rank = tensor_parallel.gather_from_sequence_parallel_region(part, group=group)
    return rank_after_rank.index_select(0, _order(bounds, group.size(), part.device))


@lru_cache(maxsize=64)  # every layer asks for the same
def _order(bounds: Bounds, size: int, device: torch.device) -> Tensor:
    """Where each position is when the ranks' parts lie one after the other."""
    return torch.argsort(torch.cat([own_tokens(bounds, rank, size) for rank in range(size)])).to(device)
