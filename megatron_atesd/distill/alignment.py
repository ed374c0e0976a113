"""Which exposure's distillation gradient agrees best with the gradient of the progress loss, found with forward passes.

For a small step d against the gradient of the progress loss ℓ, (∇ℓ)ᵀ P ∇L_α ∝ L_α(θ) − L_α(θ − d) to first order: how much each exposure's
own distillation loss L_α falls on the way that lowers ℓ. The student's logits do not depend on α, the teacher's not on the step:
one student pass at each of both places and one teacher pass an exposure are enough, on rollouts that are there already.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from megatron_atesd.distill.divergence import Divergence, bound_weights
from megatron_atesd.distill.fused import distill_loss
from megatron_atesd.distill.likelihood import ScoredText, weighted_nll_stage
from megatron_atesd.distill.readings import ResponseStates
from megatron_atesd.distill.step import Normalize, token_weights
from megatron_atesd.distill.teacher import Teacher
from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.model.micro_batches import MicroBatch, Pair
from megatron_atesd.model.modes import evaluation_mode
from megatron_atesd.model.schedule import LastStage, model_batches, run_schedule, sum_over_ranks
from megatron_atesd.model.vocabulary import vocabulary_shard
from megatron_atesd.parallel.groups import data_parallel_place


def add_progress_gradient(wrapped: torch.nn.Module, model: HiddenStateGPT, texts: Sequence[ScoredText], micro_batch_tokens: int) -> None:
    """Accumulate the gradient of Σ weight · NLL, up to a positive factor, in `wrapped`: DistributedDataParallel around `model`'s chunks.

    The same texts are given on every rank, and each data-parallel rank takes its share. In evaluation mode. Collective over all ranks.
    """
    rank, size = data_parallel_place()
    mine = texts[rank::size]
    with evaluation_mode(model):
        batches = model_batches(model, [(text.prompt, text.response) for text in mine], micro_batch_tokens)
        run_schedule(wrapped, batches, weighted_nll_stage(model, mine), forward_only=False)


@torch.no_grad()
def alignment_scores(
    model: HiddenStateGPT,
    teacher: Teacher,
    rollouts: Sequence[Pair],
    seen: Sequence[ResponseStates],
    divergence: Divergence,
    micro_batch_tokens: int,
    normalize: Normalize,
    trial: Callable[[], AbstractContextManager[bool]],
) -> list[float] | None:
    """By how much each exposure's loss falls within `trial()`, a token or sequence as normalised.

    None when the trial moves nothing, or no rank has a rollout.
    rollouts: this data-parallel rank's, each with the student's prompt. seen: what the teacher makes of them at each exposure. The bound of
    a token's loss (clip_mode token) is held where it was before the trial, as in the gradient. The same on every rank. Collective over all
    ranks.
    """
    head_VH = teacher.head_weight() if model.post_process else torch.empty(0)
    if teacher.kind == "live":  # its head is the student's, and must not move with it
        head_VH = head_VH.clone()
    shard = vocabulary_shard(model)

    def divergences(batch: MicroBatch, hidden_BSH: Tensor) -> Tensor:
        """[A, T]: of each exposure and response token."""
        hidden_TH = batch.response_hidden(hidden_BSH)
        weight_T = torch.ones(len(hidden_TH), device=hidden_TH.device)
        teachers = (states.of_batch(batch.members, hidden_TH) for states in seen)
        found = (
            distill_loss(hidden_TH, model.head_weight(), teacher_TH, head_VH, weight_T, divergence, shard.valid, shard.group)
            for teacher_TH in teachers
        )
        return torch.stack([statistics.divergence_T for _, statistics in found])

    def of_pass(last_stage: LastStage) -> list[Tensor]:
        with evaluation_mode(model):
            return run_schedule(model, batches, last_stage, forward_only=True)

    def keep(batch: MicroBatch, hidden_BSH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        before_AT = divergences(batch, hidden_BSH)
        return before_AT.sum(), token_weights(batch, normalize)[1], before_AT

    def compare(batch: MicroBatch, hidden_BSH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        before_AT = next(kept)
        token_T, count = token_weights(batch, normalize)
        fall_AT = (before_AT - divergences(batch, hidden_BSH)).double() * bound_weights(before_AT, divergence) * token_T
        return fall_AT.sum(), count, torch.cat((fall_AT.sum(dim=1), count.double()[None]))

    batches = model_batches(model, rollouts, micro_batch_tokens)
    kept: Iterator[Tensor] = iter(of_pass(keep))
    with trial() as moved:
        if not moved:
            return None
        *falls, count = sum_over_ranks(of_pass(compare), len(seen) + 1)
    return [fall / count for fall in falls] if count else None
