"""Exposure by a target: α rises while the mismatch stays below it. Dual ascent with α itself in the place of the multiplier."""

import math
from collections.abc import Sequence
from typing import Any

from megatron_atesd.config import ExposureConfig
from megatron_atesd.exposure.controller import check_mode
from megatron_atesd.exposure.windows import hold_window
from megatron_atesd.records import Exposure, UpdateStats


class TargetKLExposure:
    """After each window α ← α + target_rate · (1 − KL / target_kl), kept from clip_low to clip_high; the first window plays `start`.

    KL: the mean over the window's updates of the unclipped KL to the teacher on the student's own tokens, nats a token. It rises with α,
    so that α settles where the KL is target_kl, and follows the student from there.
    """

    def __init__(self, config: ExposureConfig) -> None:
        self.config = config
        self.alpha = self._clipped(config.start)
        self.kls: list[float] = []  # of the window's updates so far
        self.window = -1

    def propose(self, step: int, scores: Sequence[float] | None = None) -> Exposure:
        """See Mode."""
        window = hold_window(self.config, step)
        if window != self.window:
            self._move()
            self.window = window
        return Exposure(self.config.warmup_exposure if window < 0 else self.alpha, window)

    def observe(self, stats: UpdateStats) -> dict[str, float]:
        """`exposure/alpha`, from the first update on. The warm-up's updates move nothing."""
        if stats.update == 0:
            return {}
        if stats.exposure.decision_id >= 0:
            self.kls.append(stats.kl)
        return {"exposure/alpha": stats.exposure.alpha}

    def state_dict(self) -> dict[str, Any]:
        """See Mode."""
        return {"mode": "target_kl", "alpha": self.alpha, "kls": list(self.kls), "decision": self.window}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Mode."""
        check_mode(state, "target_kl")
        self.alpha, self.kls, self.window = state["alpha"], list(state["kls"]), state["decision"]

    def _move(self) -> None:
        """A window whose updates were all skipped says nothing."""
        if self.kls:
            kl = math.fsum(self.kls) / len(self.kls)
            self.alpha = self._clipped(self.alpha + self.config.target_rate * (1 - kl / self.config.target_kl))
            self.kls = []

    def _clipped(self, alpha: float) -> float:
        return min(self.config.clip_high, max(self.config.clip_low, alpha))
