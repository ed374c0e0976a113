"""Responses in the making: what each has so far, which wait for a place, and what ends one."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from megatron_atesd.config import RolloutConfig
from megatron_atesd.rollout.engine import Finished, Response
from megatron_atesd.rollout.sampling import uniforms

Decode = Callable[[Sequence[int]], str]
_MARGIN = 8  # tokens before those that could hold a stop text, so that none is cut inside a character


@dataclass(eq=False)
class Row:
    """One response on its way. place: among the prompts of the call. uniform: one number a token, drawn when it is first needed."""

    place: int
    prompt: Sequence[int]
    seed: int
    ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    uniform: NDArray[np.float64] | None = None

    @property
    def length(self) -> int:
        """Tokens of prompt and response."""
        return len(self.prompt) + len(self.ids)

    def next_uniform(self, steps: int) -> float:
        """The number that chooses the next of at most `steps` tokens."""
        if self.uniform is None:
            self.uniform = uniforms(self.seed, steps)
        return float(self.uniform[len(self.ids)])


@dataclass
class Queue:
    """The prompts that wait, and the responses that are there.

    decode: text of ids, for stop texts. finished: told of each response.
    """

    sampling: RolloutConfig
    stop_ids: frozenset[int]
    waiting: deque[Row]
    decode: Decode | None = None
    finished: Finished | None = None
    done: dict[int, Response] = field(default_factory=dict[int, Response])
    tokens: int = 0

    def expected_length(self, row: Row) -> int:
        """Tokens of prompt and response that a row will have, by the mean of the responses that are there; the limit without any."""
        limit = self.sampling.max_new_tokens
        mean = -(-self.tokens // len(self.done)) if self.done else limit
        return len(row.prompt) + min(limit, max(mean, len(row.ids) + 1))

    def take_token(self, row: Row, token: int, logprob: float) -> bool:
        """Add a token to a row; whether it goes on. The response of one that does not is told."""
        row.ids.append(token)
        row.logprobs.append(logprob)
        stopped = token in self.stop_ids
        ended = stopped or self._ends_with_stop_text(row.ids)
        if not ended and len(row.ids) < self.sampling.max_new_tokens:
            return True
        response = Response(tuple(row.ids), not ended, tuple(row.logprobs), len(row.ids) - stopped)
        row.uniform = None
        self.done[row.place] = response
        self.tokens += len(row.ids)
        if self.finished is not None:
            self.finished(row.place, response)
        return False

    def _ends_with_stop_text(self, ids: Sequence[int]) -> bool:
        """Whether the last token ends a stop text: one that ended before min_new_tokens does not count."""
        if not self.sampling.stop or self.decode is None or len(ids) < self.sampling.min_new_tokens:
            return False
        longest = max(len(text.encode()) for text in self.sampling.stop)
        tail = self.decode(ids[-longest - _MARGIN :])
        if not any(text in tail for text in self.sampling.stop):
            return False
        before = self.decode(ids[-longest - _MARGIN : -1])
        known = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(tail, before, strict=False)))
        return any(text in tail[max(0, known - len(text) + 1) :] for text in self.sampling.stop)
