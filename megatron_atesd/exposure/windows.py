"""Hold windows: after the warm-up, every `exposure.hold` updates share one exposure."""

from megatron_atesd.config import ExposureConfig


def hold_window(config: ExposureConfig, step: int) -> int:
    """Number of the window in which update step + 1 falls; −1 during the warm-up."""
    return -1 if step < config.warmup_updates else (step - config.warmup_updates) // config.hold
