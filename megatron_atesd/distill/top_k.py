"""The divergence over the teacher's k most likely entries and one bucket for all others, on a block of tokens.

Two more all-gathers over TP: every rank's k best candidates, then what the rest of each shard sums to.
All ranks hold the k + 1 buckets then.
Dimensions: T tokens, V this rank's entries, K the teacher's top entries, R tensor-parallel ranks.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_atesd.distill.divergence import Divergence
from megatron_atesd.distill.softmax import ABSENT, Distributions, gathered
from megatron_atesd.distill.terms import summed_terms


@dataclass(frozen=True)
class _Candidates:
    """This rank's K best entries (columns_TK, of which `mine_TK` belong to the K best of all), and the log-probabilities of the best.

    place_TK: where in the K best of every rank, one rank after the other, each of the best stands.
    """

    columns_TK: Tensor
    mine_TK: Tensor
    place_TK: Tensor
    log_probability_2TK: Tensor


def top_k_divergence(
    both: Distributions, settings: Divergence, group: dist.ProcessGroup | None, wants_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """[3, T]: divergence over the buckets, KL over the whole vocabulary, number of buckets cut; d divergence / d student logits [T, V] if
    wanted."""
    kl_T = torch.linalg.vecdot(both.probability_2TV[0], both.log_ratio())
    best = _candidates(both, settings.top_k, group)
    rest_2TV = _without_best(both, best)
    rest_R3T = gathered(torch.cat((_log_sums(rest_2TV) + both.shift_2T, kl_T[None])), group)
    rest_2T = rest_R3T[:, :2].logsumexp(dim=0)
    teacher_TN, student_TN = torch.cat((best.log_probability_2TK, rest_2T[..., None]), dim=2)
    terms = summed_terms(teacher_TN - student_TN, teacher_TN.exp(), student_TN.exp(), settings)
    gradient_TV = None
    if wants_gradient:
        gradient_TN = terms.gradient(student_TN.exp(), terms.excess_T)
        # The rest's gradient is shared out by the probability of each entry within the rest, from which the best are absent.
        gradient_TV = rest_2TV[1].add_((both.shift_2T[1] - rest_2T[1])[:, None]).exp_().mul_(gradient_TN[:, -1:])
        gradient_TV.scatter_add_(1, best.columns_TK, _own(gradient_TN[:, :-1], best, group))
    return torch.stack((terms.divergence_T, rest_R3T[:, 2].sum(dim=0), terms.cut_T)), gradient_TV


def _candidates(both: Distributions, k: int, group: dist.ProcessGroup | None) -> _Candidates:
    local = min(k, both.logits_2TV.shape[2])
    columns_TK = both.logits_2TV[0].topk(local, dim=1).indices
    local_2TK = both.shift_2T.new_full((*both.shift_2T.shape, k), ABSENT)
    local_2TK[..., :local] = both.logits_2TV.gather(2, columns_TK.expand(2, -1, -1)) + both.shift_2T[..., None]
    every_2TX = gathered(local_2TK, group).permute(1, 2, 0, 3).flatten(2)
    place_TK = every_2TX[0].topk(k, dim=1).indices
    chosen_TX = torch.zeros_like(every_2TX[0], dtype=torch.bool).scatter_(1, place_TK, True)
    first = 0 if group is None else dist.get_rank(group) * k
    return _Candidates(columns_TK, chosen_TX[:, first : first + local], place_TK, every_2TX.gather(2, place_TK.expand(2, -1, -1)))


def _without_best(both: Distributions, best: _Candidates) -> Tensor:
    """The logits [2, T, V] with the K best marked as absent."""
    columns_2TK = best.columns_TK.expand(2, -1, -1)
    others_2TK = both.logits_2TV.gather(2, columns_2TK).masked_fill_(best.mine_TK, ABSENT)
    return both.logits_2TV.scatter(2, columns_2TK, others_2TK)


def _log_sums(logits_2TV: Tensor) -> Tensor:
    """log Σ exp [2, T]; of a shard without entries what stands for log 0."""
    return logits_2TV.logsumexp(dim=2) if logits_2TV.shape[2] else logits_2TV.new_full(logits_2TV.shape[:2], ABSENT)


def _own(values_TK: Tensor, best: _Candidates, group: dist.ProcessGroup | None) -> Tensor:
    """The values of the K best at this rank's candidates, 0 where a candidate is not among them."""
    ranks, rank = (1, 0) if group is None else (dist.get_world_size(group), dist.get_rank(group))
    k, local = values_TK.shape[1], best.columns_TK.shape[1]
    every_TX = values_TK.new_zeros(len(values_TK), ranks * k).scatter_(1, best.place_TK, values_TK)
    return every_TX[:, rank * k : rank * k + local]
