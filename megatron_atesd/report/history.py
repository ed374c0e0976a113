"""The metrics of a run so far, as far as its alarms look back."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, median

from megatron_atesd.config import ExposureConfig

KL, ALPHA, POLICY_UPDATES = "distill/kl", "exposure/alpha", "controller/updates"
# Looked back at, besides what controllers report.
WATCHED = (KL, "student/entropy", *(f"rollout/{name}" for name in ("length", "truncated", "loops", "leakage", "exploration")))
AS_HIGH = 0.05  # an exposure above all before by more than this is new


def known(value: float | None) -> float:
    """A metric's value; infinity for NaN, and for null, as metrics.jsonl has NaN."""
    return value if value is not None and math.isfinite(value) else math.inf


class History:
    """Values by update, one `add` an update. What it keeps depends on the metrics alone, so a resumed run reads it off metrics.jsonl.

    updates: finished so far. now: the metrics of the last one.
    """

    def __init__(self, window: int, exposure: ExposureConfig) -> None:
        self.window, self.exposure = window, exposure
        self.updates = 0
        self.now: Mapping[str, float | None] = {}
        self.values: dict[str, list[float]] = {}
        self.highest = -1.0  # exposure so far
        self.kl_first = math.nan  # in the first update at that exposure
        self.alphas: dict[str, list[float]] = {}  # since the warm-up
        self.heard: dict[str, tuple[int, Mapping[str, float]]] = {}  # by controller: when it last changed what it says, and what it says

    def add(self, metrics: Mapping[str, float | None]) -> None:
        """Take in the metrics of one more update."""
        self.updates, self.now = self.updates + 1, metrics
        for name in WATCHED:
            if name in metrics:
                self.values.setdefault(name, []).append(known(metrics[name]))
        self._add_exposed(metrics)
        for controller in self.controllers():
            self._add_controller(controller, metrics)

    def controllers(self) -> list[str]:
        """What the names of each controller's metrics begin with: one for each difficulty bin."""
        bins = self.exposure.bins
        return [""] if bins == 1 else [f"bin{number}/" for number in range(bins)]

    def first(self, name: str) -> list[float]:
        """The finite values of the first window, [] until the last one holds others."""
        values = self.values.get(name, [])
        return list(filter(math.isfinite, values[: self.window])) if len(values) >= 2 * self.window else []

    def last(self, name: str) -> list[float]:
        """The values of the last window, [] as long as there are too few."""
        return whole(self.values.get(name, []), self.window)

    def _add_exposed(self, metrics: Mapping[str, float | None]) -> None:
        alpha = metrics.get(ALPHA)
        if alpha is None or KL not in metrics:
            return
        if alpha > self.highest + AS_HIGH:
            self.highest, self.kl_first = alpha, math.nan
        if math.isnan(self.kl_first) and math.isfinite(kl := known(metrics[KL])):
            self.kl_first = kl

    def _add_controller(self, controller: str, metrics: Mapping[str, float | None]) -> None:
        alpha = metrics.get(controller + ALPHA)
        if alpha is not None and self.updates > self.exposure.warmup_updates:
            self.alphas.setdefault(controller, []).append(alpha)
        says = dict(_sayings(controller, metrics))
        if says and says != self.heard.get(controller, (0, {}))[1]:
            self.heard[controller] = self.updates, says


def _sayings(controller: str, metrics: Mapping[str, float | None]) -> Iterator[tuple[str, float]]:
    """What shows that a controller has learned: its scores, or how many policy updates there were, unless there was none."""
    for name, value in metrics.items():
        if name.startswith(f"{controller}controller/score/") or (name == controller + POLICY_UPDATES and value):
            yield name, known(value)


def whole(values: Sequence[float], count: int) -> list[float]:
    """The last `count` values, [] as long as there are fewer."""
    return list(values[-count:]) if len(values) >= count else []


def level(values: Sequence[float]) -> float:
    """Median: one noisy update does not move it. NaN of nothing, below which and above which nothing is."""
    return median(values) if values else math.nan


def share(values: Sequence[float]) -> float:
    """Mean: of shares, to which one update can add little. NaN of nothing."""
    return fmean(values) if values else math.nan
