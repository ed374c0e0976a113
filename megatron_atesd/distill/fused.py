"""Vocabulary projection and divergence in one, by chunks of tokens, over the vocabulary shards of tensor parallelism.

Logits of student and teacher exist for one chunk at a time and never reach the backward: the gradients of the student's hidden states
and of its head are made in the forward pass. Per chunk there are two collectives over TP (one all-gather of softmax statistics, one
all-reduce of the summed terms), and one all-reduce of the hidden states' gradient a call. Arithmetic on logits is fp32 or better.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_atesd.distill.divergence import Kind, divergence_terms, log_mixture


@dataclass(frozen=True)
class Divergence:
    """What to minimise: kind and its β, per-entry clip (0 = none), temperature of both roles, tokens a chunk."""

    kind: Kind = "forward_kl"
    beta: float = 0.5
    clip: float = 0.0
    temperature: float = 1.0
    chunk: int = 1024


@dataclass(frozen=True)
class TokenStatistics:
    """Of each response token, without gradient: unclipped KL(teacher ‖ student) in nats, top-1 differs, largest student probability."""

    kl_T: Tensor
    disagreement_T: Tensor
    confidence_T: Tensor


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
    """Σ_n token_weight_n · D_n (scalar) and the statistics of each token; gradient to `hidden_TH` and `weight_VH`.

    weights are this rank's vocabulary rows, of which the first `valid` are real (None = all) and the rest TP padding;
    `group` is the TP group (None when the vocabulary is whole here). With a group, hidden states must be equal on its
    ranks, and their gradient arrives summed over it.
    """
    rows = weight_VH.shape[0] if valid is None else valid
    loss, *statistics = _FusedDivergence.apply(
        hidden_TH, weight_VH, teacher_hidden_TH, teacher_weight_VH, token_weight_T, settings, rows, group
    )
    return loss, TokenStatistics(*statistics)


class _FusedDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        teacher_hidden_TH: Tensor,
        teacher_weight_VH: Tensor,
        token_weight_T: Tensor,
        settings: Divergence,
        rows: int,
        group: dist.ProcessGroup | None,
    ) -> tuple[Tensor, ...]:
        work = torch.promote_types(hidden_TH.dtype, torch.float32)
        d_hidden_TH = torch.zeros_like(hidden_TH, dtype=work) if ctx.needs_input_grad[0] else None
        d_weight_VH = torch.zeros_like(weight_VH, dtype=work) if ctx.needs_input_grad[1] else None
        loss, columns = hidden_TH.new_zeros((), dtype=work), []
        for start in range(0, len(hidden_TH), settings.chunk):
            part = slice(start, start + settings.chunk)
            logits_TV = torch.matmul(hidden_TH[part], weight_VH[:rows].t()).to(work) / settings.temperature
            teacher_TV = torch.matmul(teacher_hidden_TH[part], teacher_weight_VH[:rows].t()).to(work) / settings.temperature
            token_loss_T, statistics_3T, slope_TV = _chunk(logits_TV, teacher_TV, settings, group)
            loss += (token_loss_T * token_weight_T[part]).sum()
            columns.append(statistics_3T)
            slope_TV *= (token_weight_T[part] / settings.temperature)[:, None]
            if d_hidden_TH is not None:
                d_hidden_TH[part] = torch.matmul(slope_TV.to(weight_VH.dtype), weight_VH[:rows])
            if d_weight_VH is not None:
                d_weight_VH[:rows] += torch.matmul(slope_TV.t().to(hidden_TH.dtype), hidden_TH[part])
        if d_hidden_TH is not None and group is not None:
            dist.all_reduce(d_hidden_TH, group=group)
        ctx.gradients = tuple(g if g is None else g.to(x.dtype) for g, x in ((d_hidden_TH, hidden_TH), (d_weight_VH, weight_VH)))
        statistics_3T = torch.cat(columns, dim=1) if columns else hidden_TH.new_zeros(3, 0, dtype=work)
        ctx.mark_non_differentiable(*(outputs := tuple(statistics_3T.unbind(0))))
        return loss, *outputs

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        d_hidden_TH, d_weight_VH = (None if g is None else g * d_loss.to(g.dtype) for g in ctx.gradients)
        ctx.gradients = ()
        return d_hidden_TH, d_weight_VH, None, None, None, None, None, None


def _chunk(logits_TV: Tensor, teacher_TV: Tensor, settings: Divergence, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor, Tensor]:
    """Token losses [T], statistics [3, T] and d loss / d (logits / temperature) [T, V] of one chunk.

    With g the derivative by the student's log-probabilities q, the logits' derivative is g - exp(q) · Σ_v g (softmax).
    Where g holds a whole distribution (`mass`), its sum is written as 1 less what clipping took away: equal distributions
    then give a gradient of exactly 0.
    """
    (log_norm_T, top_T, top_logit_T), (teacher_norm_T, teacher_top_T, _) = _softmax_statistics((logits_TV, teacher_TV), group)
    student_TV, teacher_TV = logits_TV - log_norm_T[:, None], teacher_TV - teacher_norm_T[:, None]
    terms_TV = divergence_terms(teacher_TV, student_TV, settings.kind, settings.beta)
    kl_T = (terms_TV if settings.kind == "forward_kl" else divergence_terms(teacher_TV, student_TV, "forward_kl")).sum(-1)
    slope_TV, mass_TV, sign = _slope(teacher_TV, student_TV, settings)
    taken_T = torch.zeros_like(kl_T)
    if settings.clip > 0:
        clipped_TV = terms_TV > settings.clip
        taken_T = mass_TV.masked_fill(~clipped_TV, 0.0).sum(-1)
        slope_TV, mass_TV = slope_TV.masked_fill(clipped_TV, 0.0), mass_TV.masked_fill(clipped_TV, 0.0)
        terms_TV = terms_TV.clamp(max=settings.clip)
    sums_3T = torch.stack((terms_TV.sum(-1), kl_T, slope_TV.sum(-1) - sign * taken_T))
    if group is not None:
        dist.all_reduce(sums_3T, group=group)
    loss_T, kl_T, slope_sum_T = sums_3T
    statistics_3T = torch.stack((kl_T, (top_T != teacher_top_T).to(kl_T.dtype), (top_logit_T - log_norm_T).exp()))
    gradient_TV = slope_TV + sign * mass_TV - student_TV.exp() * (slope_sum_T + sign)[:, None]
    return loss_T, statistics_3T, gradient_TV


def _slope(teacher_TV: Tensor, student_TV: Tensor, settings: Divergence) -> tuple[Tensor, Tensor, int]:
    """Derivative of each entry's term by the student's log-probability there, as `slope + sign · mass` with a distribution `mass`."""
    if settings.kind == "forward_kl":
        return torch.zeros_like(teacher_TV), teacher_TV.exp(), -1
    student_prob_TV = student_TV.exp()
    if settings.kind == "reverse_kl":
        return student_prob_TV * (student_TV - teacher_TV), student_prob_TV, 1
    # d/dlog q [β p log(p/m) + (1-β) q log(q/m)]: what comes through m cancels against q's own derivative.
    mixture_TV = log_mixture(teacher_TV, student_TV, settings.beta)
    return (1 - settings.beta) * student_prob_TV * (student_TV - mixture_TV), student_prob_TV, 0


def _softmax_statistics(logits: tuple[Tensor, ...], group: dist.ProcessGroup | None) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each logits_TV: log-normaliser [T], arg-max over the whole vocabulary [T] and the largest logit [T], by one all-gather."""
    local_4T = [_local_statistics(x) for x in logits]
    packed = torch.stack(local_4T)  # [roles, 3, T]: largest logit, its column, Σ exp(logit - largest)
    if group is None:
        shards = packed[None]
    else:
        shards = packed.new_empty(dist.get_world_size(group), *packed.shape)
        dist.all_gather(list(shards.unbind(0)), packed, group=group)
    results = []
    for role in range(len(logits)):
        peak_RT, column_RT, sum_RT = shards[:, role].unbind(1)
        peak_T, shard_T = peak_RT.max(dim=0)
        log_norm_T = peak_T + (sum_RT * (peak_RT - peak_T).exp()).sum(dim=0).log()
        results.append((log_norm_T, shard_T * 2**24 + column_RT.gather(0, shard_T[None])[0].long(), peak_T))
    return results


def _local_statistics(logits_TV: Tensor) -> Tensor:
    if logits_TV.shape[1] == 0:  # a shard of padding only
        empty = logits_TV.new_zeros(len(logits_TV))
        return torch.stack((torch.full_like(empty, torch.finfo(logits_TV.dtype).min), empty, empty))
    peak_T, column_T = logits_TV.max(dim=1)
    return torch.stack((peak_T, column_T.to(logits_TV.dtype), (logits_TV - peak_T[:, None]).exp().sum(dim=1)))
