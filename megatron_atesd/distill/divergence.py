"""The divergences, defined plainly on dense log-probabilities. `fused.py` must equal this in value and gradient."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["forward_kl", "reverse_kl", "jsd"]


@dataclass(frozen=True)
class Divergence:
    """What to minimise: kind and its β, per-entry clip (0 = none), temperature of both roles.

    top_k: compare the teacher's k most likely entries and one bucket that holds all others (0 = every entry).
    chunk: tokens whose logits exist at one time. compile: let torch.compile fuse the work on them.
    """

    kind: Kind = "forward_kl"
    beta: float = 0.5
    clip: float = 0.0
    temperature: float = 1.0
    chunk: int = 128
    top_k: int = 0
    compile: bool = False


def divergence_terms(teacher_TV: Tensor, student_TV: Tensor, kind: Kind, beta: float = 0.5) -> Tensor:
    """Each vocabulary entry's contribution [T, V], in nats; their sum over V is the divergence.

    teacher_TV, student_TV: log-probabilities. forward_kl: KL(teacher ‖ student), the loss of ATESD and OPSD.
    reverse_kl: KL(student ‖ teacher). jsd: β·KL(teacher ‖ m) + (1-β)·KL(student ‖ m) with m = β·teacher + (1-β)·student.
    """
    if kind == "forward_kl":
        return teacher_TV.exp() * (teacher_TV - student_TV)
    if kind == "reverse_kl":
        return student_TV.exp() * (student_TV - teacher_TV)
    mixture_TV = torch.logaddexp(teacher_TV + math.log(beta), student_TV + math.log1p(-beta))
    return beta * teacher_TV.exp() * (teacher_TV - mixture_TV) + (1 - beta) * student_TV.exp() * (student_TV - mixture_TV)


def divergence(teacher_TV: Tensor, student_TV: Tensor, kind: Kind, clip: float = 0.0, beta: float = 0.5) -> Tensor:
    """Divergence a token [T], nats. With clip > 0 each entry is cut at `clip` first (OPSD v3): then it is a loss, no divergence."""
    terms_TV = divergence_terms(teacher_TV, student_TV, kind, beta)
    return (terms_TV.clamp(max=clip) if clip > 0 else terms_TV).sum(dim=-1)


def top_k_and_tail(teacher_TV: Tensor, student_TV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities [T, k + 1] of both roles over the teacher's k most likely entries and one bucket for all others (k < V).

    A divergence of these is a divergence still: at most that of the whole distributions, and 0 only if the buckets agree.
    """
    columns_TK = teacher_TV.topk(k, dim=-1).indices
    top_TV = torch.zeros_like(teacher_TV, dtype=torch.bool).scatter(-1, columns_TK, True)

    def buckets(log_probs_TV: Tensor) -> Tensor:
        tail_T = log_probs_TV.masked_fill(top_TV, -math.inf).logsumexp(dim=-1)
        return torch.cat((log_probs_TV.gather(-1, columns_TK), tail_T[:, None]), dim=-1)

    return buckets(teacher_TV), buckets(student_TV)
