"""The divergences, defined plainly on dense log-probabilities. `fused.py` must equal this in value and gradient."""

import math
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["forward_kl", "reverse_kl", "jsd"]


def divergence_terms(teacher_TV: Tensor, student_TV: Tensor, kind: Kind, beta: float = 0.5) -> Tensor:
    """Each vocabulary entry's contribution [T, V], in nats; their sum over V is the divergence.

    teacher_TV, student_TV: log-probabilities. forward_kl: KL(teacher ‖ student), the loss of ATESD and OPSD.
    reverse_kl: KL(student ‖ teacher). jsd: β·KL(teacher ‖ m) + (1-β)·KL(student ‖ m) with m = β·teacher + (1-β)·student.
    """
    if kind == "forward_kl":
        return teacher_TV.exp() * (teacher_TV - student_TV)
    if kind == "reverse_kl":
        return student_TV.exp() * (student_TV - teacher_TV)
    mixture_TV = log_mixture(teacher_TV, student_TV, beta)
    return beta * teacher_TV.exp() * (teacher_TV - mixture_TV) + (1 - beta) * student_TV.exp() * (student_TV - mixture_TV)


def log_mixture(teacher_TV: Tensor, student_TV: Tensor, beta: float) -> Tensor:
    """log(β·teacher + (1-β)·student) from log-probabilities, without leaving log space."""
    return torch.logaddexp(teacher_TV + math.log(beta), student_TV + math.log1p(-beta))


def divergence(teacher_TV: Tensor, student_TV: Tensor, kind: Kind, clip: float = 0.0, beta: float = 0.5) -> Tensor:
    """Divergence a token [T], nats. With clip > 0 each entry is cut at `clip` first (OPSD v3): then it is a loss, no divergence."""
    terms_TV = divergence_terms(teacher_TV, student_TV, kind, beta)
    return (terms_TV.clamp(max=clip) if clip > 0 else terms_TV).sum(dim=-1)
