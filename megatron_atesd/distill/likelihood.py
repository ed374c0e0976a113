"""Log-likelihood of given responses: the learning-progress probe and the grounding of the exposed teacher."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.model.micro_batches import MicroBatch, TokenIds
from megatron_atesd.model.modes import evaluation_mode
from megatron_atesd.model.schedule import model_batches, run_schedule, sum_over_ranks
from megatron_atesd.model.vocabulary import token_nll, vocabulary_shard
from megatron_atesd.parallel.groups import data_parallel_place

CHUNK = 512


@dataclass(frozen=True)
class ScoredText:
    """A response after a prompt, whose summed NLL counts `weight` times (weights may be negative)."""

    prompt: TokenIds
    response: TokenIds
    weight: float


def weighted_nll(model: HiddenStateGPT, texts: Sequence[ScoredText], micro_batch_tokens: int) -> float:
    """Σ weight · NLL of the response (nats, summed over its tokens, temperature 1); the same texts are given on every rank.

    Each data-parallel rank scores its share. Collective over all ranks.
    """
    raise NotImplementedError


def mean_nll(model: HiddenStateGPT, pairs: Sequence[tuple[TokenIds, TokenIds]], micro_batch_tokens: int) -> float:
    """NLL of all (prompt, response) pairs' response tokens, mean over tokens (nats); the same pairs are given on every rank.

    Each data-parallel rank scores its share; temperature is 1. Logits exist for `CHUNK` tokens at a time. Collective over all ranks.
    """
    shard = vocabulary_shard(model)
    rank, size = data_parallel_place()
    mine = pairs[rank::size]

    def last_stage(batch: MicroBatch, hidden_BSH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        chunks = zip(batch.response_hidden(hidden_BSH).split(CHUNK), batch.targets_T.split(CHUNK), strict=True)
        nll_T = torch.cat([token_nll(hidden_TH, model.head_weight(), targets_T, shard) for hidden_TH, targets_T in chunks])
        count = torch.tensor(len(nll_T), dtype=torch.int, device=nll_T.device)
        return nll_T.sum(), count, torch.stack((nll_T.double().sum(), count.double()))

    with torch.no_grad(), evaluation_mode(model):
        sums = run_schedule(model, model_batches(model, mine, micro_batch_tokens), last_stage, forward_only=True)
    total, count = sum_over_ranks(sums, 2)
    return total / count
