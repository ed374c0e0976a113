"""The watch over a run: which alarms hold after an update, and which begin.

    watch = HealthWatch(config)
    for alarm in watch.observe(update, metrics): print(alarm)     # each once an episode
    watch.metrics()                                               # {"health/loops": 0.0, …}

An episode ends when the alarm's condition has not held for a window of updates.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from megatron_atesd.config import ALARMS, TrainConfig
from megatron_atesd.report.alarms import ALARM
from megatron_atesd.report.controller_alarms import Finding
from megatron_atesd.report.history import History


@dataclass(frozen=True)
class Alarm:
    """An alarm that went off: after which update, what was found (`value` is compared with `threshold`), and what to do."""

    update: int
    alarm: str
    value: float
    threshold: float
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"warning: health.{self.alarm} {self.threshold:g}: {self.message}. {self.remedy}"

    def line(self) -> str:
        """As it stands in health.jsonl; a value that is not finite is null."""
        record = asdict(self) | {"value": self.value if math.isfinite(self.value) else None}
        return json.dumps(record, sort_keys=True, allow_nan=False) + "\n"


class HealthWatch:
    """Sees the metrics of each update, in order, from the first one."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.history = History(config.health.window, config.exposure)
        thresholds: dict[str, Any] = asdict(config.health)
        self.thresholds: dict[str, float] = {name: thresholds[name] for name in ALARMS if thresholds[name] is not None}
        self.held: dict[str, int] = {}  # after which update an alarm's condition last held
        self.holding: list[Alarm] = []

    def observe(self, update: int, metrics: Mapping[str, float | None]) -> list[Alarm]:
        """The alarms that go off after `update`: those that hold, and have not for a window."""
        self.history.add(metrics)
        self.holding = [self._alarm(update, name, finding) for name, finding in self._findings()]
        news = [a for a in self.holding if a.alarm not in self.held or update - self.held[a.alarm] > self.history.window]
        self.held |= dict.fromkeys((alarm.alarm for alarm in self.holding), update)
        return news

    def metrics(self) -> dict[str, float]:
        """health/<alarm> of each alarm that is on: 1 while its condition holds."""
        holding = {alarm.alarm for alarm in self.holding}
        return {f"health/{name}": float(name in holding) for name in self.thresholds}

    def ending(self) -> Alarm | None:
        """The first alarm of health.stop_on that holds."""
        return next((alarm for alarm in self.holding if alarm.alarm in self.config.health.stop_on), None)

    def _findings(self) -> Iterator[tuple[str, Finding]]:
        for name, threshold in self.thresholds.items():
            if (finding := ALARM[name].look(self.history, self.config, threshold)) is not None:
                yield name, finding

    def _alarm(self, update: int, name: str, finding: Finding) -> Alarm:
        return Alarm(update, name, finding.value, self.thresholds[name], finding.said, ALARM[name].remedy)
