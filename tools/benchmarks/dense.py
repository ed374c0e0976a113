"""The loss with whole logits: what one writes first, and what distill_loss is measured against."""

from typing import Any

import torch
from torch import Tensor

from megatron_atesd.distill.divergence import divergence, divergence_terms
from megatron_atesd.distill.fused import Divergence, TokenStatistics

# Of teacher's and student's log-probabilities [T, V], each [T]; what depends on the settings is `_bounded`.
_STATISTICS = {
    "kl_T": lambda teacher_TV, student_TV: divergence(teacher_TV, student_TV, "forward_kl"),
    "disagreement_T": lambda teacher_TV, student_TV: (teacher_TV.argmax(-1) != student_TV.argmax(-1)).to(student_TV.dtype),
    "confidence_T": lambda teacher_TV, student_TV: student_TV.amax(-1).exp(),
    "teacher_entropy_T": lambda teacher_TV, student_TV: -(teacher_TV.exp() * teacher_TV).sum(-1),
    "student_entropy_T": lambda teacher_TV, student_TV: -(student_TV.exp() * student_TV).sum(-1),
}


def dense_loss(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    teacher_hidden_TH: Tensor,
    teacher_weight_VH: Tensor,
    token_weight_T: Tensor,
    settings: Divergence,
    valid: int | None = None,
    group: Any = None,
) -> tuple[Tensor, TokenStatistics]:
    """As distill_loss on one process: logits [T, V] of both roles in one piece, log_softmax, the plain definition, autograd."""
    assert group is None, "the dense loss knows no tensor parallelism"
    rows = weight_VH.shape[0] if valid is None else valid
    with torch.no_grad():
        teacher_TV = _log_probs(teacher_hidden_TH, teacher_weight_VH[:rows], settings.temperature)
    student_TV = _log_probs(hidden_TH, weight_VH[:rows], settings.temperature)
    loss_T = divergence(teacher_TV, student_TV, settings.kind, settings.clip, settings.beta, settings.clip_mode)
    with torch.no_grad():
        divergence_T, clipped_T = _bounded(teacher_TV, student_TV, loss_T, settings)
        others = {name: function(teacher_TV, student_TV) for name, function in _STATISTICS.items()}
    return (loss_T * token_weight_T).sum(), TokenStatistics(divergence_T=divergence_T, clipped_T=clipped_T, **others)


def _bounded(teacher_TV: Tensor, student_TV: Tensor, loss_T: Tensor, settings: Divergence) -> tuple[Tensor, Tensor]:
    """divergence_T and clipped_T of TokenStatistics; without a clip at no cost."""
    if settings.clip == 0:
        return loss_T.detach(), torch.zeros_like(loss_T)
    terms_TV = divergence_terms(teacher_TV, student_TV, settings.kind, settings.beta)
    if settings.clip_mode == "entry":
        return loss_T.detach(), (terms_TV.amax(-1) > settings.clip).to(loss_T.dtype)
    divergence_T = terms_TV.sum(-1)
    return divergence_T, (divergence_T > settings.clip).to(loss_T.dtype)


def _log_probs(hidden_TH: Tensor, weight_VH: Tensor, temperature: float) -> Tensor:
    logits_TV = torch.matmul(hidden_TH, weight_VH.t()).float()
    return torch.log_softmax(logits_TV if temperature == 1 else logits_TV / temperature, dim=-1)
