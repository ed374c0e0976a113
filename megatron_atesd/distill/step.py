"""Teacher pass and student pass over the same response tokens, through megatron.core's pipeline schedule."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_atesd.distill.fused import Divergence, distill_loss
from megatron_atesd.distill.teacher import Teacher
from megatron_atesd.model.packing import PackedBatch, TokenIds, micro_batches
from megatron_atesd.model.qwen3 import HiddenStateGPT
from megatron_atesd.model.schedule import LastStage, run_schedule, sum_over_ranks
from megatron_atesd.model.vocabulary import vocabulary_shard


@dataclass(frozen=True)
class Example:
    """One response, as the student was asked for it and as the teacher will judge it."""

    student_prompt: TokenIds
    teacher_prompt: TokenIds
    response: TokenIds


@dataclass(frozen=True)
class StepResult:
    """Means over all ranks' response tokens (loss: over tokens or sequences, as normalised), their count, seconds of both passes."""

    loss: float
    kl: float
    disagreement: float
    confidence: float
    tokens: int
    teacher_seconds: float
    student_seconds: float


def distill_step(
    wrapped: torch.nn.Module,
    model: HiddenStateGPT,
    teacher: Teacher,
    examples: Sequence[Example],
    divergence: Divergence,
    micro_batch: int,
    normalize: str = "token",
) -> StepResult:
    """Loss and gradients of this data-parallel rank's examples; gradients end in `wrapped` (DistributedDataParallel around `model`).

    Collective over all ranks; every data-parallel rank must have the same number of examples.
    """
    return _both_passes(wrapped, model, teacher, examples, divergence, micro_batch, normalize, forward_only=False)


def measure_step(
    model: HiddenStateGPT, teacher: Teacher, examples: Sequence[Example], divergence: Divergence, micro_batch: int
) -> StepResult:
    """The same without gradients; data-parallel ranks may have different numbers of examples."""
    with torch.no_grad():
        return _both_passes(model, model, teacher, examples, divergence, micro_batch, "token", forward_only=True)


def _both_passes(
    wrapped: torch.nn.Module,
    model: HiddenStateGPT,
    teacher: Teacher,
    examples: Sequence[Example],
    divergence: Divergence,
    micro_batch: int,
    normalize: str,
    forward_only: bool,
) -> StepResult:
    multiple = model.config.tensor_model_parallel_size if model.config.sequence_parallel else 1
    started = time.perf_counter()
    teacher_batches = micro_batches([(e.teacher_prompt, e.response) for e in examples], micro_batch, multiple)
    teacher_hidden = _teacher_pass(model, teacher, teacher_batches)
    middle = time.perf_counter()
    student_batches = micro_batches([(e.student_prompt, e.response) for e in examples], micro_batch, multiple)
    last_stage = _student_loss(model, teacher, teacher_hidden, divergence, normalize)
    sums = run_schedule(wrapped, student_batches, last_stage, forward_only)
    loss, kl, disagreement, confidence, count, tokens = sum_over_ranks(sums, 6)
    finished = time.perf_counter()
    return StepResult(
        loss / count, kl / tokens, disagreement / tokens, confidence / tokens, int(tokens), middle - started, finished - middle
    )


def _teacher_pass(model: HiddenStateGPT, teacher: Teacher, batches: Sequence[PackedBatch]) -> list[Tensor]:
    """The teacher's hidden states [T, H] of each micro-batch, on the last stage; logits are formed in the loss, chunk by chunk."""

    def last_stage(_: int, batch: PackedBatch, hidden_BSH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden_TH = batch.response_hidden(hidden_BSH)
        return hidden_TH.sum(), torch.ones((), dtype=torch.int, device=hidden_TH.device), hidden_TH

    model.eval()
    with torch.no_grad(), teacher.applied():
        hidden = run_schedule(model, batches, last_stage, forward_only=True)
    model.train()
    return hidden


def _student_loss(
    model: HiddenStateGPT, teacher: Teacher, teacher_hidden: Sequence[Tensor], divergence: Divergence, normalize: str
) -> LastStage:
    """What the last stage does with the student's hidden states; keeps the sums [6] loss, kl, disagreement, confidence, count, tokens."""
    shard = vocabulary_shard(model)
    teacher_head_VH = teacher.head_weight() if model.post_process else torch.empty(0)

    def last_stage(index: int, batch: PackedBatch, hidden_BSH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        token_weight_T, count = token_weights(batch, normalize)
        loss, stats = distill_loss(
            batch.response_hidden(hidden_BSH), model.head_weight(), teacher_hidden[index], teacher_head_VH,
            token_weight_T, divergence, shard.valid, shard.group,
        )  # fmt: skip
        tokens = torch.tensor(len(batch.targets_T), device=loss.device)
        sums = (loss.detach(), stats.kl_T.sum(), stats.disagreement_T.sum(), stats.confidence_T.sum(), count, tokens)
        return loss, count, torch.stack([s.double() for s in sums])

    return last_stage


def token_weights(batch: PackedBatch, normalize: str) -> tuple[Tensor, Tensor]:
    """Weight of each response token [T], and the count (int) by which their weighted sum is divided once, globally.

    token: 1 and the number of tokens. sequence: 1 / the token's sequence length, and the number of sequences.
    """
    if normalize == "token":
        return torch.ones_like(batch.targets_T, dtype=torch.float32), torch.tensor(
            len(batch.targets_T), dtype=torch.int, device=batch.targets_T.device
        )
    lengths_B = batch.response_lengths()
    return 1.0 / lengths_B[batch.sequence_T].float(), torch.tensor(len(lengths_B), dtype=torch.int, device=lengths_B.device)
