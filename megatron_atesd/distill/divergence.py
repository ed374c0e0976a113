"""The divergences, defined plainly on dense log-probabilities. `fused.py` must equal this in value and gradient."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from megatron_atesd.distill.target import TEACHER, Target

Kind = Literal["forward_kl", "reverse_kl", "jsd"]
ClipMode = Literal["entry", "token"]


@dataclass(frozen=True)
class Divergence:
    """What to minimise: kind and its β, clip in nats (0 = none) and what it bounds, temperature of both roles.

    clip_mode: entry = each vocabulary entry's term (OPSD v3); token = the token's divergence, by `bound_weights`.
    top_k: compare the teacher's k most likely entries and one bucket that holds all others (0 = every entry).
    chunk: tokens whose logits exist at one time. compile: let torch.compile fuse the work on them.
    target: the distribution in the teacher's place.
    """

    kind: Kind = "forward_kl"
    beta: float = 0.5
    clip: float = 0.0
    temperature: float = 1.0
    chunk: int = 128
    top_k: int = 0
    compile: bool = False
    clip_mode: ClipMode = "entry"
    target: Target = TEACHER


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


def divergence(
    teacher_TV: Tensor, student_TV: Tensor, kind: Kind, clip: float = 0.0, beta: float = 0.5, clip_mode: ClipMode = "entry"
) -> Tensor:
    """Divergence a token [T], nats. With clip > 0 it is a loss, no divergence.

    clip_mode entry: each entry is cut at `clip` first (OPSD v3). An entry above it has no gradient of its own and keeps the normaliser's,
    which can turn the gradient of the token that the teacher prefers. token: min(D, clip), with the gradient of D times min(1, clip / D).
    """
    terms_TV = divergence_terms(teacher_TV, student_TV, kind, beta)
    if clip > 0 and clip_mode == "entry":
        terms_TV = terms_TV.clamp(max=clip)
    divergence_T = terms_TV.sum(dim=-1)
    return bound_weights(divergence_T, Divergence(clip=clip, clip_mode=clip_mode)) * divergence_T


def bound_weights(divergence_T: Tensor, settings: Divergence) -> Tensor:
    """The weight w [T] of each token's divergence in the loss Σ w·D, in (0, 1] and without gradient.

    min(1, clip / D) with clip_mode token and clip > 0, else ones. divergence_T: D of `settings`, nats, as TokenStatistics.divergence_T
    holds it. The weights are part of the state at which D was measured: to compare the loss of two states with the weights of the first,
    multiply the token weights by these and set clip to 0 (with clip_mode token), so that no state bounds anew.
    """
    if settings.clip_mode != "token" or settings.clip == 0:
        return torch.ones_like(divergence_T, requires_grad=False)
    return settings.clip / divergence_T.detach().clamp(min=settings.clip)


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
