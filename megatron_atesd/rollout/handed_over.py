"""Whether another engine has the student's weights: its log-probabilities of its own tokens against the training model's."""

from collections.abc import Sequence

import torch

from megatron_atesd.errors import TrainingError
from megatron_atesd.model.gpt import HiddenStateGPT
from megatron_atesd.model.micro_batches import TokenIds
from megatron_atesd.parallel.groups import gathered
from megatron_atesd.rollout.engine import Response
from megatron_atesd.rollout.token_gaps import token_gaps

# Mean |difference| of a token's log-probability, nats. In fp32 kernels differ in their last digits (1e-6 seen); bf16 has 8 bits a number.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2}


def check_handed_over(model: HiddenStateGPT, prompts: Sequence[TokenIds], responses: Sequence[Response], micro_batch_tokens: int) -> None:
    """Raise TrainingError on all ranks where an engine's log-probabilities (temperature 1) are not the model's. Collective over all.

    prompts, responses: of this data-parallel rank, equal on all ranks of its model. A rank judges its share of the tokens.
    """
    means = gathered(mean_gap(model, prompts, responses, micro_batch_tokens))
    worst, rank = max((gap, rank) for rank, gap in enumerate(means) if gap is not None)
    allowed = TOLERANCE[model.config.params_dtype]
    if not worst <= allowed:
        raise TrainingError(
            f"the weights did not reach the rollout engine: on rank {rank} its log-probabilities of its own tokens are {worst:.3g} nats a "
            f"token away from the training model's, at most {allowed:g} is rounding; set engine.name to training, and report this"
        )


def mean_gap(model: HiddenStateGPT, prompts: Sequence[TokenIds], responses: Sequence[Response], micro_batch_tokens: int) -> float | None:
    """Mean |difference| in nats over the tokens that this rank judges; inf for NaN, None where it judges none. Collective over a model."""
    pairs = [(prompt, response.ids) for prompt, response in zip(prompts, responses, strict=True)]
    gap_T, _ = token_gaps(model, pairs, [response.logprobs for response in responses], 1.0, micro_batch_tokens)
    return float(gap_T.abs().mean().nan_to_num(nan=torch.inf)) if len(gap_T) else None
