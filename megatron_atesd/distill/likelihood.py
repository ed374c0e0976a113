"""Log-likelihood of given responses: the learning-progress probe and the grounding of the exposed teacher."""

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_atesd.model.packing import PackedBatch, TokenIds, micro_batches
from megatron_atesd.model.parallel import data_parallel_place
from megatron_atesd.model.qwen3 import HiddenStateGPT
from megatron_atesd.model.schedule import run_schedule, sum_over_ranks
from megatron_atesd.model.vocabulary import token_nll, vocabulary_shard


def mean_nll(model: HiddenStateGPT, pairs: Sequence[tuple[TokenIds, TokenIds]], micro_batch: int) -> float:
    """NLL of all (prompt, response) pairs' response tokens, mean over tokens (nats); the same pairs are given on every rank.

    Each data-parallel rank scores its share; temperature is 1. Collective over all ranks.
    """
    shard = vocabulary_shard(model)
    rank, size = data_parallel_place()
    mine = pairs[rank::size]

    def last_stage(_: int, batch: PackedBatch, hidden_BSH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        nll_T = token_nll(batch.response_hidden(hidden_BSH), model.head_weight(), batch.targets_T, shard)
        count = torch.tensor(len(nll_T), dtype=torch.int, device=nll_T.device)
        return nll_T.sum(), count, torch.stack((nll_T.double().sum(), count.double()))

    multiple = model.config.tensor_model_parallel_size if model.config.sequence_parallel else 1
    was_training = model.training
    model.eval()
    with torch.no_grad():
        sums = run_schedule(model, micro_batches(mine, micro_batch, multiple), last_stage, forward_only=True)
    model.train(was_training)
    total, count = sum_over_ranks(sums, 2)
    return total / count
