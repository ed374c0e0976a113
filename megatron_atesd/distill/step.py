"""Teacher pass and student pass over the same response tokens, through megatron.core's pipeline schedule."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_atesd.config import TrainConfig
from megatron_atesd.distill.divergence import Divergence
from megatron_atesd.distill.fused import TokenStatistics, distill_loss
from megatron_atesd.distill.teacher import Teacher
from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.model.micro_batches import MicroBatch, TokenIds, padding_share
from megatron_atesd.model.modes import evaluation_mode
from megatron_atesd.model.schedule import LastStage, model_batches, run_schedule, sum_over_ranks
from megatron_atesd.model.vocabulary import vocabulary_shard

Normalize = Literal["token", "sequence"]
Loss = Callable[..., tuple[Tensor, TokenStatistics]]  # arguments and results of distill_loss


def divergence_of(config: TrainConfig) -> Divergence:
    """The divergence of a run, at the rollouts' temperature unless it has one of its own."""
    distill = config.distill
    temperature = distill.temperature or config.rollout.temperature
    return Divergence(
        distill.divergence,
        distill.jsd_beta,
        distill.clip,
        temperature,
        distill.chunk,
        distill.top_k,
        distill.compile,
        distill.clip_mode,
    )


@dataclass(frozen=True)
class Example:
    """One response, as the student was asked for it and as the teacher will judge it."""

    student_prompt: TokenIds
    teacher_prompt: TokenIds
    response: TokenIds


@dataclass(frozen=True)
class StepResult:
    """Over all ranks: means a response token (the loss: a token or a sequence, as normalised; entropies and KL in nats), their count,
    the share of them, and of their summed KL, that the clip touches, the share of computed tokens that was padding, and this rank's
    seconds of both passes."""

    loss: float
    kl: float
    disagreement: float
    confidence: float
    teacher_entropy: float
    student_entropy: float
    clipped_tokens: float
    clipped_kl: float
    tokens: int
    padding: float
    teacher_seconds: float
    student_seconds: float


@dataclass(frozen=True)
class TeacherStates:
    """What a teacher pass leaves: hidden states [t, H] of each example's response (last stage only), and its (padding, all) tokens."""

    hidden: Mapping[int, Tensor]
    padded: tuple[int, int]


def distill_step(
    wrapped: torch.nn.Module,
    model: HiddenStateGPT,
    teacher: Teacher,
    examples: Sequence[Example],
    divergence: Divergence,
    micro_batch_tokens: int,
    normalize: Normalize = "token",
    loss: Loss = distill_loss,
) -> StepResult:
    """Loss and gradients of this data-parallel rank's examples; gradients end in `wrapped` (DistributedDataParallel around `model`).

    loss: of the last pipeline stage, given both roles' hidden states. Collective over all ranks. Data-parallel ranks may have different
    numbers of examples, also none.
    """
    return _both_passes(wrapped, model, teacher, examples, divergence, micro_batch_tokens, normalize, loss, forward_only=False)


def measure_step(
    model: HiddenStateGPT, teacher: Teacher, examples: Sequence[Example], divergence: Divergence, micro_batch_tokens: int
) -> StepResult:
    """The same without gradients, in evaluation mode."""
    with torch.no_grad(), evaluation_mode(model):
        return _both_passes(model, model, teacher, examples, divergence, micro_batch_tokens, "token", distill_loss, forward_only=True)


@torch.no_grad()
def example_losses(
    model: HiddenStateGPT, teacher: Teacher, examples: Sequence[Example], divergence: Divergence, loss: Loss = distill_loss
) -> list[float]:
    """Mean loss a response token of each example, one after the other, on the last pipeline stage ([] elsewhere).

    Collective over the ranks of one model; data-parallel ranks learn nothing of each other's.
    """
    states = teacher_pass(model, teacher, examples, 1)
    batches = model_batches(model, [(e.student_prompt, e.response) for e in examples], 1)
    last_stage = _student_loss(model, teacher, states.hidden, divergence, "token", loss)
    sums = run_schedule(model, batches, last_stage, forward_only=True)
    for total in sums:
        dist.all_reduce(total, group=parallel_state.get_context_parallel_group())
    means = {member: float(total[0] / total[1]) for batch, total in zip(batches, sums, strict=False) for member in batch.members}
    return [means[member] for member in sorted(means)]


