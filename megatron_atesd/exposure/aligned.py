"""Exposure by alignment: each window the α whose distillation gradient agrees best with the gradient of the progress loss.

Nothing is tried out on the student: every exposure is scored on the same rollouts (distill/alignment.py). No window goes to a bad one.
"""

import math
from collections.abc import Sequence
from typing import Any

from megatron_atesd.config import ExposureConfig
from megatron_atesd.exposure.controller import check_mode
from megatron_atesd.exposure.windows import hold_window
from megatron_atesd.records import Exposure, UpdateStats


def exposure_grid(config: ExposureConfig) -> list[float]:
    """The exposures that are compared: config.grid of them, evenly spaced from clip_low to clip_high."""
    width = config.clip_high - config.clip_low
    return [config.clip_low + width * i / (config.grid - 1) for i in range(config.grid)]


def score_name(alpha: float) -> str:
    """Metric of what a controller thinks of one exposure; higher is better."""
    return f"controller/score/{alpha:.3g}"


class AlignedExposure:
    """Plays the highest average score; before the first score, and through the warm-up, `warmup_exposure`."""

    def __init__(self, config: ExposureConfig) -> None:
        self.config, self.grid = config, exposure_grid(config)
        self.scores: list[float] | None = None
        self.weight = 0.0  # of all windows in the average, the last one's being 1
        self.current = Exposure(config.warmup_exposure, -1)

    def propose(self, step: int, scores: Sequence[float] | None = None) -> Exposure:
        """See Mode. scores: of the grid, by which each exposure's loss falls on the way of progress.

        None, or one that is not finite: nothing changes.
        """
        window = hold_window(self.config, step)
        if window != self.current.decision_id:
            self._average(scores)
            self.current = Exposure(self._best(), window)
        return self.current

    def observe(self, stats: UpdateStats) -> dict[str, float]:
        """`exposure/alpha`, and the average scores by which it was chosen."""
        if stats.update == 0:
            return {}
        scores = {score_name(alpha): score for alpha, score in zip(self.grid, self.scores or [], strict=False)}
        return {"exposure/alpha": stats.exposure.alpha} | scores

    def state_dict(self) -> dict[str, Any]:
        """See Mode."""
        return {
            "mode": "aligned",
            "scores": self.scores,
            "weight": self.weight,
            "alpha": self.current.alpha,
            "decision": self.current.decision_id,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Mode."""
        check_mode(state, "aligned")
        self.scores, self.weight = state["scores"], state["weight"]
        self.current = Exposure(state["alpha"], state["decision"])

    def _average(self, scores: Sequence[float] | None) -> None:
        """A window counts score_decay times its successor, in an average over those there have been: the first does not decide for long."""
        if scores is not None and all(map(math.isfinite, scores)):
            kept = self.config.score_decay * self.weight
            self.weight = kept + 1
            self.scores = [(kept * old + new) / self.weight for old, new in zip(self.scores or scores, scores, strict=True)]

    def _best(self) -> float:
        if self.scores is None:
            return self.current.alpha
        # Of equal scores the highest exposure: that is where a run without a controller would be.
        return max(zip(self.scores, self.grid, strict=True))[1]
