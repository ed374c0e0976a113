"""Log-likelihood of given responses: the learning-progress probe and the grounding of the exposed teacher."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.model.micro_batches import MicroBatch, Pair, TokenIds
from megatron_atesd.model.modes import evaluation_mode
from megatron_atesd.model.schedule import LastStage, model_batches, run_schedule, sum_over_ranks
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

    Each data-parallel rank scores its share. Logits exist for `CHUNK` tokens at a time. Collective over all ranks.
    """
    rank, size = data_parallel_place()
    mine = texts[rank::size]
    batches = model_batches(model, [(text.prompt, text.response) for text in mine], micro_batch_tokens)
    with torch.no_grad(), evaluation_mode(model):
        sums = run_schedule(model, batches, weighted_nll_stage(model, mine), forward_only=True)
    return sum_over_ranks(sums, 1)[0]


def weighted_nll_stage(model: HiddenStateGPT, texts: Sequence[ScoredText]) -> LastStage:
    """What the last stage does with micro-batches made of `texts`, for the value or the gradient: its loss is their part of the sum.

    The count that goes with the loss is that of the response tokens; kept is the sum [1], float64.
    """

    def last_stage(batch: MicroBatch, hidden_BSH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        nll_T = torch.cat(token_nlls(model, batch.response_hidden(hidden_BSH), batch.targets_T))
        weights = [texts[member].weight for member in batch.members]
        weight_T = torch.tensor(weights, dtype=torch.float64, device=nll_T.device)[batch.sequence_T]
        loss = (weight_T * nll_T.double()).sum()
        return loss, torch.tensor(len(nll_T), dtype=torch.int, device=nll_T.device), loss.detach()[None]

    return last_stage


def text_nlls(model: HiddenStateGPT, pairs: Sequence[Pair], micro_batch_tokens: int) -> list[float]:
    """NLL of each (prompt, response) pair's response (nats, summed over its tokens, temperature 1); else as `weighted_nll`."""
    rank, size = data_parallel_place()
    mine = range(len(pairs))[rank::size]

    def last_stage(batch: MicroBatch, hidden_BSH: Tensor) -> tuple[Tensor, Tensor, tuple[tuple[int, ...], Tensor]]:
        nll_T = torch.cat(token_nlls(model, batch.response_hidden(hidden_BSH), batch.targets_T)).double()
        sums_N = torch.zeros(len(batch.lengths_N), dtype=torch.float64, device=nll_T.device).index_add(0, batch.sequence_T, nll_T)
        return nll_T.sum(), torch.tensor(len(nll_T), dtype=torch.int, device=nll_T.device), (batch.members, sums_N)

    batches = model_batches(model, [pairs[place] for place in mine], micro_batch_tokens)
    with torch.no_grad(), evaluation_mode(model):
        found = run_schedule(model, batches, last_stage, forward_only=True)
    total_N = torch.zeros(len(pairs), dtype=torch.float64, device=torch.cuda.current_device())
    for members, sums_N in found:
        total_N[[mine[member] for member in members]] = sums_N[: len(members)]
    return sum_over_ranks([total_N], len(pairs))


def token_nlls(model: HiddenStateGPT, hidden_TH: Tensor, targets_T: Tensor) -> list[Tensor]:
    """NLL of the targets (nats, fp32), chunk by chunk; logits exist for one chunk at a time, in a backward too, that makes them again."""
    shard, head_VH = vocabulary_shard(model), model.head_weight()
    chunks = zip(hidden_TH.split(CHUNK), targets_T.split(CHUNK), strict=True)
    return [checkpoint(token_nll, hidden, head_VH, targets, shard, use_reentrant=False) for hidden, targets in chunks]


def mean_nll(model: HiddenStateGPT, pairs: Sequence[tuple[TokenIds, TokenIds]], micro_batch_tokens: int) -> float:
    """NLL of all (prompt, response) pairs' response tokens, mean over tokens (nats); else as `weighted_nll`."""
    texts = [ScoredText(prompt, response, 1.0) for prompt, response in pairs]
    return weighted_nll(model, texts, micro_batch_tokens) / sum(len(response) for _, response in pairs)
