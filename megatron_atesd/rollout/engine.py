"""What every rollout engine does: prompts and seeds in, responses with their log-probabilities out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from megatron_atesd.config import RolloutConfig

# Of prompts, padding included, that one pass of the training engine computes; a longer prompt has a pass for itself.
PROMPT_TOKENS = 8192

Dependence = Literal["seed", "batch", "layout"]


@dataclass(frozen=True)
class Response:
    """One sampled response.

    ids: with the stop token, or the tokens of the stop text, that ended it; without one where `truncated` (max_new_tokens reached).
    logprobs: of each id, nats: of the softmax over the whole vocabulary at the sampling's temperature (1 where that is 0), before top-k,
        top-p, min-p and min_new_tokens take entries away.
    text_end: ids[:text_end] make the text: all but a stop token.
    """

    ids: tuple[int, ...]
    truncated: bool
    logprobs: tuple[float, ...]
    text_end: int


# Told of each response when it is finished: its place among the prompts, and itself.
Finished = Callable[[int, Response], None]


class RolloutEngine(Protocol):
    """Samples responses from the student. Built for one model and tokenizer, it knows their weights, stop ids and number of ids."""

    # What a response may depend on, besides its prompt, the sampling and the weights: its own seed; the others of its batch and their
    # number; the layout (TP, PP, …) and the number of ranks.
    depends_on: frozenset[Dependence]

    def refresh(self) -> None:
        """Sample from the model's weights as they are now. To be called when they have changed. Collective."""
        ...

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: RolloutConfig, finished: Finished | None = None
    ) -> list[Response]:
        """One response a prompt, in order, of at most sampling.max_new_tokens tokens.

        Several samples of a problem are equal prompts with other seeds; the prompt is computed once for those that lie side by side.
        Called with equal arguments on every rank that holds a part of the same model, and equal there. finished: called while others are
        still in the making, for each response on all ranks of one tensor-parallel group: pipeline stages and context-parallel ranks are
        told of different ones, or of none.
        """
        ...
