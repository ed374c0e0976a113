"""The training-state statistics that the exposure policy sees."""

import math
from dataclasses import asdict, dataclass

from megatron_atesd.records import UpdateStats

FEATURES = 6
LIMIT = 3.0  # log-ratios are cut here: twenty times smaller or larger says enough


@dataclass
class TrainingState:
    """s = [progress, EMA α, EMA loss, EMA mismatch, EMA probe-NLL, self-confidence] (ATESD, the controller's state).

    Each average starts at its first value. None: not observed yet.
    """

    decay: float
    alpha: float | None = None
    kl: float | None = None
    mismatch: float | None = None
    probe_nll: float | None = None
    confidence: float | None = None
    first_kl: float | None = None
    first_probe_nll: float | None = None

    def observe(self, stats: UpdateStats) -> None:
        """Take in one finished update; update 0 carries probe values only."""
        if stats.probe_nll is not None:
            self.probe_nll = self._average(self.probe_nll, stats.probe_nll)
            self.first_probe_nll = stats.probe_nll if self.first_probe_nll is None else self.first_probe_nll
        if stats.update == 0:
            return
        self.alpha = self._average(self.alpha, stats.exposure.alpha)
        self.kl = self._average(self.kl, stats.kl)
        self.first_kl = stats.kl if self.first_kl is None else self.first_kl
        self.mismatch = self._average(self.mismatch, stats.disagreement)
        self.confidence = stats.confidence

    def features(self, progress: float) -> list[float]:
        """The FEATURES inputs of the policy at a share `progress` in [0, 1] of training, each of order 1 and 0 where nothing is known.

        Shares (progress, α, mismatch, confidence) become 2x − 1; losses (KL, probe NLL) become ln(x / first x), cut to ±3.
        """
        return [
            _centred(progress),
            _centred(self.alpha),
            _log_ratio(self.kl, self.first_kl),
            _centred(self.mismatch),
            _log_ratio(self.probe_nll, self.first_probe_nll),
            _centred(self.confidence),
        ]

    def state_dict(self) -> dict[str, float | None]:
        """Every field as a plain value; `TrainingState(**state)` is the same state."""
        return asdict(self)

    def _average(self, old: float | None, new: float) -> float:
        return new if old is None else self.decay * old + (1 - self.decay) * new


def _centred(share: float | None) -> float:
    return 0.0 if share is None else 2 * share - 1


def _log_ratio(value: float | None, first: float | None) -> float:
    if value is None or first is None:
        return 0.0
    ratio = math.log(max(value, 1e-8) / max(first, 1e-8))
    return min(LIMIT, max(-LIMIT, ratio))
