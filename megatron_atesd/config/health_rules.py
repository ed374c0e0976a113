"""Rules between the settings of section health, and between them and others."""

from collections.abc import Iterator
from dataclasses import asdict

from megatron_atesd.config.fields import did_you_mean
from megatron_atesd.config.health import ALARMS
from megatron_atesd.config.schema import TrainConfig


def health_problems(config: TrainConfig) -> Iterator[str]:
    """The broken ones; every single number keeps its bound."""
    thresholds = asdict(config.health)
    for name in config.health.stop_on:
        if name not in ALARMS:
            yield f"health.stop_on has {name!r}, must be of {', '.join(ALARMS)}{did_you_mean(str(name), ALARMS)}"
        elif thresholds[name] is None:
            yield f"health.stop_on has {name}, but health.{name} is null, which turns that alarm off; give it a threshold"
        elif name == "logprob_gap" and not config.engine.checked:
            yield "health.stop_on has logprob_gap, but engine.checked 0 measures no gap; raise it, or remove the alarm from the list"
