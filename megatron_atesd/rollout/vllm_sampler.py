"""What vLLM is made to do with logits: it samples as this project does, and reports log-probabilities at the sampling's temperature.

vLLM's own log-probabilities are at temperature 1, its min-p comes before top-p, and its generators take 32 bits of a seed. So the model's
logits are divided by the temperature before vLLM sees them, and a logits processor, which vLLM calls once its log-probabilities are taken,
leaves one token a row: the one that `uniforms` of the row's seed chooses. vLLM then takes the most likely.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from megatron_atesd.config import RolloutConfig
from megatron_atesd.model.vocabulary import VocabularyShard
from megatron_atesd.rollout.sampling import Sampler, uniforms

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

    def sampler(self, entries: int) -> Sampler:
        """For logits [B, entries] of the whole vocabulary, at the temperature already."""
        tempered = replace(self.config, temperature=1.0 if self.config.temperature else 0.0)
        return Sampler(VocabularyShard(0, entries, None), tempered, self.id_limit or entries, ())


def tempered(compute_logits: Callable[..., Tensor], sampling: Sampling) -> Callable[..., Tensor]:
    """A model's compute_logits with fp32 logits at the sampling's temperature."""

    def compute(*inputs: Any, **options: Any) -> Tensor:
        return compute_logits(*inputs, **options).float() * sampling.scale

    return compute


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
            chosen_B, _ = sampling.sampler(logits.shape[1]).sample(logits, uniform_B, [False] * len(logits))
            return logits.fill_(-torch.inf).scatter_(-1, chosen_B[:, None], 0.0)

    return OneToken


def _new_row(params: Any, prompt_ids: list[int] | None, ids: list[int]) -> tuple[Tensor, list[int]]:
    return torch.from_numpy(uniforms(params.extra_args[SEED], params.max_tokens)), ids


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
