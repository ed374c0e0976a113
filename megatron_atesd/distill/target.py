"""What a response token is drawn to: the teacher's distribution at one exposure, or a mix of two readings by the same weights.

p and z: probabilities and logits at the exposure in force; p' and z': of the second reading; w: the weight of the second.

    teacher        p
    mix_exposures  (1 - w) · p + w · p', the second reading at another exposure
    mix_unaided    softmax((1 - w) · z + w · z'), the second reading of the student's prompt; w < 0 leads away from it

Both readings share one vocabulary head. So a mix of logits is one of hidden states, which the loss takes as any other; a mix of
probabilities is made of both readings' logits, chunk by chunk.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_atesd.distill.softmax import gathered

TargetKind = Literal["teacher", "mix_exposures", "mix_unaided"]


@dataclass(frozen=True)
class Target:
    """weight: w, of the second reading; below 1, with mix_exposures 0 or more."""

    kind: TargetKind = "teacher"
    weight: float = 0.0

    @property
    def readings(self) -> int:
        """Hidden states of a token that the loss needs: 2 where it mixes probabilities, else 1."""
        return 2 if self.kind == "mix_exposures" else 1


TEACHER = Target()


def mix_probabilities(first_TV: Tensor, second_TV: Tensor, weight: float, group: dist.ProcessGroup | None) -> Tensor:
    """log((1 - weight) · p + weight · p') [T, V] of this rank's entries of both readings' logits, at the temperature of the loss.

    One all-gather over `group`, which shares out the vocabulary: the normalisers of both.
    """
    logits = (first_TV, second_TV)
    norm_2T = gathered(torch.stack([logits_TV.logsumexp(dim=-1) for logits_TV in logits]), group).logsumexp(dim=0)
    logs = (math.log1p(-weight), math.log(weight) if weight else -math.inf)
    parts = (logits_TV + (log - norm_T)[:, None] for logits_TV, log, norm_T in zip(logits, logs, norm_2T, strict=True))
    return torch.logaddexp(*parts)
