"""Supervised fine-tuning on given responses: how a base model gets warm before distillation."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.model.micro_batches import MicroBatch, TokenIds
from megatron_atesd.model.schedule import model_batches, run_schedule, sum_over_ranks
from megatron_atesd.model.vocabulary import token_nll, vocabulary_shard
from megatron_atesd.train.optimizer import Optimization


@dataclass(frozen=True)
class SftExample:
    """A prompt, the response to learn, and which response tokens count (1) or not (0)."""

    prompt_ids: TokenIds
    response_ids: TokenIds
    loss_mask: Sequence[int]


def sft_step(optimization: Optimization, model: HiddenStateGPT, examples: Sequence[SftExample], micro_batch_tokens: int) -> float:
    """One update on this data-parallel rank's examples; returns the mean NLL of all ranks' counted tokens (nats). Collective."""
    shard = vocabulary_shard(model)
    masks = [example.loss_mask for example in examples]

    def last_stage(batch: MicroBatch, hidden_BSH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        nll_T = token_nll(batch.response_hidden(hidden_BSH), model.head_weight(), batch.targets_T, shard)
        places = zip(batch.sequence_T.tolist(), batch.place_T.tolist(), strict=True)
        mask_T = torch.tensor([masks[batch.members[n]][place] for n, place in places], dtype=torch.int, device=nll_T.device)
        loss, count = (nll_T * mask_T).sum(), mask_T.sum().int()
        return loss, count, torch.stack((loss.detach().double(), count.double()))

    batches = model_batches(model, [(e.prompt_ids, e.response_ids) for e in examples], micro_batch_tokens)
    optimization.zero_grad()
    sums = run_schedule(optimization.wrapped, batches, last_stage, forward_only=False)
    optimization.step()
    total, count = sum_over_ranks(sums, 2)
    return total / count
