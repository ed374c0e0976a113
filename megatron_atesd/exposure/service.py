"""Where ranks agree on the exposure: rank 0 decides and learns, one broadcast a hold window tells the others."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import distributed

from megatron_atesd.config import ExposureConfig
from megatron_atesd.exposure.modes import make_mode
from megatron_atesd.exposure.windows import hold_window
from megatron_atesd.records import Exposure, UpdateStats


class ExposureService:
    """The exposure of every update, the same on all ranks of the default process group (or in a single process without one).

    broadcasts: collectives so far; one for each hold window entered, and one for the warm-up if there is one.
    """

    def __init__(self, config: ExposureConfig, updates: int, seed: int) -> None:
        """Create on every rank; only rank 0's seed matters."""
        self.config = config
        self.distributed = distributed.is_available() and distributed.is_initialized()
        self.mode = make_mode(config, updates, seed) if not self.distributed or distributed.get_rank() == 0 else None
        self.window: int | None = None
        self.decided: int | None = None  # the window of the decision that was loaded, whose scores are known
        self.exposure = Exposure(config.warmup_exposure, -1)
        self.broadcasts = 0

    def propose(self, step: int, score: Callable[[], Sequence[float] | None] = lambda: None) -> Exposure:
        """The exposure for update step + 1, after `step` finished updates. Every rank must call it with the same step.

        score: measures the exposures of mode aligned's grid (with bins of each bin's), on all ranks; called at the start of each of its
        windows.
        """
        window = hold_window(self.config, step)
        if window != self.window:
            scores = score() if self.config.mode == "aligned" and window not in (-1, self.decided) else None
            decided = self.mode.propose(step, scores) if self.mode else self.exposure
            self.exposure = self._agree(decided) if self.distributed else decided
            self.window = window
        return self.exposure

    def observe(self, stats: UpdateStats) -> dict[str, float]:
        """Take in a finished update, reduced over ranks; returns the metrics on rank 0 and {} elsewhere."""
        return self.mode.observe(stats) if self.mode else {}

    def state_dict(self) -> dict[str, Any]:
        """The decider's state on rank 0, {} elsewhere."""
        return self.mode.state_dict() if self.mode else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly on rank 0; other ranks only learn its window. Every rank must call it: the next proposal is broadcast anew."""
        self.window, self.decided = None, state.get("decision")
        if self.mode:
            self.mode.load_state_dict(state)

    def _agree(self, decided: Exposure) -> Exposure:
        bins = self.config.bins if self.config.bins > 1 else 0
        values = torch.tensor([decided.alpha, decided.decision_id, *(decided.of(i) for i in range(bins))], dtype=torch.float64)
        distributed.broadcast(values, src=0)
        self.broadcasts += 1
        alpha, decision_id, *alphas = values.tolist()
        return Exposure(alpha, int(decision_id), tuple(alphas))
