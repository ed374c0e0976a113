"""Alarms about what chooses the exposure."""

from dataclasses import dataclass

from megatron_atesd.config import ExposureConfig, TrainConfig
from megatron_atesd.report.history import History, whole

DECISIONS = 8  # fewer say nothing of a policy's spread


@dataclass(frozen=True)
class Finding:
    """What an alarm has found: the value that it holds against its threshold, and a sentence without a full stop."""

    value: float
    said: str


def controller_saturated(history: History, config: TrainConfig, threshold: float) -> Finding | None:
    """Of modes that learn from what they try, and of one that cannot reach its target.

    aligned and posterior weigh every exposure at each decision: one that they keep to is a result. The widest of several bins counts not,
    the narrowest does.
    """
    exposure = config.exposure
    count = max(3 * history.window, DECISIONS * exposure.hold)
    for alphas in (whole(history.alphas.get(controller, []), count) for controller in history.controllers()):
        if not alphas or exposure.mode not in ("learned", "target_kl"):
            continue
        width = max(alphas) - min(alphas) if exposure.mode == "learned" else _from_bound(alphas, exposure)
        if width < threshold:
            where = "within" if exposure.mode == "learned" else "at a bound, within"
            return Finding(width, f"for {count} updates α has stayed {where} {width:.2g} of {alphas[-1]:.3g}")
    return None


def _from_bound(alphas: list[float], exposure: ExposureConfig) -> float:
    return min(max(alphas) - exposure.clip_low, exposure.clip_high - min(alphas))


def controller_idle(history: History, config: TrainConfig, threshold: float) -> Finding | None:
    """Nothing new from a controller for `threshold` updates more than it needs for one lesson."""
    exposure = config.exposure
    if exposure.mode not in ("learned", "aligned", "posterior"):
        return None
    needs = exposure.lookahead + exposure.batch * exposure.hold if exposure.mode == "learned" else exposure.hold
    for controller in history.controllers():
        last, _ = history.heard.get(controller, (0, {}))
        idle = history.updates - max(last, exposure.warmup_updates)
        if idle > needs + threshold:
            since = f"since update {last}" if last else "at all"
            return Finding(idle - needs, f"the exposure's controller has learned nothing {since}, but one lesson takes {needs} updates")
    return None
