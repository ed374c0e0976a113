"""Vocabulary projection and divergence in one, by chunks of tokens, over the vocabulary shards of tensor parallelism.

Logits of student and teacher exist for one chunk at a time and never reach the backward: the gradients of the student's hidden states
and of its head are made in the forward pass. Per chunk there are two collectives over TP (one all-gather of softmax statistics, one
all-reduce of the summed terms; with top-k three all-gathers; a mix of probabilities has one all-gather more), and one all-reduce of the
hidden states' gradient a call.

Arithmetic on logits is fp32 or better; a matrix product of bf16 operands accumulates in fp32 and gives its result in bf16.
Peak memory beside the gradients, in bytes for each entry of [chunk, V/TP]: 8 (4 in bf16) with the whole vocabulary on a CPU, whose
elementwise work goes row by row; about 40 with TP > 1 or on a GPU, where a whole chunk is worked on at once. With a mix of probabilities
12 (6 in bf16) and about 46.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_atesd.distill.divergence import Divergence, bound_weights
from megatron_atesd.distill.softmax import Distributions, distributions
from megatron_atesd.distill.target import mix_probabilities
from megatron_atesd.distill.terms import summed_terms
from megatron_atesd.distill.top_k import top_k_divergence

# On a CPU the elementwise work goes through rows that fit a core's cache: several times faster than passes over a whole chunk.
_CACHE_BYTES = 2**19


@dataclass(frozen=True)
class TokenStatistics:
    """Of each response token, without gradient: full-vocabulary, unclipped KL(teacher ‖ student) and both entropies in nats,
    whether the most likely entries differ, and the student's largest probability. The teacher's is the target's (`settings.target`).

    divergence_T: D of the configured kind (nats; over the top-k buckets, if there are any), whose gradient the loss follows; with
    clip_mode entry the sum of the cut terms. clipped_T: 1 where the clip touches the token (clip_mode token: D is above it; entry: it cuts
    an entry), else 0.
    """

    divergence_T: Tensor
    kl_T: Tensor
    disagreement_T: Tensor
    confidence_T: Tensor
    teacher_entropy_T: Tensor
    student_entropy_T: Tensor
    clipped_T: Tensor


def distill_loss(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    teacher_hidden_TH: Tensor,
    teacher_weight_VH: Tensor,
    token_weight_T: Tensor,
    settings: Divergence,
    valid: int | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, TokenStatistics]:
    """Σ_n token_weight_n · w_n · D_n (scalar), w = `bound_weights`, and each token's statistics; gradient to `hidden_TH` and `weight_VH`.

    weights are this rank's vocabulary rows, of which the first `valid` are real (None = all) and the rest TP padding;
    `group` is the TP group (None when the vocabulary is whole here). With a group, hidden states must be equal on its
    ranks, and their gradient arrives summed over it. teacher_hidden_TH: [2, T, H], both readings, for a target that mixes probabilities.
    One backward a call; raises ValueError for roles of different lengths, or another number of readings than the target has.
    """
    readings_RTH = teacher_hidden_TH if teacher_hidden_TH.dim() == 3 else teacher_hidden_TH[None]
    if len(readings_RTH) != settings.target.readings:
        raise ValueError(f"target {settings.target.kind} has {settings.target.readings} readings by the teacher, not {len(readings_RTH)}")
    if not len(hidden_TH) == readings_RTH.shape[1] == len(token_weight_T):
        lengths = f"{len(hidden_TH)} student, {readings_RTH.shape[1]} teacher, {len(token_weight_T)} weights"
        raise ValueError(f"both roles must see the same response tokens: {lengths}")
    rows = weight_VH.shape[0] if valid is None else valid
    loss, *statistics = _FusedDivergence.apply(
        hidden_TH, weight_VH, readings_RTH, teacher_weight_VH, token_weight_T, settings, rows, group, torch.is_grad_enabled()
    )
    return loss, TokenStatistics(*statistics)


class _FusedDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        readings_RTH: Tensor,
        teacher_weight_VH: Tensor,
        token_weight_T: Tensor,
        settings: Divergence,
        rows: int,
        group: dist.ProcessGroup | None,
        differentiable: bool,
    ) -> tuple[Tensor, ...]:
        work = torch.promote_types(hidden_TH.dtype, torch.float32)
        wants_hidden, wants_weight = (wanted and differentiable for wanted in ctx.needs_input_grad[:2])
        student_VH, teacher_VH = weight_VH[:rows], teacher_weight_VH[:rows]
        d_hidden_TH = torch.empty_like(hidden_TH, dtype=work) if wants_hidden else None
        d_weight_VH = torch.empty_like(weight_VH, dtype=work) if wants_weight else None
        scale_T1 = (token_weight_T / settings.temperature)[:, None].to(work)
        states = (readings_RTH[0], hidden_TH, *readings_RTH[1:])
        matrices = (teacher_VH, student_VH, *[teacher_VH] * len(readings_RTH[1:]))
        logits_SCV = hidden_TH.new_empty(len(states), min(settings.chunk, len(hidden_TH)), rows)
        loss, columns = hidden_TH.new_zeros((), dtype=work), [hidden_TH.new_empty(7, 0, dtype=work)]
        for start in range(0, len(hidden_TH), settings.chunk):
            part = slice(start, start + settings.chunk)
            all_SCV = logits_SCV[:, : len(hidden_TH[part])]
            for logits_CV, states_TH, matrix_VH in zip(all_SCV, states, matrices, strict=True):
                logits_CV.addmm_(states_TH[part], matrix_VH.t(), beta=0, alpha=1 / settings.temperature)
            statistics_7C = _chunk(all_SCV, settings, group, wants_hidden or wants_weight)
            columns.append(statistics_7C)
            # The bound is a factor of a token: it needs no pass over the logits.
            bound_C = bound_weights(statistics_7C[0], settings)
            scale_C1 = scale_T1[part] * bound_C[:, None]
            loss += (statistics_7C[0] * bound_C * token_weight_T[part]).sum()
            if d_hidden_TH is not None:
                torch.mul(torch.mm(all_SCV[1], student_VH), scale_C1, out=d_hidden_TH[part])
            if d_weight_VH is not None:
                _add_product(d_weight_VH[:rows], all_SCV[1], (hidden_TH[part] * scale_C1).to(hidden_TH.dtype), first=start == 0)
        if d_weight_VH is not None:
            d_weight_VH[rows if len(hidden_TH) else 0 :].zero_()
        if d_hidden_TH is not None and group is not None:
            dist.all_reduce(d_hidden_TH, group=group)
        ctx.gradients = tuple(g if g is None else g.to(x.dtype) for g, x in ((d_hidden_TH, hidden_TH), (d_weight_VH, weight_VH)))
        ctx.mark_non_differentiable(*(statistics := torch.cat(columns, dim=1).unbind(0)))
        return loss, *statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradients, ctx.gradients = ctx.gradients, ()
        if not gradients:
            raise RuntimeError("distill_loss gives its gradients to one backward only, then their memory is free; call it again")
        if d_loss.device.type != "cpu" or d_loss != 1:  # a pass over the head's gradient less; to ask a GPU would wait for it
            gradients = [None if g is None else g.mul_(d_loss.to(g.dtype)) for g in gradients]
        return *gradients, *[None] * 7


def _add_product(total_VH: Tensor, gradient_CV: Tensor, hidden_CH: Tensor, first: bool) -> None:
    """total += gradientᵀ · hidden (= for the first); bf16 products join an fp32 total by blocks of rows, without a second [V, H]."""
    if gradient_CV.dtype == total_VH.dtype:
        total_VH.addmm_(gradient_CV.t(), hidden_CH, beta=int(not first))
        return
    block = _rows(total_VH, _CACHE_BYTES * 8)
    for total, gradient in zip(total_VH.split(block), gradient_CV.split(block, dim=1), strict=True):
        product = torch.mm(gradient.t(), hidden_CH)
        total.copy_(product) if first else total.add_(product)


def _chunk(logits_SCV: Tensor, settings: Divergence, group: dist.ProcessGroup | None, wants_gradient: bool) -> Tensor:
    """Statistics [7, C] of one chunk's tokens; with `wants_gradient`, the student's logits become d divergence / d logits.

    S: logits of the teacher, of the student and, with a mix of probabilities, of the teacher's second reading.
    """
    # Compiled, a block is one call that keeps less between its loops: it may have more rows.
    block, limit = (torch.compile(_block), 4 * _CACHE_BYTES) if settings.compile else (_block, _CACHE_BYTES)
    rows = logits_SCV.shape[1] if group is not None else _rows(logits_SCV[0], limit)
    columns = []
    for logits_STV in logits_SCV.split(rows, dim=1):
        statistics_7T, gradient_TV = block(logits_STV, settings, group, wants_gradient)
        if gradient_TV is not None:
            logits_STV[1].copy_(gradient_TV)
        columns.append(statistics_7T)
    return torch.cat(columns, dim=1)


def _rows(matrix: Tensor, limit: int) -> int:
    """Rows of a matrix that stay in a core's cache as fp32; on a GPU all of them."""
    return len(matrix) if matrix.device.type != "cpu" else max(1, limit // (4 * max(1, matrix.shape[1])))


def _block(stored_STV: Tensor, settings: Divergence, group: dist.ProcessGroup | None, wants_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """Statistics [7, T], in the order of TokenStatistics, and, if wanted, the divergence's gradient by the student's logits [T, V]."""
    logits_STV = stored_STV.to(torch.promote_types(stored_STV.dtype, torch.float32))
    if settings.target.readings == 2:
        logits_STV[0].copy_(mix_probabilities(logits_STV[0], logits_STV[2], settings.target.weight, group))
    both = distributions(logits_STV[:2], group)
    if settings.top_k:
        sums_3T, gradient_TV = top_k_divergence(both, settings, group, wants_gradient)
        return _statistics(sums_3T, both, settings), gradient_TV
    (teacher_TV, student_TV), ratio_TV = both.probability_2TV, both.log_ratio()
    terms = summed_terms(ratio_TV, teacher_TV, student_TV, settings)
    kl_T = terms.unclipped_T if settings.kind == "forward_kl" else torch.linalg.vecdot(teacher_TV, ratio_TV)
    sums_4T = torch.stack((terms.divergence_T, kl_T, terms.cut_T, terms.excess_T))
    if group is not None:
        dist.all_reduce(sums_4T, group=group)
    gradient_TV = terms.gradient(student_TV, sums_4T[3]).to(stored_STV.dtype) if wants_gradient else None
    return _statistics(sums_4T[:3], both, settings), gradient_TV


def _statistics(sums_3T: Tensor, both: Distributions, settings: Divergence) -> Tensor:
    """[7, T], of divergence, KL and number of entries cut."""
    divergence_T, _, cut_T = sums_3T
    bounded = settings.clip_mode == "token" and settings.clip > 0
    clipped_T = (divergence_T > settings.clip if bounded else cut_T > 0).to(divergence_T.dtype)
    return torch.cat((sums_3T[:2], both.statistics_4T, clipped_T[None]))
