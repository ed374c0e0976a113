"""How far the engine's log-probabilities are from the training model's: rounding where all is well, a wrong model where it is not."""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.parallel.groups import broadcast_from_last_stage
from megatron_atesd.records import Rollout
from megatron_atesd.rollout.token_gaps import token_gaps


def logprob_gap(model: HiddenStateGPT, rollouts: Sequence[Rollout], temperature: float, micro_batch_tokens: int) -> dict[str, float]:
    """Of all ranks' rollouts: rollout/logprob_gap and rollout/logprob_gap_max, mean and largest |engine - training| of a token, nats;
    rollout/response_ratio, the largest factor, 1 or more, between the probabilities that both give to a whole response.

    temperature: of the sampling (0 counts as 1). {} where no rank has a rollout. Collective over all ranks.
    """
    pairs = [(r.prompt_ids, r.response_ids) for r in rollouts]
    gap_T, member_T = token_gaps(model, pairs, [r.logprobs for r in rollouts], temperature, micro_batch_tokens)
    of_response_N = gap_T.new_zeros(len(rollouts)).index_add_(0, member_T, gap_T)
    dist.all_reduce(of_response_N, group=parallel_state.get_context_parallel_group())
    sums = torch.stack((gap_T.abs().sum(), gap_T.new_tensor(float(len(gap_T)))))
    largest = torch.stack([torch.cat((x.abs(), x.new_zeros(1))).max() for x in (gap_T, of_response_N)])  # of a token, of a response
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    dist.all_reduce(sums, group=group)
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    both = torch.stack((sums, largest))
    broadcast_from_last_stage(both)
    (total, tokens), (token, response) = both.tolist()
    if not tokens:
        return {}
    ratio = math.exp(min(response, 700.0))  # beyond, a float has no number for it
    return {"rollout/logprob_gap": total / tokens, "rollout/logprob_gap_max": token, "rollout/response_ratio": ratio}
