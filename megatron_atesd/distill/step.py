"""Teacher pass and student pass over the same response tokens, through megatron.core's pipeline schedule."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_atesd.config import TrainConfig
from megatron_atesd.distill.divergence import Divergence
from megatron_atesd.distill.fused import TokenStatistics, distill_loss
from megatron_atesd.distill.readings import Example, ResponseStates, teacher_passes
from megatron_atesd.distill.target import TEACHER, Target
from megatron_atesd.distill.teacher import Teacher
from megatron_atesd.distill.token_kl import FIRSTS, PlaceResult, TokenKL, place_results, sums_by_place
from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.model.micro_batches import MicroBatch, padding_share
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
        TEACHER if distill.target == "teacher" else Target(distill.target, distill.mix_weight),
    )


@dataclass(frozen=True)
class BinResult:
    """Over all ranks: response tokens of a difficulty bin, and the means of StepResult over them (0 without tokens)."""

    tokens: int
    kl: float
    disagreement: float
    confidence: float


@dataclass(frozen=True)
class StepResult:
    """Over all ranks: means a response token (the loss: a token or a sequence, as normalised; entropies and KL in nats), their count,
    the share of them, and of their summed KL, that the clip touches, the share of computed tokens that was padding, this rank's
    seconds of both passes, what each position bin and each of several difficulty bins has of it.

    token_kl: nats of each response token of the `sampled` first examples of this data-parallel rank."""

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
    by_place: tuple[PlaceResult, ...] = ()
    by_bin: tuple[BinResult, ...] = ()
    token_kl: tuple[tuple[float, ...], ...] = ()

    def of_bin(self, number: int) -> "StepResult":
        """The same with the KL, disagreement, confidence and tokens of one bin; of a bin without tokens those of all."""
        part = self.by_bin[number]
        if not part.tokens:
            return self
        return replace(self, tokens=part.tokens, kl=part.kl, disagreement=part.disagreement, confidence=part.confidence)


def distill_step(
    wrapped: torch.nn.Module,
    model: HiddenStateGPT,
    teacher: Teacher,
    examples: Sequence[Example],
    divergence: Divergence,
    micro_batch_tokens: int,
    normalize: Normalize = "token",
    loss: Loss = distill_loss,
    bins: int = 1,
    sampled: int = 0,
) -> StepResult:
    """Loss and gradients of this data-parallel rank's examples; gradients end in `wrapped` (DistributedDataParallel around `model`).

    loss: of the last pipeline stage, given both roles' hidden states. bins: difficulty bins; with more than one the result has by_bin.
    sampled: of so many of the examples, the first ones, it has token_kl; the same on every rank.
    Collective over all ranks. Data-parallel ranks may have different numbers of examples, also none.
    """
    return _both_passes(wrapped, model, teacher, examples, divergence, micro_batch_tokens, normalize, loss, False, bins, sampled)


def measure_step(
    model: HiddenStateGPT, teacher: Teacher, examples: Sequence[Example], divergence: Divergence, micro_batch_tokens: int
) -> StepResult:
    """The same without gradients, in evaluation mode."""
    with torch.no_grad(), evaluation_mode(model):
        return _both_passes(model, model, teacher, examples, divergence, micro_batch_tokens, "token", distill_loss, True)


@torch.no_grad()
def example_losses(
    model: HiddenStateGPT, teacher: Teacher, examples: Sequence[Example], divergence: Divergence, loss: Loss = distill_loss
) -> list[float]:
    """Mean loss a response token of each example, one after the other, on the last pipeline stage ([] elsewhere).

    Collective over the ranks of one model; data-parallel ranks learn nothing of each other's.
    """
    (states,) = teacher_passes(model, teacher, [examples], 1, divergence.target)
    batches = model_batches(model, [(e.student_prompt, e.response) for e in examples], 1)
    last_stage = _student_loss(model, teacher, states, divergence, "token", loss)
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
    bins: int = 1,
    sampled: int = 0,
) -> StepResult:
    started = time.perf_counter()
    (states,) = teacher_passes(model, teacher, [examples], micro_batch_tokens, divergence.target)
    torch.cuda.synchronize()  # a GPU may still work on it: the seconds of the two passes are told apart
    middle = time.perf_counter()
    pairs = [(e.student_prompt, e.response) for e in examples]
    student_batches = model_batches(model, pairs, micro_batch_tokens)
    binned = [e.bin for e in examples] if bins > 1 else []
    token_kl = TokenKL([len(e.response) for e in examples[:sampled]])
    last_stage = _student_loss(model, teacher, states, divergence, normalize, loss_function, binned, bins if bins > 1 else 0, token_kl)
    sums = run_schedule(wrapped, student_batches, last_stage, forward_only)
    padded = [a + b for a, b in zip(states.padded, padding_share(student_batches, pairs), strict=True)]
    whole, places = 10, 10 + 2 * len(FIRSTS)
    summed = sum_over_ranks(sums, places + (4 * bins if bins > 1 else 0))
    (loss, count, tokens, clipped_kl, kl_sum, *totals), of_bins = summed[:whole], summed[places:]
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
        by_place=place_results(summed[whole:places]),
        token_kl=token_kl.everywhere(),
        by_bin=tuple(_bin_result(*of_bins[i : i + 4]) for i in range(0, len(of_bins), 4)),
    )


def _bin_result(tokens: float, *sums: float) -> BinResult:
    return BinResult(int(tokens), *(total / max(tokens, 1) for total in sums))


def _student_loss(
    model: HiddenStateGPT,
    teacher: Teacher,
    states: ResponseStates,
    divergence: Divergence,
    normalize: Normalize,
    loss_function: Loss,
    bin_of: Sequence[int] = (),
    bins: int = 0,
    token_kl: TokenKL | None = None,
) -> LastStage:
    """What the last stage does with the student's hidden states; keeps the sums [10]: loss, its count, tokens, clipped KL, statistics;
    behind them those of `sums_by_place`, and, for each of `bins`, its tokens and their KL, disagreement and confidence.

    bin_of: of each example. token_kl: is filled in.
    """
    shard = vocabulary_shard(model)
    teacher_head_VH = teacher.head_weight() if model.post_process else torch.empty(0)

    def last_stage(batch: MicroBatch, hidden_BSH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden_TH = batch.response_hidden(hidden_BSH)
        teacher_TH = states.of_batch(batch.members, hidden_TH)
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
        if token_kl is not None:
            token_kl.take(batch, stats.kl_T)
        kept = [torch.stack([s.to(loss.device, torch.float64) for s in sums]), sums_by_place(batch, stats.kl_T)]
        return loss, count, torch.cat(kept + ([_sums_by_bin(batch, stats, bin_of, bins)] if bins else []))

    return last_stage


def _sums_by_bin(batch: MicroBatch, stats: TokenStatistics, bin_of: Sequence[int], bins: int) -> Tensor:
    """[4 · bins]: tokens of each bin and sums of their KL, disagreement and confidence."""
    member_bins = torch.tensor([bin_of[member] for member in batch.members], dtype=torch.long, device=stats.kl_T.device)
    values_T4 = torch.stack([torch.ones_like(stats.kl_T), stats.kl_T, stats.disagreement_T, stats.confidence_T], dim=1).double()
    return values_T4.new_zeros(bins, 4).index_add(0, member_bins[batch.sequence_T], values_T4).flatten()


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
