"""What follows from the settings of the progress signal alone: what a run must gather, and how often it measures."""

from megatron_atesd.config.schema import ExposureConfig

FREE = ("train_accuracy", "train_kl")  # known of each update without a pass of their own
WITH_GRADIENT = ("probe_nll", "probe_own", "probe_margin", "train_accuracy")  # of likelihoods of texts: mode aligned follows it
HELD_OUT = ("probe_nll", "probe_own", "probe_margin", "probe_accuracy")  # of the student on the probe problems, whatever the teacher
SELDOM = 10  # updates between two measurements that no controller waits for


def needs_own(exposure: ExposureConfig) -> bool:
    """Whether the start model's own responses to the probe problems are gathered and graded."""
    grounded = exposure.mode == "learned" and exposure.grounding == "own"
    return grounded or exposure.progress in ("probe_own", "probe_margin")


def needs_each_probe(exposure: ExposureConfig) -> bool:
    """Whether the controller needs what the probe measures after each update: learned progress and grounding, posterior progress."""
    progress = exposure.mode in ("learned", "posterior") and exposure.progress not in FREE
    return progress or (exposure.mode == "learned" and exposure.grounding != "off")


def probe_interval(exposure: ExposureConfig) -> int:
    """Updates between two measurements of the probe; the start and the last update are measured besides."""
    return exposure.probe_every or (1 if needs_each_probe(exposure) else SELDOM)
