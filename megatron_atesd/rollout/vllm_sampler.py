"""What vLLM is made to do with logits: it draws tokens as the training engine does, see `Sampler`, by the same uniform numbers.

vLLM's own sampler would not do: its log-probabilities are at temperature 1, it drops by min-p before top-p, and its generators take 32 bits
of a seed. A logits processor leaves one token a row, the drawn one, and vLLM takes the most likely.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megatron_atesd.config import RolloutConfig
from megatron_atesd.model.vocabulary import VocabularyShard
from megatron_atesd.rollout.sampling import Sampler, uniforms

_PLACE = "place"  # under which a request carries its place among the prompts


@dataclass
class Draw:
    """A response on its way: the uniform number that draws each of its tokens, and the drawn ones' log-probabilities, [max_new_tokens]."""

    uniform: NDArray[np.float64]
    logprobs: NDArray[np.float64]


class Draws:
    """The responses of one call on their way, on a rank that sees whole logits. Set by `begin` while nothing is in the making.

    vocabulary: embedding rows. id_limit: ids from it on are never drawn (None: all may be).
    """

    def __init__(self, vocabulary: int, id_limit: int | None, stop_ids: Sequence[int]) -> None:
        self.shard, self.limit, self.stop_ids = VocabularyShard(0, vocabulary, None), min(vocabulary, id_limit or vocabulary), stop_ids
        self.begin(RolloutConfig())

    def begin(self, sampling: RolloutConfig) -> None:
        """Forget the last call; what follows is drawn by `sampling`."""
        self.sampling, self.sampler = sampling, Sampler(self.shard, sampling, self.limit, self.stop_ids)
        self.by_place: dict[int, Draw] = {}

    def request(self, place: int, seed: int) -> Any:
        """vLLM's SamplingParams of the response to prompt number `place`."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams  # pyright: ignore[reportMissingImports]

        steps = self.sampling.max_new_tokens
        self.by_place[place] = Draw(uniforms(seed, steps), np.zeros(steps))
        return SamplingParams(
            temperature=0.0,
            max_tokens=steps,
            stop_token_ids=list(self.stop_ids),
            ignore_eos=True,  # of vLLM's tokenizer: stop_ids have it
            stop=list(self.sampling.stop),
            detokenize=bool(self.sampling.stop),
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args={_PLACE: place},
        )

    def draw(self, logits_TV: Tensor, rows: Sequence[tuple[Draw, int]]) -> Tensor:
        """Ids [T] of the next tokens. logits_TV: fp32, whole, may be overwritten. rows: each response and how many tokens it has."""
        uniform_T = torch.tensor([draw.uniform[length] for draw, length in rows], dtype=torch.float64, device=logits_TV.device)
        too_short = [length < self.sampling.min_new_tokens for _, length in rows]
        ids_T, logprobs_T = self.sampler.sample(logits_TV, uniform_T, too_short)
        # A prompt that is not whole yet, or a response that begins anew, is drawn for more than once: the last draw counts.
        for (draw, length), value in zip(rows, logprobs_T.tolist(), strict=True):
            draw.logprobs[length] = value
        return ids_T


def logits_processor(draws: Draws) -> type[Any]:
    """The class of vLLM's logits processor that leaves each row the token that is drawn."""
    from vllm.v1.sample.logits_processor.builtin import process_dict_updates  # pyright: ignore[reportMissingImports]
    from vllm.v1.sample.logits_processor.interface import LogitsProcessor  # pyright: ignore[reportMissingImports]

    class OneToken(LogitsProcessor):
        def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
            self.rows: dict[int, tuple[Draw, list[int]]] = {}  # of vLLM's batch: each response, and its tokens so far, which vLLM appends

        def is_argmax_invariant(self) -> bool:
            return False

        def update_state(self, batch_update: Any) -> None:
            process_dict_updates(self.rows, batch_update, lambda params, prompt, ids: (draws.by_place[params.extra_args[_PLACE]], ids))

        def apply(self, logits: Tensor) -> Tensor:
            rows = [self.rows[row] for row in range(len(logits))]
            chosen_T = draws.draw(logits, [(draw, len(ids)) for draw, ids in rows])
            return logits.fill_(-torch.inf).scatter_(-1, chosen_T[:, None], 0.0)

    return OneToken
