"""Both roles' softmax over a vocabulary that tensor parallelism divides, for a block of tokens: one all-gather for all its statistics.

Dimensions: 2 the roles, teacher and student; T tokens, V this rank's vocabulary entries, R tensor-parallel ranks.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

# Logit of an entry that is not there: its probability is 0, and the difference of two such is 0.
ABSENT = -1e30


@dataclass(frozen=True)
class Distributions:
    """Teacher and student over this rank's entries.

    logits_2TV: less a constant a token, which the shift puts right: logit + shift_2T = log-probability. probability_2TV: of the whole.
    statistics_4T: whether the most likely entries differ, the student's largest probability, teacher's and student's entropy (nats).
    """

    logits_2TV: Tensor
    probability_2TV: Tensor
    shift_2T: Tensor
    statistics_4T: Tensor

    def log_ratio(self) -> Tensor:
        """log(teacher / student) [T, V]."""
        shift_T = self.shift_2T[0] - self.shift_2T[1]
        return (self.logits_2TV[0] - self.logits_2TV[1]).add_(shift_T[:, None])


def distributions(logits_2TV: Tensor, group: dist.ProcessGroup | None) -> Distributions:
    """Softmax of both roles' logits over all ranks' entries."""
    shifted_2TV, exp_2TV, sums_7T = _shard_sums(logits_2TV)
    shards_R7T = gathered(sums_7T, group)
    shard = 0 if group is None else dist.get_rank(group)
    peak_R2T, sum_R2T, dot_R2T, same_RT = shards_R7T[:, :2], shards_R7T[:, 2:4], shards_R7T[:, 4:6], shards_R7T[:, 6]
    lift_R2T = peak_R2T - peak_R2T.amax(dim=0)
    factor_R2T = lift_R2T.exp()
    norm_2T = (factor_R2T * sum_R2T).sum(dim=0)
    dot_2T = (factor_R2T * (dot_R2T + lift_R2T * sum_R2T)).sum(dim=0)
    log_norm_2T = norm_2T.log()
    same_T = (same_RT * (lift_R2T == 0).all(dim=1)).amax(dim=0)
    statistics_4T = torch.stack((1 - same_T, 1 / norm_2T[1], *(log_norm_2T - dot_2T / norm_2T)))
    probability_2TV = exp_2TV.mul_((factor_R2T[shard] / norm_2T)[..., None])
    return Distributions(shifted_2TV, probability_2TV, lift_R2T[shard] - log_norm_2T, statistics_4T)


def gathered(local: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """[R, …]: every rank's `local`, in rank order."""
    if group is None:
        return local[None]
    shards = local.new_empty(dist.get_world_size(group), *local.shape)
    dist.all_gather(list(shards.unbind(0)), local.contiguous(), group=group)
    return shards


def _shard_sums(logits_2TV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """l = logit - largest here, e = exp(l), and [7, T]: of both roles the largest, Σ e and Σ e · l; 1 if one entry is both's largest."""
    _, tokens, columns = logits_2TV.shape
    if columns == 0:  # a shard of padding only
        return logits_2TV, logits_2TV.clone(), torch.cat((logits_2TV.new_full((2, tokens), ABSENT), logits_2TV.new_zeros(5, tokens)))
    peak_2T = logits_2TV.amax(dim=-1)
    shifted_2TV = logits_2TV - peak_2T[..., None]
    same_T = (shifted_2TV[0] + shifted_2TV[1]).amax(dim=-1) == 0
    exp_2TV = shifted_2TV.exp()
    sums = (peak_2T, exp_2TV.sum(dim=-1), torch.linalg.vecdot(exp_2TV, shifted_2TV), same_T[None].to(logits_2TV.dtype))
    return shifted_2TV, exp_2TV, torch.cat(sums)
