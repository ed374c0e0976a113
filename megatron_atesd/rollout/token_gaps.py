"""An engine's log-probabilities of its own tokens against the training model's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_atesd.distill.likelihood import token_nlls
from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.model.micro_batches import MicroBatch, Pair
from megatron_atesd.model.modes import evaluation_mode
from megatron_atesd.model.schedule import model_batches, run_schedule


def token_gaps(
    model: HiddenStateGPT, pairs: Sequence[Pair], logprobs: Sequence[Sequence[float]], temperature: float, micro_batch_tokens: int
) -> tuple[Tensor, Tensor]:
    """training - engine [T], nats (float64), and which pair [T] each token is of: of this rank's share of the response tokens.

    Empty on all but the last pipeline stage. pairs: (prompt, response) of this data-parallel rank, maybe none. logprobs: the engine's, of
    each response token, at `temperature` (0 counts as 1). Collective over all ranks.
    """
    device = torch.cuda.current_device()

    def last_stage(batch: MicroBatch, hidden_BSH: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        nll_T = torch.cat(token_nlls(model, batch.response_hidden(hidden_BSH) / (temperature or 1.0), batch.targets_T))
        members = [batch.members[sequence] for sequence in batch.sequence_T.tolist()]
        engine = [logprobs[member][place] for member, place in zip(members, batch.place_T.tolist(), strict=True)]
        gap_T = -nll_T.double() - torch.tensor(engine, dtype=torch.float64, device=device)
        return nll_T.sum(), torch.tensor(len(nll_T), dtype=torch.int, device=device), (gap_T, torch.tensor(members, device=device))

    with torch.no_grad(), evaluation_mode(model):
        found = run_schedule(model, model_batches(model, pairs, micro_batch_tokens), last_stage, forward_only=True)
    gap_T = torch.cat([torch.zeros(0, dtype=torch.float64, device=device), *(gap for gap, _ in found)])
    return gap_T, torch.cat([torch.zeros(0, device=device), *(member for _, member in found)]).long()
