"""What vLLM is made to do with logits: it samples as this project does, and reports log-probabilities at the sampling's temperature.

vLLM's own log-probabilities are at temperature 1, its min-p comes before top-p, and its generators take 32 bits of a seed. So the model's
logits are divided by the temperature before vLLM sees them, and a logits processor, which vLLM calls once its log-probabilities are taken,
leaves one token a row: the one that `uniforms` of the row's seed chooses. vLLM then takes the most likely.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import log
from typing import Any

import torch
from torch import Tensor

from megatron_atesd.config import RolloutConfig
from megatron_atesd.rollout.sampling import uniforms

SEED = "seed"  # where a request carries it


@dataclass
class Sampling:
    """What holds for all requests in the making. id_limit: ids from it on are never sampled (None: all may be)."""

    id_limit: int | None
    config: RolloutConfig = field(default_factory=RolloutConfig)

    @property
    def scale(self) -> float:
        """What logits are multiplied by."""
        return 1 / (self.config.temperature or 1.0)


def tempered(compute_logits: Callable[..., Tensor], sampling: Sampling) -> Callable[..., Tensor]:
    """A model's compute_logits with fp32 logits at the sampling's temperature."""

    def compute(*inputs: Any, **options: Any) -> Tensor:
        return compute_logits(*inputs, **options).float() * sampling.scale

    return compute


def choose_tokens(logits_BV: Tensor, uniform_B: Tensor, config: RolloutConfig) -> Tensor:
    """Token ids [B] by inverse CDF over the tokens that top-k, then top-p, then min-p keep, in order of probability.

    logits_BV: at the temperature already. Temperature 0 takes the most likely token.
    """
    if config.temperature == 0:
        return logits_BV.argmax(dim=-1)
    kept = config.top_k if 0 < config.top_k < logits_BV.shape[-1] else logits_BV.shape[-1]
    values_BK, ids_BK = logits_BV.topk(kept, dim=-1)
    values_BK = values_BK.double()
    probs_BK = values_BK.softmax(dim=-1)
    dropped_BK = probs_BK.cumsum(dim=-1) - probs_BK >= config.top_p
    if config.min_p > 0:
        dropped_BK |= values_BK < values_BK[:, :1] + log(config.min_p)
    mass_BK = probs_BK.masked_fill(dropped_BK, 0.0).cumsum(dim=-1)
    chosen_B = (mass_BK <= uniform_B[:, None] * mass_BK[:, -1:]).sum(dim=-1)
    last_B = (~dropped_BK).sum(dim=-1) - 1
    # Logits that are NaN keep no token: any will do, the loss will be NaN and the update skipped.
    return ids_BK.gather(-1, torch.minimum(chosen_B, last_B).clamp_min(0)[:, None])[:, 0]


def logits_processor(sampling: Sampling) -> type[Any]:
    """The class of vLLM's logits processor that leaves each row the token to be sampled."""
    from vllm.v1.sample.logits_processor.builtin import process_dict_updates  # pyright: ignore[reportMissingImports]
    from vllm.v1.sample.logits_processor.interface import LogitsProcessor  # pyright: ignore[reportMissingImports]

    class OneToken(LogitsProcessor):
        def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
            self.rows: dict[int, tuple[Tensor, list[int]]] = {}  # uniform numbers of the whole response, and its tokens so far

        def is_argmax_invariant(self) -> bool:
            return False

        def update_state(self, batch_update: Any) -> None:
            process_dict_updates(self.rows, batch_update, _new_row)

        def apply(self, logits: Tensor) -> Tensor:
            rows = [self.rows[i] for i in range(len(logits))]
            uniform_B = torch.stack([numbers[len(ids)] for numbers, ids in rows]).to(logits.device)
            chosen_B = choose_tokens(logits[:, : sampling.id_limit], uniform_B, sampling.config)
            return logits.fill_(-torch.inf).scatter_(-1, chosen_B[:, None], 0.0)

    return OneToken


def _new_row(params: Any, prompt_ids: list[int] | None, ids: list[int]) -> tuple[Tensor, list[int]]:
    return uniforms([params.extra_args[SEED]], params.max_tokens)[0], ids


def sampling_params(sampling: RolloutConfig, seed: int, stop_ids: list[int]) -> Any:
    """vLLM's SamplingParams of one request."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams  # pyright: ignore[reportMissingImports]

    return SamplingParams(
        temperature=0.0,
        max_tokens=sampling.max_new_tokens,
        min_tokens=min(sampling.min_new_tokens, sampling.max_new_tokens),
        stop_token_ids=stop_ids,
        ignore_eos=True,  # of vLLM's tokenizer: stop_ids have it
        stop=list(sampling.stop),
        detokenize=bool(sampling.stop),
        logprobs=0,
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args={SEED: seed},
    )
