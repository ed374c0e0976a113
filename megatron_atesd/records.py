"""The plain records that flow between the parts, and the legend of tensor names.

Tensor names end in their dimensions:

    B  sequences in a batch          S  positions of a (padded) sequence
    T  response tokens of a micro-batch, sequence after sequence
    V  this rank's shard of the vocabulary (the whole vocabulary at TP=1)
    H  hidden size                   D  head size
    L  updates of the look-ahead     K  samples a problem
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One task with its reference solution (one line of a problem file)."""

    id: str
    problem: str
    solution: str
    answer: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TeacherContext:
    """What the teacher sees of one problem at one exposure."""

    prompt_ids: tuple[int, ...]
    revealed: int  # reference segments shown
    segments: int  # reference segments there are (m)


@dataclass(frozen=True)
class Rollout:
    """One student response. `response_ids` ends with the stop token unless `truncated`. logprobs: the engine's, see rollout/engine.py."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    truncated: bool
    logprobs: tuple[float, ...] = field(default=(), compare=False)  # measured, not what was written


@dataclass(frozen=True)
class Exposure:
    """The reveal ratio in force and the number of the decision that set it (-1: no decision was needed).

    bins: with exposure.bins above 1, the ratio of each difficulty bin, easiest first; alpha is then their mean. Empty: one for all.
    """

    alpha: float
    decision_id: int
    bins: tuple[float, ...] = ()

    def of(self, number: int) -> float:
        """The ratio of difficulty bin `number`."""
        return self.bins[number] if self.bins else self.alpha


@dataclass(frozen=True)
class UpdateStats:
    """What the controller may know after a finished update, reduced over all ranks.

    update: number of finished student updates t (0 = before the first update, only probe values are set).
    exposure: in force in update t, with its decision (at 0: the one of the first update).
    kl: mean unclipped KL(teacher ‖ student) over response tokens, nats per token.
    disagreement: share of response tokens whose teacher and student top-1 differ.
    confidence: mean of the student's largest probability over response tokens.
    progress: the configured progress signal, lower is better; an accuracy is negated (None when this update did not measure it).
    probe_nll: student NLL of the probe set's reference solutions, nats per token (None when this update did not measure it).
    grounding: mean log-probability per token of the grounding text under the exposed teacher, nats per token (None when not measured).
    by_bin: with exposure.bins above 1, the same of each difficulty bin's problems; progress and grounding are then None here.
    """

    update: int
    exposure: Exposure
    kl: float
    disagreement: float
    confidence: float
    progress: float | None
    probe_nll: float | None
    grounding: float | None
    by_bin: tuple["UpdateStats", ...] = ()
