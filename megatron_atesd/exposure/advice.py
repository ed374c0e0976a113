"""Whether a run is long enough for its controller, by simulated students (docs/exposure.md), and what happens if it is not."""

from megatron_atesd.config import ExposureConfig
from megatron_atesd.exposure.windows import hold_window

LEARNED_UPDATES = 400  # up to here mode learned was never better than a constant 0.5
POSTERIOR_UPDATES = 50  # below, what mode posterior tries costs more than it finds out
POSTERIOR_WINDOWS = 6
ALIGNED_WINDOWS = 3


def decisions(config: ExposureConfig, updates: int) -> int:
    """How many windows a run of `updates` updates has."""
    return max(0, hold_window(config, updates - 1) + 1)


def enough_to_explore(config: ExposureConfig, updates: int) -> bool:
    """Whether mode posterior has the updates and windows to gain from trying exposures only in order to know them."""
    return updates - config.warmup_updates >= POSTERIOR_UPDATES and decisions(config, updates) >= POSTERIOR_WINDOWS


def advice(config: ExposureConfig, updates: int) -> str | None:
    """One sentence for a run of `updates` updates that is too short for its controller, None for any other."""
    count = decisions(config, updates)
    has = f"exposure.mode {config.mode} takes {count} decision{'' if count == 1 else 's'} in {updates} updates"
    if config.mode == "learned" and updates <= LEARNED_UPDATES:
        less = f"on simulated students a constant 0.5 loses less up to {LEARNED_UPDATES} updates"
        return f"{has}, which teach its policy little ({less}): take more updates, or mode aligned, which need not explore"
    if config.mode == "posterior" and not enough_to_explore(config, updates):
        needed = f"{POSTERIOR_UPDATES} updates and {POSTERIOR_WINDOWS} decisions"
        return f"{has}, too few to try exposures out, so it stays near the middle: give it {needed}, or take mode aligned"
    if config.mode == "aligned" and decisions(config, updates) < ALIGNED_WINDOWS:
        return f"{has}, too few to average its scores, so it follows single noisy ones: a shorter exposure.hold gives more"
    return None
