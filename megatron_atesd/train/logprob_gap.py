"""How far the engine's log-probabilities are from the training model's: rounding where all is well, a wrong model where it is not."""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_atesd.distill.likelihood import token_nlls
from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.model.micro_batches import MicroBatch
from megatron_atesd.model.modes import evaluation_mode
from megatron_atesd.model.schedule import model_batches, run_schedule
from megatron_atesd.parallel.groups import broadcast_from_last_stage
from megatron_atesd.records import Rollout


def logprob_gap(model: HiddenStateGPT, rollouts: Sequence[Rollout], temperature: float, micro_batch_tokens: int) -> dict[str, float]:
    """Of all ranks' rollouts: rollout/logprob_gap and rollout/logprob_gap_max, mean and largest |engine - training| of a token, nats;
    rollout/response_ratio, the largest factor, 1 or more, between the probabilities that both give to a whole response.

    temperature: of the sampling (0 counts as 1). {} where no rank has a rollout. Collective over all ranks.
    """
    batches = model_batches(model, [(r.prompt_ids, r.response_ids) for r in rollouts], micro_batch_tokens)
    device = torch.cuda.current_device()
    of_response_N = torch.zeros(len(rollouts), dtype=torch.float64, device=device)
    sums = torch.zeros(2, dtype=torch.float64, device=device)  # of |gap|, and tokens
    largest = torch.zeros(2, dtype=torch.float64, device=device)  # |gap| of a token, of a response

    def last_stage(batch: MicroBatch, hidden_BSH: Tensor) -> tuple[Tensor, Tensor, None]:
        nll_T = torch.cat(token_nlls(model, batch.response_hidden(hidden_BSH) / (temperature or 1.0), batch.targets_T))
        member_T = torch.tensor(batch.members, device=device)[batch.sequence_T] if batch.members else batch.sequence_T
        engine = [rollouts[m].logprobs[p] for m, p in zip(member_T.tolist(), batch.place_T.tolist(), strict=True)]
        gap_T = -nll_T.double() - torch.tensor(engine, dtype=torch.float64, device=device)
        of_response_N.index_add_(0, member_T, gap_T)
        sums.add_(torch.stack((gap_T.abs().sum(), torch.tensor(len(gap_T), dtype=torch.float64, device=device))))
        largest[0] = max(float(largest[0]), float(gap_T.abs().max()) if len(gap_T) else 0.0)
        return nll_T.sum(), torch.tensor(len(nll_T), dtype=torch.int, device=device), None

    with torch.no_grad(), evaluation_mode(model):
        run_schedule(model, batches, last_stage, forward_only=True)
    dist.all_reduce(of_response_N, group=parallel_state.get_context_parallel_group())
    largest[1] = of_response_N.abs().max() if len(rollouts) else 0.0
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    dist.all_reduce(sums, group=group)
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    both = torch.stack((sums, largest))
    broadcast_from_last_stage(both)
    (total, tokens), (token, response) = both.tolist()
    if not tokens:
        return {}
    ratio = math.exp(min(response, 700.0))
    return {"rollout/logprob_gap": total / tokens, "rollout/logprob_gap_max": token, "rollout/response_ratio": ratio}


def gap_alarm(measured: dict[str, float], alarm: float) -> str:
    """A line for the user when the mean gap of a token is above `alarm`; '' otherwise."""
    gap = measured.get("rollout/logprob_gap", 0.0)
    if not gap > alarm:
        return ""
    return (
        f"warning: the engine's log-probabilities are {gap:.3g} nats a token from the training model's, above engine.gap_alarm {alarm:g}: "
        "it samples from another model than the one that learns"
    )
