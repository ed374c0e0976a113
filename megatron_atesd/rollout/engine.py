"""What every rollout engine does: prompts and seeds in, responses out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from megatron_atesd.config import RolloutConfig


@dataclass(frozen=True)
class Response:
    """Generated ids, ending with a stop id unless `truncated` (max_new_tokens reached)."""

    ids: tuple[int, ...]
    truncated: bool


class RolloutEngine(Protocol):
    """Samples responses from the student. Built for one model and tokenizer, it knows their weights, stop ids and number of ids."""

    def generate(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: RolloutConfig) -> list[Response]:
        """One response a prompt, in order, of at most sampling.max_new_tokens tokens.

        Called with equal arguments on every rank that holds a part of the same model, and equal there. A response depends on its own
        prompt, seed and sampling alone, not on the others of the call.
        """
        ...