def _both_passes(
    wrapped: torch.nn.Module,
    model: HiddenStateGPT,
    teacher: Teacher,
    examples: Sequence[Example],
    divergence: Divergence,
    micro_batch_tokens: int,
    normalize: Normalize,
    loss_function: Loss,
    forward_only: bool,
) -> StepResult:
    started = time.perf_counter()
    states = teacher_pass(model, teacher, examples, micro_batch_tokens)
    torch.cuda.synchronize()  # a GPU may still work on it: the seconds of the two passes are told apart
    middle = time.perf_counter()
    pairs = [(e.student_prompt, e.response) for e in examples]
    student_batches = model_batches(model, pairs, micro_batch_tokens)
    last_stage = _student_loss(model, teacher, states.hidden, divergence, normalize, loss_function)
    sums = run_schedule(wrapped, student_batches, last_stage, forward_only)
    padded = [a + b for a, b in zip(states.padded, padding_share(student_batches, pairs), strict=True)]
    loss, count, tokens, clipped_kl, kl_sum, *totals = sum_over_ranks(sums, 10)
    padding, slots = sum_over_ranks([torch.tensor(padded, dtype=torch.float64, device=torch.cuda.current_device())], 2)
    finished = time.perf_counter()
    kl, disagreement, confidence, teacher_entropy, student_entropy, clipped = (total / max(tokens, 1) for total in (kl_sum, *totals))
    return StepResult(
        loss=loss / max(count, 1),
        kl=kl,
        disagreement=disagreement,
        confidence=confidence,
        teacher_entropy=teacher_entropy,
        student_entropy=student_entropy,
        clipped_tokens=clipped,
        clipped_kl=clipped_kl / kl_sum if kl_sum else 0.0,
        tokens=int(tokens),
        padding=padding / slots,
        teacher_seconds=middle - started,
        student_seconds=finished - middle,
    )


def teacher_pass(model: HiddenStateGPT, teacher: Teacher, examples: Sequence[Example], micro_batch_tokens: int) -> TeacherStates:
    """The teacher's final hidden states of this data-parallel rank's examples; the loss forms logits, chunk by chunk. Collective."""
    pairs = [(e.teacher_prompt, e.response) for e in examples]

    def last_stage(batch: MicroBatch, hidden_BSH: Tensor) -> tuple[Tensor, Tensor, list[tuple[int, Tensor]]]:
        hidden_TH = batch.response_hidden(hidden_BSH)
        parts = hidden_TH.split(batch.shared_lengths())
        return hidden_TH.sum(), torch.ones((), dtype=torch.int, device=hidden_TH.device), list(zip(batch.members, parts, strict=True))

    with torch.no_grad(), evaluation_mode(model), teacher.applied():
        batches = model_batches(model, pairs, micro_batch_tokens)
        hidden = run_schedule(model, batches, last_stage, forward_only=True)
    return TeacherStates({member: part for batch in hidden for member, part in batch}, padding_share(batches, pairs))


def _student_loss(
    model: HiddenStateGPT,
    teacher: Teacher,
    teacher_hidden: Mapping[int, Tensor],
    divergence: Divergence,
    normalize: Normalize,
    loss_function: Loss,
) -> LastStage:
    """What the last stage does with the student's hidden states; keeps the sums [10]: loss, its count, tokens, clipped KL, statistics."""
    shard = vocabulary_shard(model)
    teacher_head_VH = teacher.head_weight() if model.post_process else torch.empty(0)

    def last_stage(batch: MicroBatch, hidden_BSH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden_TH = batch.response_hidden(hidden_BSH)
        teacher_TH = torch.cat([hidden_TH.new_empty(0, hidden_TH.shape[1]), *(teacher_hidden[member] for member in batch.members)])
        token_weight_T, count = token_weights(batch, normalize)
        loss, stats = loss_function(
            hidden_TH, model.head_weight(), teacher_TH, teacher_head_VH, token_weight_T, divergence, shard.valid, shard.group
        )
        statistics = (
            stats.clipped_T * stats.kl_T,
            stats.kl_T,
            stats.disagreement_T,
            stats.confidence_T,
            stats.teacher_entropy_T,
            stats.student_entropy_T,
            stats.clipped_T,
        )
        sums = (loss.detach(), count, torch.tensor(len(hidden_TH)), *(statistic_T.sum() for statistic_T in statistics))
        return loss, count, torch.stack([s.to(loss.device, torch.float64) for s in sums])

    return last_stage


def token_weights(batch: MicroBatch, normalize: Normalize) -> tuple[Tensor, Tensor]:
    """Weight of each response token [T], and the count (int) by which their weighted sum is divided once, globally.

    token: 1 and the number of tokens. sequence: 1 / the length of the token's response, and the number of first tokens, each of which
    stands for its response.
    """
    if normalize == "token":
        return torch.ones_like(batch.targets_T, dtype=torch.float32), torch.tensor(
            len(batch.targets_T), dtype=torch.int, device=batch.targets_T.device
        )
    return 1.0 / batch.lengths_N[batch.sequence_T].float(), (batch.place_T == 0).sum().int()
