"""Sums of a divergence's terms and their slopes, in few passes over memory that may be reused."""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_atesd.distill.divergence import Divergence


@dataclass(frozen=True)
class Terms:
    """Of entries [T, N] on this rank. The gradient by the student's logits is `sign · slope - q · total`, total taken over all ranks.

    divergence_T: Σ of the terms, each cut at the clip with clip_mode entry; unclipped_T: without that; cut_T: number of terms cut.
    sign · slope_TN: derivative of each term by log q there.
    excess_T: Σ slope less Σ of the distribution that it holds: what the total adds to `unit` (1 where there is such a
    distribution, else 0). Equal distributions thus have an excess of exactly 0, and a gradient of exactly 0.
    """

    divergence_T: Tensor
    unclipped_T: Tensor
    cut_T: Tensor
    slope_TN: Tensor
    excess_T: Tensor
    sign: int
    unit: int

    def gradient(self, student_TN: Tensor, excess_T: Tensor) -> Tensor:
        """d loss / d logits (at temperature 1); excess_T summed over all ranks, student_TN: probabilities."""
        total_T = self.sign * (self.unit + excess_T)
        return (student_TN * -total_T[:, None]).add_(self.slope_TN, alpha=self.sign)


def summed_terms(ratio_TN: Tensor, teacher_TN: Tensor, student_TN: Tensor, settings: Divergence) -> Terms:
    """Terms of log-ratios log(teacher / student) and both probabilities."""
    sign, mass_T = 1, student_TN.sum(-1)
    if settings.kind == "forward_kl":
        sign, mass_T = -1, teacher_TN.sum(-1)
        terms_TN, slope_TN = teacher_TN * ratio_TN, teacher_TN
    elif settings.kind == "reverse_kl":
        terms_TN = (student_TN * ratio_TN).neg_()
        slope_TN = terms_TN + student_TN
    else:
        mass_T = torch.zeros_like(mass_T)
        terms_TN, slope_TN = _jensen_shannon(ratio_TN, teacher_TN, student_TN, settings.beta)
    unclipped_T = divergence_T = terms_TN.sum(-1)
    cut_T = torch.zeros_like(unclipped_T)
    if settings.clip > 0 and settings.clip_mode == "entry":
        kept_TN = torch.le(terms_TN, settings.clip, out=torch.empty_like(terms_TN))  # numbers: a mask of bool is far slower on a CPU
        cut_T = kept_TN.shape[1] - kept_TN.sum(-1)
        slope_TN = slope_TN * kept_TN
        divergence_T = terms_TN.clamp_(max=settings.clip).sum(-1)
    return Terms(divergence_T, unclipped_T, cut_T, slope_TN, slope_TN.sum(-1) - mass_T, sign, int(settings.kind != "jsd"))


def _jensen_shannon(ratio_TN: Tensor, teacher_TN: Tensor, student_TN: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Terms and slopes of JSD(β), m = β·p + (1-β)·q, by the log-ratio d = log(p / q).

    With ℓ = log(1 + c·(e^-|d| - 1)), c = β for d < 0 and 1-β for d > 0: log(p/m) = min(d, 0) - ℓ and log(m/q) = max(d, 0) + ℓ. That is 0
    for p = q, and neither overflows nor cancels. The slope by log q is (1-β) q log(q/m): what comes through m cancels against q's own.
    """
    share_TN = ratio_TN.sign().mul_(0.5 - beta).add_(0.5)
    log_TN = ratio_TN.abs().neg_().expm1_().mul_(share_TN).log1p_()
    slope_TN = ratio_TN.clamp(min=0).add_(log_TN).mul_(student_TN).mul_(beta - 1)
    return ratio_TN.clamp(max=0).sub_(log_TN).mul_(teacher_TN).mul_(beta).add_(slope_TN), slope_TN
